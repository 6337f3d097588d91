"""The practice-management system: its client, its records, its events.

Here belong how a list or a page of news is asked for, what a record of it must look like, and what an event does. How
any system is asked is ``remote``; which of our records a list becomes, ``sources.kinds``; how they are compared and
applied, ``changes``; who a patient is, ``clinic.patients``.
"""
