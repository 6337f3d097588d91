"""Who sits on a slot: free times and holds, their confirmation, payment and release, online bookings to be verified,
the place that is kept for whoever lost hers, and the dangerous buttons.

Which slots there are is ``clinic.calendar``; what patients are told about their booking is ``clinic.messages``; what is
deleted long after is ``clinic.upkeep``.
"""
