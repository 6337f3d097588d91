"""What is tidied and brought back: retention of old rows, temporary files, deleted services, names to sort by.

Holds and unverified bookings end in ``clinic.bookings``; Dagster's own history is trimmed by ``runtime.retention``.
"""
