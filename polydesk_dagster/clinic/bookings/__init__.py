"""Who sits on a slot: holds, their confirmation and release, online bookings to be verified, and the dangerous buttons.

Which slots there are is ``clinic.calendar``; what patients are told about their booking is ``clinic.messages``; what is
deleted long after is ``clinic.upkeep``.
"""
