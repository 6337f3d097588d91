"""How far a clinic's events were read: the cursor, the numbers that are missing, and why the feed is stopped."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Cursor:
    clinic_id: int
    code: str
    sequence: int
    stopped: str | None
    down_since: datetime | None
    anchor: str | None
    """The event on which it stands."""
    history: str | None
    """What the source called its history then."""
    after: int
    """The number after which to read; see ``AFTER``."""
    waits: bool
    """Whether an event that has come before waits for anything."""


AFTER = """least(e.sequence - CAST(e.anchor IS NOT NULL AS integer),
             (SELECT min(lower(span)) - 1 FROM event_gap g WHERE g.clinic_id = e.clinic_id AND g.lost_at IS NULL))"""
"""SQL over a cursor ``e``: after which number to read. Before the oldest open gap, and before the event on which it
stands, which is seen again."""


def load(connection: sa.Connection, clinic: str, source: str) -> Cursor:
    """Where ``source`` was read to; a cursor that belonged to none yet is its from now on, and nobody else's to move
    before the end of the transaction.

    Raises:
        PermanentError: there is no such clinic, or the cursor is of another source.
    """
    row = connection.execute(
        sa.text(f"""
            INSERT INTO event_cursor AS e (clinic_id, source) SELECT id, :source FROM clinic WHERE code = :clinic
            ON CONFLICT (clinic_id) DO UPDATE SET source = coalesce(e.source, excluded.source)
            RETURNING e.clinic_id, e.sequence, e.stopped_reason, e.down_since, CAST(e.anchor AS text), e.history,
                      {AFTER} AS after,
                      EXISTS (SELECT FROM event_inbox i
                              WHERE i.clinic_id = e.clinic_id AND i.state IN ('parked', 'waiting', 'dead'))
                      OR EXISTS (SELECT FROM event_inbox i
                                 WHERE i.clinic_id = e.clinic_id AND i.state = 'unknown') AS waits, e.source"""),
        {"clinic": clinic, "source": source},
    ).one_or_none()
    if row is None:
        raise PermanentError("clinic_missing", clinic=clinic)
    if row.source != source:
        raise PermanentError("source_changed", clinic=clinic)
    return Cursor(row.clinic_id, clinic, *row[1:8])


_NEIGHBOURS = """
FROM event_cursor o JOIN clinic c ON c.id = o.clinic_id JOIN integration i ON i.clinic_id = c.id
WHERE o.source = e.source AND o.clinic_id <> e.clinic_id AND c.active AND i.active"""

# Clinics at the same address that were there before, each with the event on which its cursor stands.
_RIVALS = f"""{_NEIGHBOURS} AND o.anchor IS NOT NULL
  AND (coalesce(o.answered_at, 'infinity'), o.clinic_id) < (coalesce(e.answered_at, 'infinity'), e.clinic_id)"""

# Whoever reads the same news stands near their last number; of a thousand at one address few are asked about.
NEAREST = f"""
SELECT near.* FROM event_cursor e, LATERAL (
    SELECT c.code, o.sequence, CAST(o.anchor AS text) AS anchor {_RIVALS}
    ORDER BY abs(o.sequence - :last), o.clinic_id LIMIT 3) near
WHERE e.clinic_id = :clinic"""

# Who of them, if anybody, stands on one of the events that came.
LOCK = f"""
SELECT (SELECT min(c.code) {_RIVALS} AND o.anchor = ANY(CAST(:ids AS uuid[])))
FROM event_cursor e WHERE clinic_id = :clinic FOR UPDATE"""

# The same at a first meeting, where whoever has taken in one of the oldest of them was there before, wherever that one
# stands by now. A lock on the address comes before it: of two that meet it at once the second sees what the first took.
MEET = f"""
SELECT coalesce(
    (SELECT min(c.code) {_RIVALS} AND o.anchor = ANY(CAST(:ids AS uuid[]))),
    (SELECT min(c.code) {_NEIGHBOURS}
     AND EXISTS (SELECT FROM event_inbox WHERE clinic_id = o.clinic_id AND event_id = ANY(CAST(:oldest AS uuid[])))
     AND NOT EXISTS (SELECT FROM event_inbox
                     WHERE clinic_id = e.clinic_id AND event_id = ANY(CAST(:oldest AS uuid[])))))
FROM event_cursor e WHERE clinic_id = :clinic FOR UPDATE"""

# What of open gaps has come is taken out of them; what lies between the cursor and the page's last number and did not
# come is a gap from now on.
MOVE = """
WITH seen AS (SELECT range_agg(int8range(s, s, '[]')) AS numbers FROM unnest(CAST(:sequences AS bigint[])) s),
filled AS (DELETE FROM event_gap g USING seen
           WHERE g.clinic_id = :clinic AND g.lost_at IS NULL AND g.span && seen.numbers RETURNING g.span, g.noticed_at),
open AS (
    SELECT left_over AS span, f.noticed_at FROM filled f, seen, unnest(int8multirange(f.span) - seen.numbers) left_over
    UNION ALL
    SELECT missing, CAST(:as_of AS timestamptz)
    FROM event_cursor e, seen, unnest(int8multirange(int8range(
             CASE WHEN e.sequence = 0 AND lower(numbers) > :far THEN lower(numbers) ELSE e.sequence + 1 END,
             greatest(e.sequence, :highest) + 1)) - numbers) missing
    WHERE e.clinic_id = :clinic),
noted AS (INSERT INTO event_gap (clinic_id, span, noticed_at) SELECT :clinic, span, noticed_at FROM open)
UPDATE event_cursor SET anchor = CASE WHEN :highest > sequence THEN CAST(:anchor AS uuid) ELSE anchor END,
                        sequence = greatest(sequence, :highest), read_at = :as_of, failures = 0, quiet_until = NULL,
                        down_since = NULL, down_reason = NULL, history = coalesce(:history, history)
WHERE clinic_id = :clinic"""

LOSE_GAPS = """
UPDATE event_gap SET lost_at = :as_of
WHERE clinic_id = :clinic AND lost_at IS NULL
  AND (noticed_at <= CAST(:as_of AS timestamptz) - CAST(:patience AS interval) AND upper(span) <= :through + 1
       OR lower(span) < :below)"""


STOP = "UPDATE event_cursor SET stopped_at = :as_of, stopped_reason = :reason WHERE clinic_id = :clinic"

GO_ON = """
UPDATE event_cursor SET sequence = :sequence, anchor = NULL, history = NULL, stopped_at = NULL, stopped_reason = NULL
WHERE clinic_id = :clinic"""

LOST = """
INSERT INTO event_gap (clinic_id, span, noticed_at, lost_at)
SELECT :clinic, int8range(:first, :last, '[]'), :as_of, :as_of"""

# Numbers that start again say nothing about what came before them.
FORGET_NUMBERS = """
WITH states AS (DELETE FROM event_state WHERE clinic_id = :clinic),
gaps AS (UPDATE event_gap SET lost_at = :as_of WHERE clinic_id = :clinic AND lost_at IS NULL)
UPDATE event_inbox SET state = 'superseded', reason = 'before_restoration', payload = NULL,
                       next_try_at = NULL, changed_at = :as_of
WHERE clinic_id = :clinic AND state IN ('parked', 'waiting', 'dead')"""


def stopped(connection: sa.Connection) -> dict[str, str]:
    """Why the feed of a clinic (code) is stopped, for those that are."""
    query = "SELECT clinic_id, stopped_reason AS value FROM event_cursor WHERE stopped_at IS NOT NULL"
    return by_clinic(connection, query)


def lost(connection: sa.Connection, as_of: datetime) -> dict[str, int]:
    """How many sequence numbers each clinic (code) lost in the week before ``as_of``."""
    return by_clinic(
        connection,
        """SELECT clinic_id, CAST(sum(upper(span) - lower(span)) AS bigint) AS value FROM event_gap
           WHERE lost_at > CAST(:as_of AS timestamptz) - interval '7 days' GROUP BY 1""",
        as_of=as_of,
    )


def by_clinic(connection: sa.Connection, query: str, **parameters: object) -> dict[str, Any]:
    joined = f"SELECT c.code, q.value FROM ({query}) q JOIN clinic c ON c.id = q.clinic_id ORDER BY c.code"
    return {row.code: row.value for row in connection.execute(sa.text(joined), parameters)}
