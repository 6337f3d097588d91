"""The days that changed, slot by slot: the smallest change that brings about what the rules produce.

Everything is decided here, in one table, before anything is written. A slot with a booking or a live hold keeps its
hours; its capacity follows the rules down to the seats taken. What was added by hand is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows, plans
from polydesk_dagster.clinic.calendar.agendas import HOLDING, RETIREMENT_GUARD, TAKEN_BACK_GUARD
from polydesk_dagster.clinic.calendar.effective import CLOSURE_IN_FORCE, LAYERS, REACHES, slot_span
from polydesk_dagster.clinic.calendar.expansion import WANTED

MAX_RETIRED_SHARE = 0.20
"""Of an agenda's free slots that lie ahead, the share that may be retired without an explanation (a closure, an agenda
that ended) before a person has looked."""

# Locked before anything is decided, so that a hold placed meanwhile is seen: whoever books locks the slot too.
LOCK_PRESENT = """
    SELECT count(*) FROM (
        SELECT s.id FROM slot s JOIN changed_cell c ON c.agenda_id = s.agenda_id AND c.local_date = s.local_date
        WHERE s.starts_at > :as_of ORDER BY s.id FOR UPDATE OF s) locked
"""


def taken(alias: str) -> str:
    """SQL: how many seats of a slot have a booking or a live hold."""
    return f"""(SELECT count(*) FROM seat WHERE seat.slot_id = {alias}.id
                AND coalesce(seat.held_until > :as_of, true))"""


PRESENT = f"""
    CREATE TEMP TABLE present_slot ON COMMIT DROP AS
    SELECT s.id, s.agenda_id, s.starts_at, s.ends_at, s.local_date, s.capacity, s.state, s.manual,
           CAST({taken("s")} AS smallint) AS taken
    FROM slot s JOIN changed_cell c ON c.agenda_id = s.agenda_id AND c.local_date = s.local_date
    WHERE s.starts_at > :as_of
"""

# What is booked or was added by hand stays where it is: the rules' slots that would overlap it are left out. Slots of
# the neighbouring days count too, where they reach over midnight.
WANTED_SLOTS = f"""
    CREATE TEMP TABLE wanted_slot ON COMMIT DROP AS
    SELECT w.* FROM ({WANTED.format(cells="changed_cell")}) w
    WHERE NOT EXISTS (
        SELECT FROM slot s
        WHERE s.agenda_id = w.agenda_id AND s.starts_at <> w.starts_at
          AND s.starts_at < w.ends_at AND s.starts_at > w.starts_at - interval '8 hours' AND s.ends_at > w.starts_at
          AND s.state <> 'retired' AND (s.manual OR {taken("s")} > 0))
"""

# Every slot of the changed days beside what it shall be; of an orphan that ends, the cause it had.
CHANGES = f"""
    INSERT INTO slot_change
    SELECT CASE WHEN x.state = 'retired' THEN 'retire' ELSE 'update' END, p.id, agenda_id, starts_at, p.local_date,
           x.ends_at, x.capacity, x.state, p.state, p.capacity,
           CASE WHEN x.state = 'orphan' OR x.state = 'retired' THEN y.cause ELSE o.cause END,
           CASE WHEN x.state = 'orphan' AND y.cause = 'closure' THEN (
                    SELECT c.id FROM agenda a JOIN clinic k ON k.id = a.clinic_id
                    JOIN ({CLOSURE_IN_FORCE}) c ON {REACHES}
                    WHERE a.id = p.agenda_id AND c.effect = 'closed' AND c.hours && {slot_span("p")}
                    ORDER BY array_position(CAST(:layers AS text[]), c.layer) DESC, c.id LIMIT 1)
                ELSE o.closure_id END
    FROM present_slot p
    LEFT JOIN wanted_slot w USING (agenda_id, starts_at)
    JOIN working_agenda g ON g.id = agenda_id
    LEFT JOIN closed_hours h USING (agenda_id)
    LEFT JOIN orphan o ON o.slot_id = p.id AND o.resolved_at IS NULL
    CROSS JOIN LATERAL (
        SELECT CASE WHEN w.capacity IS NULL OR p.taken > 0 THEN p.ends_at ELSE w.ends_at END AS ends_at,
               CASE WHEN w.capacity IS NULL THEN greatest(p.capacity, p.taken)
                    ELSE greatest(w.capacity, p.taken) END AS capacity,
               CASE WHEN w.capacity IS NULL AND p.taken = 0 THEN 'retired'
                    WHEN w.capacity IS NULL OR p.taken > w.capacity THEN 'orphan' ELSE 'free' END AS state) x
    CROSS JOIN LATERAL (
        SELECT CASE WHEN w.capacity IS NOT NULL THEN 'over_capacity'
                    WHEN h.closed && {slot_span("p")} THEN 'closure'
                    WHEN NOT g.running OR NOT p.local_date <@ g.validity THEN 'agenda_ended'
                    ELSE 'rule_changed' END AS cause) y
    WHERE NOT p.manual AND (p.ends_at, p.capacity, p.state) IS DISTINCT FROM (x.ends_at, x.capacity, x.state)
"""

# A booking of several slots is an orphan as a whole: where one of them is, so are the others, unless somebody else has
# a seat there as well or it was added by hand. They are marked, and settled, together.
_LOST_TOGETHER = """
    CREATE TEMP TABLE lost_together ON COMMIT DROP AS
    SELECT DISTINCT ON (p.id) p.*, coalesce(c.cause, o.cause) AS cause,
           coalesce(c.closure_id, o.closure_id) AS closure_id
    FROM present_slot l LEFT JOIN slot_change c ON c.id = l.id
    LEFT JOIN orphan o ON o.slot_id = l.id AND o.resolved_at IS NULL
    JOIN seat t ON t.slot_id = l.id
    JOIN seat other ON other.slot_id <> l.id AND (other.appointment_id = t.appointment_id OR other.hold_id = t.hold_id)
    JOIN present_slot p ON p.id = other.slot_id AND NOT p.manual
    LEFT JOIN slot_change own ON own.id = p.id
    WHERE coalesce(c.state, l.state) = 'orphan' AND coalesce(own.state, p.state) = 'free'
      AND NOT EXISTS (SELECT FROM seat x
                      WHERE x.slot_id = p.id AND coalesce(x.held_until > :as_of, true)
                        AND (x.appointment_id, x.hold_id) IS DISTINCT FROM (other.appointment_id, other.hold_id))
    ORDER BY p.id, l.starts_at
"""
ANY_LOST = """
    SELECT EXISTS (SELECT FROM slot_change WHERE state = 'orphan')
        OR EXISTS (SELECT FROM present_slot WHERE state = 'orphan')
"""
TOGETHER = (
    _LOST_TOGETHER,
    """UPDATE slot_change c SET state = 'orphan', cause = l.cause, closure_id = l.closure_id
       FROM lost_together l WHERE c.id = l.id""",
    """INSERT INTO slot_change
       SELECT 'update', l.id, l.agenda_id, l.starts_at, l.local_date, l.ends_at, l.capacity, 'orphan', l.state,
              l.capacity, l.cause, l.closure_id
       FROM lost_together l WHERE NOT EXISTS (SELECT FROM slot_change c WHERE c.id = l.id)""",
    """DELETE FROM slot_change c USING lost_together l
       WHERE c.id = l.id AND (c.ends_at, c.capacity, c.state) = (l.ends_at, l.capacity, l.state)""",
)

NEW_SLOTS = """
    INSERT INTO slot_change (action, agenda_id, starts_at, local_date, ends_at, capacity, state)
    SELECT 'create', w.agenda_id, w.starts_at, w.local_date, w.ends_at, w.capacity, 'free'
    FROM wanted_slot w
    WHERE NOT EXISTS (SELECT FROM present_slot p WHERE p.agenda_id = w.agenda_id AND p.starts_at = w.starts_at)
"""

FRESH_SLOTS = f"""
    INSERT INTO slot_change (action, agenda_id, starts_at, local_date, ends_at, capacity, state)
    SELECT 'create', w.agenda_id, w.starts_at, w.local_date, w.ends_at, w.capacity, 'free'
    FROM ({WANTED.format(cells="fresh_cell")}) w
"""

SLOT_CHANGE = """
    CREATE TEMP TABLE slot_change (
        action text NOT NULL, id bigint, agenda_id bigint NOT NULL, starts_at timestamptz NOT NULL,
        local_date date NOT NULL, ends_at timestamptz NOT NULL, capacity smallint NOT NULL, state text NOT NULL,
        was_state text, was_capacity smallint, cause text, closure_id bigint) ON COMMIT DROP
"""

# Compared with all free slots that the agenda has ahead, not only with those of the days in question, and not with
# those that it would be given.
HELD = f"""
    UPDATE working_agenda a SET problem = '{RETIREMENT_GUARD}'
    FROM (SELECT agenda_id, count(*) AS leaving FROM slot_change
          WHERE action = 'retire' AND cause = 'rule_changed' AND was_state = 'free' GROUP BY agenda_id) l
    WHERE l.agenda_id = a.id AND a.problem IS NULL
      AND l.leaving > {MAX_RETIRED_SHARE} * (SELECT count(*) FROM slot s
                                             WHERE s.agenda_id = a.id AND s.starts_at > :as_of AND s.state = 'free')
"""


def due(alias: str = "slot_change") -> str:
    """SQL: a row of ``slot_change`` that nobody has to look at first. A held agenda's are not, but what is closed is
    closed."""
    return f"""({alias}.cause IS NOT DISTINCT FROM 'closure' AND {alias}.state IN ('orphan', 'retired')
                OR {alias}.agenda_id NOT IN (SELECT id FROM working_agenda WHERE problem IN {HOLDING}))"""


# The plans of the clinics that people took back lately.
TAKEN_BACK = f"""
    SELECT p.id AS plan, u.id AS undo, u.applied_at
    FROM plan u JOIN plan p ON p.id = u.undoes
    WHERE u.state = 'applied' AND u.applied_by LIKE 'desk:%' AND u.rows_kept AND p.rows_kept
      AND u.applied_at > now() - interval '{plans.REMEMBERED}' AND p.kind IN ('slot', 'turns')
      AND p.clinic_id = ANY(:clinic_ids)
    ORDER BY u.id
"""

# Agendas of which a row would be done again, unless somebody has looked since and applied it past the guard.
HELD_AS_TAKEN_BACK = f"""
    UPDATE working_agenda a SET problem = '{TAKEN_BACK_GUARD}'
    WHERE a.problem IS NULL
      AND a.id IN (SELECT c.agenda_id FROM slot_change c
                   JOIN {{plan}} p ON p.agenda_id = c.agenda_id AND p.starts_at = c.starts_at AND p.action = c.action
                       AND (p.ends_at, p.capacity, p.state) = (c.ends_at, c.capacity, c.state)
                   JOIN {{undo}} u ON u.id = p.id AND u.action <> 'conflict')
      AND NOT EXISTS (SELECT FROM plan n
                      WHERE n.kind IN ('slot', 'turns') AND n.scope = jsonb_build_object('agenda', a.id)
                        AND n.applied_at > :since AND '{TAKEN_BACK_GUARD}' = ANY(n.past_guards))
"""


def compare(connection: sa.Connection, values: Mapping[str, object], *, lock: bool) -> None:
    """Fill the table ``slot_change`` with all that must change, and mark the agendas that a person must look at.

    With ``lock`` the slots in question stay as they are seen until the transaction ends.
    """
    values = {**values, "layers": list(LAYERS)}
    connection.execute(sa.text(SLOT_CHANGE))
    found = connection.execute(sa.text(FRESH_SLOTS), values).rowcount
    changed = bool(connection.scalar(sa.text("SELECT EXISTS (SELECT FROM changed_cell)")))
    if changed:
        statements = (PRESENT, WANTED_SLOTS, "ANALYZE present_slot, wanted_slot", CHANGES)
        for statement in (LOCK_PRESENT, *statements) if lock else statements:
            connection.execute(sa.text(statement), values)
        for statement in TOGETHER if connection.scalar(sa.text(ANY_LOST)) else ():
            connection.execute(sa.text(statement), values)
        connection.execute(sa.text(NEW_SLOTS), values)
    if not found and not changed:
        return
    for row in connection.execute(sa.text(TAKEN_BACK), values).all():
        rows = {"plan": plan_rows.table(row.plan), "undo": plan_rows.table(row.undo)}
        connection.execute(sa.text(HELD_AS_TAKEN_BACK.format(**rows)), {"since": row.applied_at})
    if changed:
        connection.execute(sa.text(HELD), values)
