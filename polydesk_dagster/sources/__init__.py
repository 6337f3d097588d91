"""Systems outside that own some of our records, and how we stay aligned with them: ``studiolab`` is the first.

What is done with a record once it is read is ``clinic`` and ``changes``; who carries messages is ``providers``.
"""
