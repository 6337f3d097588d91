"""The rules of a clinic, a room each: ``calendar`` when there are places, ``bookings`` who sits on them, ``patients``
who is who, ``messages`` what is written to them, ``statistics`` and ``caches`` what is counted and kept ready,
``upkeep`` what is tidied and brought back. What comes from other systems is in ``sources``; how a plan is made and
applied, in ``changes``.

Rules take a connection, an ``as_of`` instant and plain values, and return a report; they never read the clock, the
environment or Dagster. Beside the rooms stands only what several of them share: which clinic a code means, and whole
things published in turn.
"""
