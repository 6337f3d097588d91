"""What must hold in the calendar after every run."""

from collections.abc import Callable
from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.checks.looks import Look, checks_of
from polydesk_dagster.clinic.bookings import checks as booking_checks
from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar.checks import Finding
from polydesk_dagster.told.dagster import figures

SLOTS = dg.AssetKey(["calendar", "agenda_slots"])
CLOSURES = dg.AssetKey(["calendar", "closures"])
ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def _nothing(found: Callable[[sa.Connection, datetime], Finding], severity: dg.AssetCheckSeverity) -> Look:
    def look(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
        finding = found(connection, as_of)
        return dg.AssetCheckResult(
            passed=finding.count == 0,
            severity=severity,
            metadata=figures({"calendar_broken": finding.count, "calendar_examples": finding.examples or None}),
        )

    return look


CHECKS = (
    checks_of(
        SLOTS,
        {
            "no_free_slot_on_a_closure": _nothing(calendar_checks.free_on_closure, ERROR),
            "no_overlapping_slots": _nothing(calendar_checks.overlapping, ERROR),
            "every_booking_has_its_slot": _nothing(calendar_checks.bookings_without_slot, ERROR),
            "no_seat_without_a_booking": _nothing(booking_checks.seats_without_booking, ERROR),
            "nobody_in_two_places": _nothing(booking_checks.collisions, WARN),
            "no_open_orphans": _nothing(calendar_checks.open_orphans, WARN),
            "no_agenda_left_behind": _nothing(calendar_checks.agendas_behind, WARN),
        },
    ),
    checks_of(CLOSURES, {"next_year_is_published": _nothing(calendar_checks.next_year_unpublished, WARN)}),
)
