"""What must change of some agenda-days, decided before anything is written: what generation and closures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import (
    ENDS_AHEAD,
    LOCK_AGENDAS,
    Clinic,
    agenda,
    leave_out_what_makes_no_sense,
)
from polydesk_dagster.clinic.calendar.comparison import compare, due
from polydesk_dagster.clinic.calendar.days import COUNT_BEFORE, sort_cells
from polydesk_dagster.clinic.calendar.expansion import expand_rules, shift_across_dst
from polydesk_dagster.clinic.calendar.orphans import SEATED, WORK
from polydesk_dagster.database import refusals
from polydesk_dagster.database.locks import all_in_turn
from polydesk_dagster.errors import in_brief
from polydesk_dagster.outcome import Reason, Report
from polydesk_dagster.values import Value


class Refused(Exception):  # noqa: N818 -- unwinds a transaction, never leaves this module
    """The schema has refused a plan that was made a moment ago."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.outcome)
        self.report = report


def in_parts(
    agendas: Sequence[int], part: Callable[[Sequence[int]], Report], failed: Callable[[int, Exception], Report]
) -> list[Report]:
    """All agendas at once; where the database refuses that, by halves, until the agenda is found that it is about."""
    try:
        return [part(agendas)]
    except (sa.exc.DBAPIError, Refused) as error:
        if not agendas or refusals.of_the_server(error):
            raise
        if len(agendas) == 1:
            return [failed(agendas[0], error)]
        half = len(agendas) // 2
        return in_parts(agendas[:half], part, failed) + in_parts(agendas[half:], part, failed)


def unknown_zone(clinic: Clinic) -> Report:
    """A clinic whose zone does not exist has no days to derive."""
    return Report.failed("unknown_time_zone", {"zone": clinic.time_zone}, clinic.code)


def agenda_refused(connection: sa.Connection, agenda_id: int, error: Exception) -> Report:
    """What is told of an agenda that was left as it is."""
    row = connection.execute(
        sa.text("SELECT a.id, a.name, c.code FROM agenda a JOIN clinic c ON c.id = a.clinic_id WHERE a.id = :id"),
        {"id": agenda_id},
    ).one()
    cause: Value = in_brief(error)
    if isinstance(error, Refused) and error.report.reasons:
        cause = error.report.reasons[0]
    return Report.failed("agenda_refused", {"agenda": agenda(row), "error": cause}, row.code)


def serialise(connection: sa.Connection, clinics: Sequence[Clinic]) -> None:
    """One derivation of a clinic's slots at a time: nightly generation and a closure's wait for each other."""
    all_in_turn(connection, [("slots", str(clinic.id)) for clinic in clinics])


@dataclass(frozen=True, slots=True)
class Decided:
    """What must change, before anything is written; the rows are in the table ``slot_change``."""

    unchanged: int
    orphaned: int
    failed: int
    figures: Mapping[str, Value]
    reasons: tuple[Reason, ...]


def values_of(
    connection: sa.Connection, clinics: Sequence[Clinic], as_of: datetime, today: date, settled: Sequence[int] = ()
) -> dict[str, object] | None:
    """What the statements bind for clinics of one time zone; None where there is no agenda-day to derive. ``settled``
    are agendas that are at work here without any."""
    first, last = connection.execute(sa.text("SELECT min(local_date), max(local_date) FROM derive_cell")).one()
    if first is None:
        if not settled:
            return None
        first = last = today
    return {
        "settled": list(settled),
        "clinic_ids": [clinic.id for clinic in clinics],
        "time_zone": clinics[0].time_zone,
        "as_of": as_of,
        "today": today,
        "ends_before": today + ENDS_AHEAD,
        "first_day": first - timedelta(days=1),
        "last_day": last + timedelta(days=1),
    }


def decide(connection: sa.Connection, values: Mapping[str, object], *, lock: bool) -> Decided:
    if lock:
        connection.execute(sa.text(LOCK_AGENDAS))
    connection.execute(sa.text("ANALYZE derive_cell"))
    expand_rules(connection, values)
    reasons: list[Reason] = []
    failed = leave_out_what_makes_no_sense(connection, values, reasons)
    dropped = shift_across_dst(connection, values)
    sort_cells(connection, values)
    compare(connection, values, lock=lock)
    counted = connection.execute(
        sa.text(f"""
            SELECT coalesce((SELECT sum(n) FROM ({COUNT_BEFORE}) b (n)), 0)
                   - count(*) FILTER (WHERE {due()} AND was_state <> 'retired') AS unchanged,
                   (SELECT count(DISTINCT {WORK}) FROM slot_change s {SEATED}
                    WHERE {due("s")} AND s.state = 'orphan' AND s.was_state <> 'orphan') AS orphaned
            FROM slot_change WHERE id IS NOT NULL""")
    ).one()
    figures = {
        "bookings_to_move": int(counted.orphaned),
        "slots_too_long_for_their_turn": dropped["too_long"],
        "slots_in_the_hour_that_is_missing": dropped["gap"],
        "slots_in_the_hour_that_comes_twice": dropped["fold"],
    }
    return Decided(int(counted.unchanged), int(counted.orphaned), failed, figures, tuple(reasons))
