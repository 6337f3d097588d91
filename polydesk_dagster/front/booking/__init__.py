"""The API by which a front end finds times, holds them, books, verifies, cancels and moves, for visitors of its own.

Names are those of FHIR R4's scheduling where it has them. What is decided, ``clinic.bookings`` decides; here stands how
it is asked, by whom, how often, and how an answer is told to a program.
"""
