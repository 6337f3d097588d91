"""The practice-management system studiolab: its client, and what it can tell.

Here belongs how a list or a page of news is asked for. How any system is asked is ``remote``; what a record must look
like, ``sources.records``; what an event does, ``sources.events``; which of our records a list becomes,
``sources.kinds``; how they are compared and applied, ``changes``; who a patient is, ``clinic.patients``.
"""
