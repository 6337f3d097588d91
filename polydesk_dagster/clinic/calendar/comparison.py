"""The days that changed, slot by slot: what the rules no longer produce, what they produce anew, what they alter.

A slot with a booking or a live hold is never changed, and one that was added by hand is left alone.
"""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import RETIREMENT_GUARD, Clinic
from polydesk_dagster.clinic.calendar.expansion import WANTED
from polydesk_dagster.outcome import Reason

MAX_RETIRED_SHARE = 0.20
"""Of an agenda's free slots that lie ahead, the share that one run may retire without an explanation (a closure, an
agenda that ended)."""

# Locked before anything is decided, so that a hold placed meanwhile is seen: whoever books locks the slot too.
LOCK_PRESENT = """
    SELECT count(*) FROM (
        SELECT s.id FROM slot s JOIN changed_cell c ON c.agenda_id = s.agenda_id AND c.local_date = s.local_date
        WHERE s.starts_at > :as_of ORDER BY s.id FOR UPDATE OF s) locked
"""

TAKEN = """EXISTS (SELECT FROM seat t WHERE t.slot_id = s.id
                   AND (t.appointment_id IS NOT NULL OR t.held_until > :as_of))"""
"""Whether slot ``s`` has a booking or a live hold."""

PRESENT = f"""
    CREATE TEMP TABLE present_slot ON COMMIT DROP AS
    SELECT s.id, s.agenda_id, s.starts_at, s.ends_at, s.local_date, s.capacity, s.state,
           s.manual OR {TAKEN} AS fixed, s.manual
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
          AND s.state <> 'retired' AND (s.manual OR {TAKEN}))
"""

LEAVING = """
    FROM present_slot p
    LEFT JOIN wanted_slot w ON w.agenda_id = p.agenda_id AND w.starts_at = p.starts_at
    JOIN working_agenda a ON a.id = p.agenda_id
    LEFT JOIN closed_hours h ON h.agenda_id = p.agenda_id
    WHERE w.agenda_id IS NULL AND p.state <> 'retired' AND NOT p.manual
"""
"""Present slots that the rules no longer produce."""

CAUSE = """
    CASE WHEN h.closed && tsrange(p.starts_at AT TIME ZONE :time_zone, p.ends_at AT TIME ZONE :time_zone)
         THEN 'closure'
         WHEN NOT a.running OR NOT p.local_date <@ a.validity THEN 'agenda_ended'
         ELSE 'rule_changed' END
"""


def compare(connection: sa.Connection, values: dict[str, object]) -> None:
    connection.execute(sa.text(LOCK_PRESENT), values)
    for statement in (PRESENT, "ANALYZE present_slot", WANTED_SLOTS, "ANALYZE wanted_slot"):
        connection.execute(sa.text(statement), values)


# Compared with all free slots that the agenda still has ahead, not only with those of the days in question.
GUARD = f"""
    SELECT a.id, a.name, g.leaving, g.ahead
    FROM (
        SELECT l.agenda_id, l.leaving, l.staying,
               (SELECT count(*) FROM slot s
                WHERE s.agenda_id = l.agenda_id AND s.starts_at > :as_of AND s.state = 'free') AS ahead
        FROM (SELECT p.agenda_id, count(*) FILTER (WHERE {CAUSE} = 'rule_changed') AS leaving,
                     (SELECT count(*) FROM wanted_slot w WHERE w.agenda_id = p.agenda_id) AS staying
              {LEAVING} AND NOT p.fixed GROUP BY p.agenda_id) l
        WHERE l.leaving > 0
    ) g JOIN working_agenda a ON a.id = g.agenda_id
    WHERE g.leaving > :share * g.ahead OR (g.staying = 0 AND g.leaving = g.ahead)
    ORDER BY a.name
"""


def hold_back_retirements(
    connection: sa.Connection,
    clinic: Clinic,
    values: dict[str, object],
    past_guard: str | None,
    reasons: list[Reason],
) -> int:
    held = connection.execute(sa.text(GUARD), {**values, "share": MAX_RETIRED_SHARE}).all()
    for agenda_id, name, leaving, ahead in held:
        if past_guard == RETIREMENT_GUARD:
            words = "ritirati lo stesso, come chiesto"
        else:
            words = (
                "troppi per farlo da soli: l'agenda resta com'è. Guarda l'anteprima e, se è giusto, ripeti con "
                f"--past-guard {RETIREMENT_GUARD}"
            )
        reasons.append(
            Reason(
                RETIREMENT_GUARD,
                f"Agenda «{name}» ({agenda_id}): i turni non producono più {leaving} dei suoi {ahead} orari liberi; "
                f"{words}.",
                clinic.code,
            )
        )
    if not held or past_guard == RETIREMENT_GUARD:
        return 0
    agendas = [row[0] for row in held]
    for table in ("present_slot", "wanted_slot"):
        connection.execute(sa.text(f"DELETE FROM {table} WHERE agenda_id = ANY(:agendas)"), {"agendas": agendas})
    connection.execute(
        sa.text("UPDATE working_agenda SET problem = :guard WHERE id = ANY(:agendas)"),
        {"guard": RETIREMENT_GUARD, "agendas": agendas},
    )
    return len(held)


# An orphan whose booking has gone is retired like any other slot, and its row is settled.
RETIRE = f"""
    WITH gone AS (
        SELECT p.id {LEAVING} AND NOT p.fixed
    ), settled AS (
        UPDATE orphan SET state = 'resolved', resolved_at = :as_of FROM gone
        WHERE orphan.slot_id = gone.id AND orphan.resolved_at IS NULL
    )
    UPDATE slot SET state = 'retired' FROM gone WHERE slot.id = gone.id
"""

UPDATE = """
    UPDATE slot SET ends_at = w.ends_at, capacity = w.capacity, state = 'free'
    FROM present_slot p JOIN wanted_slot w USING (agenda_id, starts_at)
    WHERE slot.id = p.id AND NOT p.fixed
      AND (p.ends_at, p.capacity, p.state) IS DISTINCT FROM (w.ends_at, w.capacity, 'free')
"""

INSERT_WANTED = """
    INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT w.agenda_id, w.starts_at, w.ends_at, w.local_date, w.capacity
    FROM wanted_slot w
    WHERE NOT EXISTS (SELECT FROM present_slot p WHERE p.agenda_id = w.agenda_id AND p.starts_at = w.starts_at)
"""

# Retired slots that the rules produce again: they count as updated but were not there before.
COUNT_REVIVED = """
    SELECT count(*) FROM present_slot p JOIN wanted_slot w USING (agenda_id, starts_at)
    WHERE p.state = 'retired' AND NOT p.fixed
"""
