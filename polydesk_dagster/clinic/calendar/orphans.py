"""Booked or held slots that the rules no longer produce: listed for the desk with their cause.

That an unresolved orphan stands exactly where its slot is one is held by the schema, which also settles it when the
slot is one no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import Clinic
from polydesk_dagster.outcome import SHOWN_ROWS, Counts, Outcome, Reason, Report, Table
from polydesk_dagster.values import Instant, Named, Term

LIST = """
    INSERT INTO orphan (slot_id, cause, closure_id, detected_at)
    SELECT r.id, coalesce(r.cause, 'rule_changed'), (SELECT c.id FROM closure c WHERE c.id = r.closure_id), :as_of
    FROM {rows} r
    WHERE r.action = 'update' AND r.state = 'orphan'
      AND NOT EXISTS (SELECT FROM orphan o WHERE o.slot_id = r.id AND o.resolved_at IS NULL)
"""
"""Lists the slots that the applied rows ``{rows}`` have made orphans."""


# One row of work: a booking, however many slots it has lost, or a slot that only a hold keeps.
WORK = "coalesce(t.appointment_id, -s.id)"
SEATED = "LEFT JOIN seat t ON t.slot_id = s.id AND t.appointment_id IS NOT NULL"

SAID = "said_of(o, t.appointment_id)"
"""SQL: how far the desk is with the booking of the seat ``t`` on the orphan ``o``; a slot may have several."""

IN_USE = """EXISTS (SELECT FROM seat n WHERE n.slot_id = s.id AND coalesce(n.held_until > :as_of, true))"""
"""SQL: somebody still has a seat of the slot ``s``; where all have gone elsewhere, generation takes it away."""

_LOST = f"""
    SELECT count(DISTINCT {WORK}) FROM {{rows}} r JOIN slot s ON s.id = r.id {SEATED}
    WHERE r.action = 'update' AND r.state = 'orphan' AND r.was_state <> 'orphan'"""


def lost(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:  # noqa: ARG001 - an effect of a kind
    """Whom the applied ``rows`` have left without a slot, for the desk; None where they have left nobody."""
    count = int(connection.scalar(sa.text(_LOST.format(rows=rows))) or 0)
    if not count:
        return None
    return Report(Outcome.PARTIAL, Counts(waiting=count), (Reason("bookings_lost_slot", count=count),))


def orphan_tables(connection: sa.Connection, clinics: Sequence[Clinic]) -> tuple[Table, ...]:
    """The clinics' open orphans, a row for each booking, soonest first; none where there are none."""
    rows = connection.execute(
        sa.text(f"""
            SELECT w.*, count(*) OVER () AS total
            FROM (SELECT DISTINCT ON ({WORK}) c.code, c.time_zone, a.id, a.name, s.starts_at, o.cause,
                         k.name AS closure, s.id AS slot
                  FROM orphan o JOIN slot s ON s.id = o.slot_id {SEATED} JOIN agenda a ON a.id = s.agenda_id
                  JOIN clinic c ON c.id = a.clinic_id LEFT JOIN closure k ON k.id = o.closure_id
                  WHERE c.id = ANY(:clinics) AND o.resolved_at IS NULL AND {SAID} = 'open'
                  ORDER BY {WORK}, s.starts_at) w
            ORDER BY w.starts_at, w.slot LIMIT :shown"""),
        {"clinics": [clinic.id for clinic in clinics], "shown": SHOWN_ROWS},
    ).all()
    if not rows:
        return ()
    cells = tuple(
        (
            row.code,
            Named(str(row.id), row.name),
            Instant(row.starts_at, row.time_zone),
            Term("orphan_cause", row.cause),
            row.closure,
        )
        for row in rows
    )
    return (Table("open_orphans", ("clinic", "agenda", "when", "cause", "closure"), cells, rows[0].total),)
