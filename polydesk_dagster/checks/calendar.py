"""What must hold in the calendar after every run."""

import dagster as dg

from polydesk_dagster.clinic.bookings import checks as booking_checks
from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar.checks import Finding
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures

T = teller()
SLOTS = dg.AssetKey(["calendar", "agenda_slots"])
CLOSURES = dg.AssetKey(["calendar", "closures"])


def _result(finding: Finding, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=finding.count == 0,
        severity=severity,
        metadata=figures({"calendar_broken": finding.count, "calendar_examples": finding.examples or None}),
    )


@dg.asset_check(asset=SLOTS, description=T.text("check.no_free_slot_on_a_closure"))
def no_free_slot_on_a_closure(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(calendar_checks.free_on_closure(connection, polydesk.now()), dg.AssetCheckSeverity.ERROR)


@dg.asset_check(asset=SLOTS, description=T.text("check.no_overlapping_slots"))
def no_overlapping_slots(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(calendar_checks.overlapping(connection, polydesk.now()), dg.AssetCheckSeverity.ERROR)


@dg.asset_check(asset=SLOTS, description=T.text("check.every_booking_has_its_slot"))
def every_booking_has_its_slot(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(calendar_checks.bookings_without_slot(connection, polydesk.now()), dg.AssetCheckSeverity.ERROR)


@dg.asset_check(asset=SLOTS, description=T.text("check.no_seat_without_a_booking"))
def no_seat_without_a_booking(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(booking_checks.seats_without_booking(connection, polydesk.now()), dg.AssetCheckSeverity.ERROR)


@dg.asset_check(asset=SLOTS, description=T.text("check.nobody_in_two_places"))
def nobody_in_two_places(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(booking_checks.collisions(connection, polydesk.now()), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=SLOTS, description=T.text("check.no_open_orphans"))
def no_open_orphans(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(calendar_checks.open_orphans(connection, polydesk.now()), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=SLOTS, description=T.text("check.no_agenda_left_behind"))
def no_agenda_left_behind(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        return _result(calendar_checks.agendas_behind(connection, polydesk.now()), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=CLOSURES, description=T.text("check.next_year_is_published"))
def next_year_is_published(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        finding = calendar_checks.next_year_unpublished(connection, polydesk.now())
    return _result(finding, dg.AssetCheckSeverity.WARN)


CHECKS = (
    no_free_slot_on_a_closure,
    no_overlapping_slots,
    every_booking_has_its_slot,
    no_seat_without_a_booking,
    nobody_in_two_places,
    no_open_orphans,
    no_agenda_left_behind,
    next_year_is_published,
)
