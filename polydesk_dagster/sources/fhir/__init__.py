"""A FHIR R4 server as a source: https://hl7.org/fhir/R4/. Resources are checked by ``fhir.resources`` (release R4B,
whose resources that are read here are R4's).

How any system is asked is ``remote``; what becomes of what was read, ``sources.kinds`` and ``sources.events``.
"""
