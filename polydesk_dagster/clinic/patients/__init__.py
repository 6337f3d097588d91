"""Who a patient is: fiscal codes, adding who is missing without merging two, and a person's verdict in doubt; and what
the law gives her: a copy of what is held of her, its erasure, and who has looked at it.

How records are read from a practice-management system is ``sources``; what patients are written, ``clinic.messages``.
"""
