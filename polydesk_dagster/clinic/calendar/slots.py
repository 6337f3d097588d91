"""The bookable slots of agendas: what the rules and closures produce, and the smallest change that brings it about.

A slot's identity is its agenda and its start instant. Rules are expanded in the wall time of the clinic's zone and
stored as instants. A slot with a booking or a live hold is never changed: if the rules no longer produce it, it
becomes an orphan for the desk. One clinic is one transaction; an agenda whose rules make no sense is named, left as it
is, and stops nobody else.

Most days of most agendas have not changed since the last run. So three kinds of agenda-days are told apart: those
without any slot get theirs in one ``INSERT … SELECT``; those whose slots have the digest that the rules give are done;
only the rest is compared slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import (
    RETIREMENT_GUARD,
    Clinic,
    leave_out_senseless_agendas,
    manual_agendas,
    remember,
    tell_gaps,
)
from polydesk_dagster.clinic.calendar.comparison import (
    COUNT_REVIVED,
    INSERT_WANTED,
    RETIRE,
    UPDATE,
    compare,
    hold_back_retirements,
)
from polydesk_dagster.clinic.calendar.days import COUNT_BEFORE, INSERT_FRESH, sort_cells
from polydesk_dagster.clinic.calendar.expansion import expand_rules, shift_across_dst
from polydesk_dagster.clinic.calendar.orphans import orphan_tables, orphans
from polydesk_dagster.database.locks import in_turn
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, combine

__all__ = ["RETIREMENT_GUARD", "derive", "generate"]

Progress = Callable[[int, int, str], None]


def generate(
    engine: sa.Engine,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    past_guard: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Bring the slots of all automatic agendas in step with their rules, from ``as_of`` to each agenda's horizon.

    Counts are slots, except ``skipped`` (manual agendas) and ``failed`` (agendas left as they were). With ``preview``
    nothing is written. ``past_guard=RETIREMENT_GUARD`` lets retirements through that the guard would hold.
    """
    with engine.connect() as connection:
        clinics = _clinics(connection, clinic)
    if clinic is not None and not clinics:
        return Report.failed("unknown_clinic", f"Clinica «{clinic}» sconosciuta: controlla il codice.", clinic)
    reports = []
    for number, each in enumerate(clinics, 1):
        reports.append(_generate_clinic(engine, each, as_of, preview=preview, past_guard=past_guard))
        if progress is not None:
            progress(number, len(clinics), "cliniche")
    return combine(reports)


def _clinics(connection: sa.Connection, code: str | None) -> list[Clinic]:
    rows = connection.execute(
        sa.text("""
            SELECT c.id, c.code, c.time_zone, greatest(c.horizon_days, coalesce(max(a.horizon_days), 0))
            FROM clinic c LEFT JOIN agenda a ON a.clinic_id = c.id
            WHERE c.active AND (c.code = :code OR CAST(:code AS text) IS NULL)
            GROUP BY c.id ORDER BY c.code"""),
        {"code": code},
    )
    return [Clinic(*row) for row in rows]


def _generate_clinic(
    engine: sa.Engine, clinic: Clinic, as_of: datetime, *, preview: bool, past_guard: str | None
) -> Report:
    try:
        today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
        with engine.connect() as connection:
            _serialise(connection, clinic.id)
            connection.execute(
                sa.text("""
                    CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                    SELECT a.id AS agenda_id, CAST(:today AS date) + n AS local_date
                    FROM agenda a JOIN clinic c ON c.id = a.clinic_id
                    CROSS JOIN generate_series(0, coalesce(a.horizon_days, c.horizon_days) - 1) AS n
                    WHERE a.clinic_id = :clinic_id AND a.auto_generate"""),
                {"today": today, "clinic_id": clinic.id},
            )
            report = _derive_clinic(connection, clinic, as_of, past_guard=past_guard, full=True)
            if preview:
                connection.rollback()
            else:
                connection.commit()
            return report
    except (KeyError, ValueError, sa.exc.DBAPIError) as error:
        return _clinic_failed(clinic, error)


def _clinic_failed(clinic: Clinic, error: Exception) -> Report:
    if isinstance(error, sa.exc.DBAPIError):
        return Report.failed(
            "database",
            f"Clinica {clinic.code}: il database ha rifiutato la generazione ({type(error.orig).__name__}); "
            "nessun orario di questa clinica è cambiato. Riprova; se si ripete chiama l'assistenza.",
            clinic.code,
        )
    return Report.failed(
        "unknown_time_zone",
        f"Clinica {clinic.code}: il fuso orario «{clinic.time_zone}» non esiste; scrivi per esempio Europe/Rome. "
        "I suoi orari restano come sono.",
        clinic.code,
    )


def derive(connection: sa.Connection, cells: str, as_of: datetime, *, past_guard: str | None = None) -> Report:
    """Re-derive exactly the agenda-days of the table ``cells`` (agenda_id bigint, local_date date), in the caller's
    transaction; days outside an agenda's horizon and manual agendas are left alone.

    The cost grows with the cells, not with the slots. Called when closures or rules have changed; the retirement guard
    does not apply to what a closure explains.
    """
    clinics = [
        Clinic(*row)
        for row in connection.execute(
            sa.text(f"""
                SELECT DISTINCT c.id, c.code, c.time_zone, c.horizon_days
                FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                ORDER BY c.id""")
        )
    ]
    reports = []
    for clinic in clinics:
        try:
            today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
            with connection.begin_nested():
                _serialise(connection, clinic.id)
                connection.execute(
                    sa.text(f"""
                        CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                        SELECT DISTINCT x.agenda_id, x.local_date
                        FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                        WHERE a.clinic_id = :clinic_id AND a.auto_generate
                          AND x.local_date >= :today
                          AND x.local_date < CAST(:today AS date) + coalesce(a.horizon_days, c.horizon_days)"""),
                    {"clinic_id": clinic.id, "today": today},
                )
                reports.append(_derive_clinic(connection, clinic, as_of, past_guard=past_guard, full=False))
                for table in _TEMPORARY:
                    connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
        except (KeyError, ValueError, sa.exc.DBAPIError) as error:
            reports.append(_clinic_failed(clinic, error))
    return combine(reports)


def _serialise(connection: sa.Connection, clinic_id: int) -> None:
    """One derivation of a clinic's slots at a time: nightly generation and a closure's wait for each other."""
    in_turn(connection, "slots", str(clinic_id))


_TEMPORARY = (
    "derive_cell",
    "working_agenda",
    "closed_hours",
    "rule_day",
    "shifted_slot",
    "present_cell",
    "fresh_cell",
    "changed_cell",
    "wanted_slot",
    "present_slot",
)


def _derive_clinic(
    connection: sa.Connection, clinic: Clinic, as_of: datetime, *, past_guard: str | None, full: bool
) -> Report:
    bounds = connection.execute(sa.text("SELECT min(local_date), max(local_date) FROM derive_cell")).one()
    reasons: list[Reason] = []
    manual = manual_agendas(connection, clinic, reasons) if full else 0
    if bounds[0] is None:
        return Report(Outcome.NOTHING_TO_DO, Counts(skipped=manual), tuple(reasons))
    first_day: date = bounds[0] - timedelta(days=1)
    values = {
        "clinic_id": clinic.id,
        "time_zone": clinic.time_zone,
        "as_of": as_of,
        "first_day": first_day,
        "last_day": bounds[1] + timedelta(days=1),
    }
    connection.execute(sa.text("ANALYZE derive_cell"))
    expand_rules(connection, values)
    failed = leave_out_senseless_agendas(connection, clinic, values, reasons)
    dropped = shift_across_dst(connection, values)
    sort_cells(connection, values)
    created = connection.execute(sa.text(INSERT_FRESH), values).rowcount
    before = int(connection.scalar(sa.text(COUNT_BEFORE)) or 0)
    refused = orphaned = retired = updated = revived = 0
    if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM changed_cell)")):
        compare(connection, values)
        refused = hold_back_retirements(connection, clinic, values, past_guard, reasons)
        orphaned, adopted = orphans(connection, values)
        retired = connection.execute(sa.text(RETIRE), values).rowcount
        revived = int(connection.scalar(sa.text(COUNT_REVIVED)) or 0)
        updated = connection.execute(sa.text(UPDATE), values).rowcount + adopted
        created += connection.execute(sa.text(INSERT_WANTED), values).rowcount
    unchanged = before - retired - updated - orphaned + revived
    if full:
        remember(connection, values)
        tell_gaps(connection, clinic, values, reasons)
    counts = Counts(created, updated + orphaned, retired, manual, failed, unchanged)
    return Report(
        _outcome(counts, refused),
        counts,
        tuple(reasons),
        {
            "Prenotazioni da ricollocare trovate": orphaned,
            "Orari scartati perché non entrano nel turno": dropped["too_long"],
            "Orari scartati nell'ora che non esiste (ora legale)": dropped["gap"],
            "Orari nell'ora doppia (ora solare), creati una volta": dropped["fold"],
            "Agende trattenute in attesa di conferma": refused,
        },
        orphan_tables(connection, clinic) if orphaned else (),
    )


def _outcome(counts: Counts, refused: int) -> Outcome:
    if counts.failed or refused:
        if counts.changed or counts.unchanged:
            return Outcome.PARTIAL
        return Outcome.REFUSED if refused and not counts.failed else Outcome.FAILED
    return Outcome.OK if counts.changed else Outcome.NOTHING_TO_DO
