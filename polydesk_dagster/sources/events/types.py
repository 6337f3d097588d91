"""Events of a type that is not known: one open question for the type, and one verdict for all of its events.

They are kept, whole, and keep nobody waiting; once a version of ours knows the type they are taken in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.errors import PermanentError

UNKNOWN = '"event_type_unknown"'
"""In the problem of an event whose type is not known."""
_UNKNOWN = f"n.verdict IS NULL AND n.problem LIKE '%{UNKNOWN}%'"

ASK = f"""
INSERT INTO event_type (type, clinic_id, asked_at)
SELECT DISTINCT n.type, CAST(:clinic AS bigint), CAST(:as_of AS timestamptz) FROM news n WHERE {_UNKNOWN}
ON CONFLICT DO NOTHING"""

JUDGE = f"""
UPDATE news n SET verdict = CASE WHEN t.ignored_at IS NULL THEN 'unknown' ELSE 'skipped' END, reason = 'type_ignored'
FROM event_type t WHERE t.type = n.type AND {_UNKNOWN}"""

KNOWN_NOW = """
UPDATE event_inbox SET state = 'parked', attempts = 0, next_try_at = :as_of, changed_at = :as_of
WHERE clinic_id = :clinic AND state = 'unknown' AND type = ANY(:types)"""

OPEN = """
SELECT i.type, count(*) AS events, bool_or(t.asked_at = :as_of AND t.clinic_id = :clinic) AS new
FROM event_inbox i JOIN event_type t USING (type)
WHERE i.clinic_id = :clinic AND i.state = 'unknown' GROUP BY i.type ORDER BY i.type"""


@dataclass(frozen=True, slots=True)
class Question:
    """A type of events that somebody has to decide about, or has."""

    type: str
    asked_at: datetime
    events: int
    """That are kept of it, of all clinics."""
    ignored_by: str | None


def questions(connection: sa.Connection) -> list[Question]:
    """Every type that was not known when it came, the open ones first."""
    found = connection.execute(
        sa.text("""
            SELECT t.type, t.asked_at, count(i.event_id) AS events, t.ignored_by
            FROM event_type t LEFT JOIN event_inbox i ON i.type = t.type AND i.state = 'unknown'
            GROUP BY t.type ORDER BY t.ignored_at IS NOT NULL, t.asked_at, t.type""")
    )
    return [Question(*row) for row in found]


def ignore(connection: sa.Connection, name: str, *, actor: str, reason: str, as_of: datetime) -> int:
    """Let events of the type have no effect, those that are kept and those to come; returns how many were kept.

    Raises:
        PermanentError: nobody asks about such a type.
    """
    values = {"type": name, "actor": actor, "reason": reason, "as_of": as_of}
    done = connection.execute(
        sa.text("""UPDATE event_type SET ignored_at = :as_of, ignored_by = :actor, reason = :reason
                   WHERE type = :type AND ignored_at IS NULL"""),
        values,
    )
    if not done.rowcount:
        raise PermanentError("event_type_not_asked", type=name)
    kept = connection.execute(
        sa.text("""UPDATE event_inbox SET state = 'skipped', reason = 'type_ignored', payload = NULL,
                                          changed_at = :as_of
                   WHERE state = 'unknown' AND type = :type"""),
        values,
    ).rowcount
    detail = {"type": name, "events": kept, "reason": reason}
    audit.append(connection, as_of=as_of, actor=actor, action="event_type", service="sync_events", detail=detail)
    return kept


def ask_again(connection: sa.Connection, name: str, *, actor: str, reason: str, as_of: datetime) -> None:
    """Take that verdict back for the events to come; what was let go stays so.

    Raises:
        PermanentError: the type is not ignored.
    """
    done = connection.execute(
        sa.text("""UPDATE event_type SET ignored_at = NULL, ignored_by = NULL, reason = NULL
                   WHERE type = :type AND ignored_at IS NOT NULL"""),
        {"type": name},
    )
    if not done.rowcount:
        raise PermanentError("event_type_not_ignored", type=name)
    detail = {"type": name, "reason": reason}
    audit.append(connection, as_of=as_of, actor=actor, action="event_type_again", service="sync_events", detail=detail)
