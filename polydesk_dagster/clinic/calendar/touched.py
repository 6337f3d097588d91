"""The agenda-days that a change of closures touches, and their slots derived again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from itertools import groupby
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import Clinic
from polydesk_dagster.clinic.calendar.comparison import due
from polydesk_dagster.clinic.calendar.deciding import (
    agenda_refused,
    decide,
    in_parts,
    serialise,
    unknown_zone,
    values_of,
)
from polydesk_dagster.clinic.calendar.effective import REACHES
from polydesk_dagster.clinic.calendar.orphans import orphan_tables
from polydesk_dagster.clinic.calendar.slot_plan import AFTER
from polydesk_dagster.outcome import Counts, Outcome, Report, combine, done

# The days of the closures and their eves, whose slots may reach over midnight, of every agenda that they reach.
_TOUCHED = f"""
    CREATE TEMP TABLE touched_cell ON COMMIT DROP AS
    SELECT DISTINCT a.id AS agenda_id, CAST(day AS date) AS local_date
    FROM ({{closures}}) c
    CROSS JOIN agenda a JOIN clinic k ON k.id = a.clinic_id AND k.active
    CROSS JOIN LATERAL generate_series(greatest(c.date_from - 1, CAST(:as_of AS date) - 1),
                                       least(c.date_to, CAST(:as_of AS date) + 731), interval '1 day') AS day
    WHERE a.auto_generate AND {REACHES}
"""


def derive_touched(connection: sa.Connection, closures: str, as_of: datetime) -> Report | None:
    """Derive again what closures touch, before and after their change, in the caller's transaction; None if nothing is.

    ``closures`` is SQL: rows of layer, region, municipality_code, clinic_id, agenda_id, date_from, date_to.
    """
    connection.execute(sa.text("DROP TABLE IF EXISTS touched_cell"))
    touched = connection.execute(sa.text(_TOUCHED.format(closures=closures)), {"as_of": as_of}).rowcount
    return derive(connection, "touched_cell", as_of) if touched else None


_TEMPORARY = (
    "derive_cell",
    "working_agenda",
    "closed_hours",
    "rule_day",
    "left_out_day",
    "shifted_slot",
    "present_cell",
    "fresh_cell",
    "changed_cell",
    "wanted_slot",
    "present_slot",
    "slot_change",
    "lost_together",
)


def derive(connection: sa.Connection, cells: str, as_of: datetime) -> Report:
    """Re-derive exactly the agenda-days of the table ``cells`` (agenda_id bigint, local_date date), in the caller's
    transaction and as part of its plan; days outside an agenda's horizon and manual agendas are left alone.

    The cost grows with the cells, not with the slots or the clinics: those of one time zone are derived together.
    Called when closures have changed; what a closure explains is written whatever else a person must look at first.
    """
    clinics = [
        Clinic(*row)
        for row in connection.execute(
            sa.text(f"""
                SELECT DISTINCT c.id, c.code, c.time_zone, c.horizon_days
                FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                ORDER BY c.time_zone, c.id""")
        )
    ]
    serialise(connection, clinics)
    zones = groupby(clinics, key=lambda clinic: clinic.time_zone)
    return combine([_derive_zone(connection, zone, list(those), cells, as_of) for zone, those in zones])


def _derive_zone(
    connection: sa.Connection, zone: str, clinics: Sequence[Clinic], cells: str, as_of: datetime
) -> Report:
    try:
        today = as_of.astimezone(ZoneInfo(zone)).date()
    except (KeyError, ValueError):
        return combine([unknown_zone(clinic) for clinic in clinics])

    def part(agendas: Sequence[int]) -> Report:
        with connection.begin_nested():
            connection.execute(
                sa.text(f"""
                    CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                    SELECT DISTINCT x.agenda_id, x.local_date
                    FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                    WHERE a.id = ANY(:agendas)
                      AND x.local_date >= :today
                      AND x.local_date < CAST(:today AS date) + coalesce(a.horizon_days, c.horizon_days)"""),
                {"agendas": list(agendas), "today": today},
            )
            report = _write(connection, clinics, as_of, today)
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {', '.join(_TEMPORARY)}"))
            return report

    def failed(agenda_id: int, error: Exception) -> Report:
        return agenda_refused(connection, agenda_id, error)

    agendas = connection.scalars(
        sa.text(f"""
            SELECT DISTINCT a.id FROM {cells} x JOIN agenda a ON a.id = x.agenda_id
            WHERE a.clinic_id = ANY(:clinics) AND a.auto_generate ORDER BY a.id"""),
        {"clinics": [clinic.id for clinic in clinics]},
    ).all()
    return combine(in_parts(agendas, part, failed))


def _write(connection: sa.Connection, clinics: Sequence[Clinic], as_of: datetime, today: date) -> Report:
    """Write what is due of the agenda-days of ``derive_cell``; the rest waits for the plan of the night."""
    values = values_of(connection, clinics, as_of, today)
    if values is None:
        return Report(Outcome.NOTHING_TO_DO)
    decided = decide(connection, values, lock=True)
    retired, updated = (
        connection.execute(
            sa.text(f"""
                UPDATE slot SET ends_at = r.ends_at, capacity = r.capacity, state = r.state
                FROM slot_change r WHERE r.action = :action AND slot.id = r.id AND {due("r")}"""),
            {"action": action},
        ).rowcount
        for action in ("retire", "update")
    )
    created = connection.execute(
        sa.text(f"""
            INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
            SELECT agenda_id, starts_at, ends_at, local_date, capacity FROM slot_change
            WHERE action = 'create' AND {due()}""")
    ).rowcount
    for statement in AFTER if updated else ():
        connection.execute(sa.text(statement.format(rows=f"(SELECT * FROM slot_change WHERE {due()})")), values)
    counts = Counts(created=created, updated=updated, retired=retired, waiting=decided.orphaned, failed=decided.failed)
    counts += Counts(unchanged=decided.unchanged)
    return Report(
        done(counts, set_aside=decided.orphaned),
        counts,
        decided.reasons,
        decided.figures,
        orphan_tables(connection, clinics) if decided.orphaned else (),
    )
