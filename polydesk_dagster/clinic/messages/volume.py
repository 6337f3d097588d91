"""A day that wants far more messages than usual waits until a person allows the number that she saw."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes.audit import is_reason
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Report
from polydesk_dagster.values import Term, Value

GUARD = "unusual_volume"
UNUSUAL = 3
"""Times the usual volume of a day above which a person has to allow it."""
_USUAL_DAYS = 28
_FEWEST_DAYS = 5
_SMALL = 200
"""Messages a day that are never too many."""


def _since(as_of: datetime) -> datetime:
    return as_of - timedelta(hours=as_of.hour, minutes=as_of.minute, seconds=as_of.second)


def unusual(connection: sa.Connection, kind: str, as_of: datetime) -> tuple[int, int] | None:
    """(messages of ``kind`` that today wants, those of a usual day), where that is too many; whoever allowed it."""
    since = _since(as_of)
    wanted = connection.scalar(
        sa.text("""
            SELECT (SELECT count(*) FROM message
                    WHERE kind = :kind AND state IN ('planned', 'retry') AND send_after <= :as_of)
                 + (SELECT count(*) FROM message WHERE kind = :kind AND state = 'sent' AND changed_at >= :since)"""),
        {"kind": kind, "as_of": as_of, "since": since},
    )
    if wanted is None or wanted <= _SMALL:
        return None
    days, usual = connection.execute(
        sa.text("""
            SELECT count(*), coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY sent), 0)
            FROM (SELECT count(*) AS sent FROM message
                  WHERE kind = :kind AND state = 'sent' AND changed_at < :since
                    AND changed_at >= CAST(:since AS timestamptz) - make_interval(days => :days)
                  GROUP BY date_trunc('day', changed_at)) AS day"""),
        {"kind": kind, "since": since, "days": _USUAL_DAYS},
    ).one()
    return None if days < _FEWEST_DAYS or wanted <= UNUSUAL * usual else (wanted, usual)


def stopped(connection: sa.Connection, kind: str, as_of: datetime) -> tuple[int, int] | None:
    """As :func:`unusual`, where nobody has allowed so many yet."""
    found = unusual(connection, kind, as_of)
    if found is None:
        return None
    allowed = connection.scalar(
        sa.text("SELECT max(wanted) FROM message_approval WHERE kind = :kind AND at >= :since AND at <= :as_of"),
        {"kind": kind, "since": _since(as_of), "as_of": as_of},
    )
    return None if allowed is not None and found[0] <= allowed else found


def hold(connection: sa.Connection, kind: str, as_of: datetime) -> Report | None:
    """Stop a day that wants more than three times the usual messages of ``kind``, or more than somebody allowed."""
    found = stopped(connection, kind, as_of)
    if found is None:
        return None
    values: dict[str, Value] = {"kind": Term("message_kind", kind), "wanted": found[0], "usual": found[1]}
    return Report.refused(GUARD, values)


def allow(connection: sa.Connection, kind: str, seen: int, *, who: str, why: str, as_of: datetime) -> None:
    """Somebody has looked at today's number of ``kind`` and lets so many go, and none more.

    Raises:
        PermanentError: without a reason; where nothing is stopped, or the number is no longer the one that she saw.
    """
    if not is_reason(why):
        raise PermanentError("message_reason")
    found = unusual(connection, kind, as_of)
    if found is None:
        raise PermanentError("volume_usual", kind=Term("message_kind", kind))
    if found[0] != seen:
        raise PermanentError("volume_changed", seen=seen, wanted=found[0])
    connection.execute(
        sa.text("""INSERT INTO message_approval (kind, wanted, usual, at, who, why)
                   VALUES (:kind, :wanted, :usual, :at, :who, :why)"""),
        {"kind": kind, "wanted": found[0], "usual": found[1], "at": as_of, "who": who, "why": why},
    )
