"""Systems outside that own some of our records, and how we stay aligned with them.

Here belong the port that an adapter fills (``port``, ``records``, ``vendors``) and what it must pass (``conformance``),
the adapters (``studiolab``, ``files``, ``fhir``), what lists and news become (``kinds``, ``lists``, ``events``), and
the practice's own workbook (``practice``).

What is done with a record once it is read is ``clinic`` and ``changes``; who carries messages is ``providers``.
"""
