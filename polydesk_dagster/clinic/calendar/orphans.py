"""Booked or held slots that the rules no longer produce: marked for the desk with their cause, and settled when the
rules produce them again."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import Clinic
from polydesk_dagster.clinic.calendar.comparison import CAUSE, LEAVING
from polydesk_dagster.clinic.calendar.effective import CLOSURE_IN_FORCE, LAYERS, REACHES
from polydesk_dagster.outcome import Table

SHOWN_ORPHANS = 50

NEW_ORPHANS = f"""
    WITH gone AS (
        SELECT p.id, p.agenda_id, p.starts_at, p.ends_at, {CAUSE} AS cause {LEAVING} AND p.fixed AND p.state = 'free'
    ), marked AS (
        UPDATE slot SET state = 'orphan' FROM gone WHERE slot.id = gone.id RETURNING slot.id
    )
    INSERT INTO orphan (slot_id, cause, closure_id, detected_at)
    SELECT gone.id, gone.cause,
           CASE WHEN gone.cause = 'closure' THEN (
               SELECT c.id FROM agenda a JOIN clinic k ON k.id = a.clinic_id
               JOIN ({CLOSURE_IN_FORCE}) c ON {REACHES}
               WHERE a.id = gone.agenda_id AND c.effect = 'closed'
                 AND c.hours && tsrange(gone.starts_at AT TIME ZONE :time_zone, gone.ends_at AT TIME ZONE :time_zone)
               ORDER BY array_position(CAST(:layers AS text[]), c.layer) DESC, c.id LIMIT 1) END,
           :as_of
    FROM gone JOIN marked ON marked.id = gone.id
    ON CONFLICT (slot_id) WHERE resolved_at IS NULL DO NOTHING
"""

# Produced by the rules again (a closure was lifted, a turn came back): nothing is left for the desk to do.
ADOPTED = """
    WITH back AS (
        UPDATE slot SET state = 'free' FROM present_slot p JOIN wanted_slot w USING (agenda_id, starts_at)
        WHERE slot.id = p.id AND p.fixed AND p.state = 'orphan' RETURNING slot.id
    ), closed AS (
        UPDATE orphan SET state = 'resolved', resolved_at = :as_of FROM back
        WHERE orphan.slot_id = back.id AND orphan.resolved_at IS NULL
    )
    SELECT count(*) FROM back
"""


def orphans(connection: sa.Connection, values: dict[str, object]) -> tuple[int, int]:
    orphaned = connection.execute(sa.text(NEW_ORPHANS), {**values, "layers": list(LAYERS)}).rowcount
    adopted = int(connection.scalar(sa.text(ADOPTED), values) or 0)
    return orphaned, adopted


def orphan_tables(connection: sa.Connection, clinic: Clinic) -> tuple[Table, ...]:
    rows = connection.execute(
        sa.text("""
            SELECT c.code, a.name, to_char(s.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI'), o.cause, k.name,
                   count(*) OVER ()
            FROM orphan o JOIN slot s ON s.id = o.slot_id JOIN agenda a ON a.id = s.agenda_id
            JOIN clinic c ON c.id = a.clinic_id LEFT JOIN closure k ON k.id = o.closure_id
            WHERE c.id = :clinic AND o.state = 'open' ORDER BY s.starts_at, s.id LIMIT :shown"""),
        {"clinic": clinic.id, "shown": SHOWN_ORPHANS},
    ).all()
    words = {"closure": "chiusura", "rule_changed": "turno cambiato", "agenda_ended": "agenda terminata"}
    cells = tuple((code, name, when, words[cause], closure) for code, name, when, cause, closure, _ in rows)
    total = rows[0][5] if rows else 0
    columns = ("Clinica", "Agenda", "Quando", "Perché", "Chiusura")
    return (Table("Prenotazioni da ricollocare", columns, cells, total),)
