"""What programs outside ask over HTTP: the booking front end, and whoever shows the caches. No cookie counts here.

Here belongs how such a question is read, allowed and answered. What the answer is, is a rule's (``clinic.caches``,
``clinic.bookings``); pages for people, with their login, are ``web``.
"""
