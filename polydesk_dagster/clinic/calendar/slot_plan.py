"""Slot generation as a plan: its rows, the guard over them, and what applying and taking back does besides.

A plan holds the slots of one clinic that have to change, or those of one agenda that a person must look at first.
"""

from __future__ import annotations

from polydesk_dagster.changes.kind import Guard, Kind
from polydesk_dagster.clinic.calendar.agendas import RETIREMENT_GUARD, TAKEN_BACK_GUARD
from polydesk_dagster.clinic.calendar.comparison import MAX_RETIRED_SHARE, due, taken
from polydesk_dagster.clinic.calendar.orphans import LIST, lost

SERVICE = "generate_slots"

ROWS = """
    SELECT action, CAST(NULL AS text) AS finding,
           CASE WHEN state IN ('orphan', 'retired') THEN 'slot_' || cause
                WHEN cause IS NOT NULL THEN 'slot_produced_again' END AS reason,
           id, agenda_id, starts_at, local_date, ends_at, capacity, state, cause, closure_id, {repeats} AS repeats
    FROM slot_change WHERE {where}
"""

DUE_ROWS = ROWS.format(where=due(), repeats="false")

HELD_ROWS = ROWS.format(
    where=f"agenda_id = :agenda AND NOT {due()}",
    repeats=f"(SELECT a.problem = '{TAKEN_BACK_GUARD}' FROM working_agenda a WHERE a.id = :agenda)",
)

_LOCK = (
    """SELECT count(*) FROM (SELECT a.id FROM agenda a WHERE a.id IN (SELECT r.agenda_id FROM {rows} r)
                             ORDER BY a.id FOR NO KEY UPDATE) locked""",
    """SELECT count(*) FROM (SELECT t.id FROM slot t WHERE t.id IN (SELECT r.id FROM {rows} r WHERE action <> 'create')
                             ORDER BY t.id FOR UPDATE) locked""",
)

# Of the slots that lose places: the seats of expired holds go, and taken seats beyond the last place move to free ones.
_LOWERED = "FROM {rows} r WHERE r.action = 'update' AND r.capacity < r.was_capacity"

SEATS = (
    f"""DELETE FROM seat t WHERE t.held_until <= :as_of AND t.slot_id IN (SELECT r.id {_LOWERED})""",
    f"""
    UPDATE seat t SET unit = free.unit
    FROM (SELECT s.slot_id, s.unit, row_number() OVER (PARTITION BY s.slot_id ORDER BY s.unit) AS n
          FROM seat s JOIN (SELECT r.id, r.capacity {_LOWERED}) r ON r.id = s.slot_id AND s.unit > r.capacity) beyond
    JOIN (SELECT r.id AS slot_id, u.unit, row_number() OVER (PARTITION BY r.id ORDER BY u.unit) AS n
          FROM (SELECT r.id, r.capacity {_LOWERED}) r
          CROSS JOIN LATERAL (SELECT CAST(generate_series(1, r.capacity) AS smallint) AS unit) u
          WHERE NOT EXISTS (SELECT FROM seat s WHERE s.slot_id = r.id AND s.unit = u.unit)) free USING (slot_id, n)
    WHERE t.slot_id = beyond.slot_id AND t.unit = beyond.unit""",
)

AFTER = (*SEATS, LIST)
"""What follows from applied rows ``{rows}`` that change slots, whoever applies them."""

_STATE = """
    UPDATE agenda_state g
    SET outcome = 'ok', reason_code = NULL,
        generated_through = (SELECT max(s.local_date) FROM slot s WHERE s.agenda_id = g.agenda_id AND s.state = 'free')
    WHERE g.outcome = 'refused' AND g.agenda_id IN (SELECT r.agenda_id FROM {rows} r)
"""

SLOT = Kind(
    name="slot",
    whole=True,
    table="slot",
    key="""(SELECT a.name || ' ' || to_char(r.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI')
            FROM agenda a JOIN clinic c ON c.id = a.clinic_id WHERE a.id = r.agenda_id)""",
    fixed=("agenda_id", "starts_at", "local_date"),
    owned=("ends_at", "capacity", "state"),
    kept=("manual",),
    carried={"cause": "text", "closure_id": "bigint", "repeats": "boolean"},
    taken="t.agenda_id = r.agenda_id AND t.starts_at = r.starts_at",
    sole="slot_agenda_id_starts_at_key",
    barred=f"""CASE WHEN r.action = 'create' THEN NULL
                    WHEN {taken("t")} > CASE WHEN r.state = 'retired' OR r.action = 'delete' THEN 0 ELSE r.capacity END
                         OR r.state <> 'orphan' AND r.ends_at <> t.ends_at AND {taken("t")} > 0
                    THEN 'slot_is_taken' END""",
    held="CASE WHEN t.starts_at <= :as_of THEN 'slot_has_passed' END",
    together="r.agenda_id || '/' || r.local_date",
    guards=(
        Guard(
            RETIREMENT_GUARD,
            """SELECT max(CAST(l.leaving AS numeric) / greatest(1, (
                          SELECT count(*) FROM slot s
                          WHERE s.agenda_id = l.agenda_id AND s.starts_at > :as_of AND s.state = 'free')))
               FROM (SELECT r.agenda_id, count(*) AS leaving FROM {rows} r
                     WHERE r.action = 'retire' AND r.cause = 'rule_changed' AND r.was_state = 'free'
                     GROUP BY r.agenda_id) l""",
            MAX_RETIRED_SHARE,
        ),
        Guard(TAKEN_BACK_GUARD, "SELECT count(*) FROM {rows} r WHERE r.repeats", 0, noun="rows"),
    ),
    before=_LOCK,
    after_updates=AFTER,
    after=(_STATE,),
    undo_before=_LOCK,
    undo_after=AFTER,
    effect=lost,
)
