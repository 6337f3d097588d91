"""What the lists of systems outside become here: a record kind for each, with whose each field is and how much may
change.

How a list is read is the adapter's (``sources.studiolab``, ``files``, ``fhir``); how it is compared, planned and
applied is ``changes``; the patients, whose identity is a rule of the clinic, are ``clinic.patients``.
"""
