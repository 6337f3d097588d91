"""When a doctor can be booked: turns expanded into slots, closures that take slots away, from the chain or the desk,
orphans that they leave.

Who sits on a slot, and for how long, is ``clinic.bookings``; where closures are read from is ``central``; how their
plans are kept is ``changes``.
"""
