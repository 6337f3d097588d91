"""What a source says happens, taken in as it happens: read, staged, carried out, kept until it is settled.

How a page of news is asked for is the adapter's, who is asked when ``sensors`` and ``looking``; what an event does to a
booking or a patient is done by ``clinic.bookings`` and ``clinic.patients``.
"""
