"""How often a clinic's source is asked whether it has news: each minute, less often where nothing comes or it is slow.

A tenth of the time for which nothing has come is how long an answer may be taken for fresh (RFC 9111, 4.2.2), up to
``LONGEST`` minutes. Intervals are powers of two, of minutes counted alike for a clinic, so that two looks are never
further apart than the longer of their intervals, and nothing has to be written to know whose turn it is.
"""

from __future__ import annotations

from datetime import datetime, timedelta

LONGEST = 4
"""Minutes; with a look's own time news is read within five."""
QUIET = ((timedelta(minutes=40), LONGEST), (timedelta(minutes=20), 2))
"""For how long nothing has come, with the minutes between two looks."""
SLOW = ((10.0, LONGEST), (5.0, 2))
"""Seconds that an answer has taken, with the minutes: less than a twentieth of its time is spent on us."""


def interval(quiet_since: datetime | None, slowed: int, as_of: datetime) -> int:
    """Minutes between two looks at who has told nothing since ``quiet_since``, and was found slow (see ``slowed``)."""
    if quiet_since is None:
        return slowed
    quiet = as_of - quiet_since
    return max(slowed, next((minutes for least, minutes in QUIET if quiet >= least), 1))


def is_due(number: int, every: int, since: datetime | None, as_of: datetime) -> bool:
    """Whether clinic ``number`` is to be asked now, where the look before was at ``since``: everybody without one."""
    if every == 1 or since is None:
        return True
    before, now = (int(each.timestamp()) // 60 + number for each in (since, as_of))
    return now // every > before // every


def slowed(before: int, seconds: float) -> int:
    """Minutes that are left between two looks at who took so long for its answer; half as many as ``before`` where it
    was quick. Who says that it is asked too often is left in peace for ``LONGEST``."""
    return next((minutes for least, minutes in SLOW if seconds >= least), max(before // 2, 1))
