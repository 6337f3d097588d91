"""Who a patient is: fiscal codes, adding who is missing without merging two, and a person's verdict in doubt.

How records are read from a practice-management system is ``sources``; what patients are written, ``clinic.messages``.
"""
