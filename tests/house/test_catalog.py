"""The catalogue tells the truth about when services run, both nights of the clock's change included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from dagster._utils.schedules import schedule_execution_time_iterator
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from polydesk_dagster.assets.studiolab import LISTINGS
from polydesk_dagster.catalog import BY_KEY, ROME, SERVICES, Daily, Every, OnDemand, Place, next_run
from polydesk_dagster.schedules.due import DUE
from polydesk_dagster.told import teller
from polydesk_dagster.web.services import GROUPS

SCHEDULED = [service for service in SERVICES if not isinstance(service.cadence, OnDemand)]


def test_every_service_of_the_page_is_there_once() -> None:
    assert len(BY_KEY) == len(SERVICES) == 26, "of one more: this number, and the sections of docs/servizi.md"
    assert [service.key for service in SERVICES if service.dangerous] == [
        "release_all_holds",
        "reset_message_templates",
        "recover_deleted_services",
    ]


def test_the_services_that_only_look_are_those_of_studiolabs_lists() -> None:
    looking = {service.key for service in SERVICES if service.only_looks}
    assert looking == {listing.preview_service for listing in LISTINGS if listing.preview_service is not None}


def test_a_frequent_service_looks_first_whether_anything_is_due() -> None:
    blind = [s.key for s in SERVICES if isinstance(s.cadence, Every) and s.sensor is None and s.key not in DUE]
    assert not blind, f"without a cheap look in schedules/due.py, each tick would start a run: {blind}"


def test_every_group_of_services_stands_on_the_page() -> None:
    shown = {group for groups in GROUPS.values() for group in groups}
    lost = {s.key: s.group for s in SERVICES if s.place is Place.ORDINARY and s.group not in shown}
    assert not lost, f"whose group no section of the page shows (GROUPS in web/services.py): {lost}"


def test_the_timetable(snapshot: SnapshotAssertion) -> None:
    assert {
        s.key: (teller().service(s.key), teller().cadence(s.cadence), s.place.value) for s in SERVICES
    } == snapshot, "the timetable changed; if it should have: pytest tests/house --snapshot-update"


@pytest.mark.parametrize("service", SCHEDULED, ids=lambda service: service.key)
@pytest.mark.parametrize("start", [datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)])
def test_what_is_shown_is_what_dagster_will_tick(service: object, start: datetime) -> None:
    """Around both changes of the clocks, our next run is the first of Dagster's ticks that is not passed over."""
    cadence = service.cadence  # type: ignore[attr-defined]
    ticks = schedule_execution_time_iterator(start.timestamp(), cadence.cron, ROME.key, ascending=True)
    wanted = []
    while len(wanted) < 3:
        tick = next(ticks)
        if tick > start and (isinstance(cadence, Daily) or cadence.runs_at(tick)):
            wanted.append(tick.astimezone(UTC))
    shown, instant = [], start
    for _ in range(3):
        coming = next_run(service, instant)  # type: ignore[arg-type]
        assert coming is not None
        shown.append(coming)
        instant = coming
    assert shown == wanted


@given(st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)))
def test_twenty_five_minutes_are_twenty_five_minutes(moment: datetime) -> None:
    cadence = Every(25)
    first = cadence.next_after(moment.replace(tzinfo=UTC))
    runs = [first]
    for _ in range(4):
        runs.append(cadence.next_after(runs[-1]))
    assert {later - earlier for earlier, later in pairwise(runs)} == {timedelta(minutes=25)}
    assert all(cadence.runs_at(run) for run in runs)


def test_the_page_in_italian_names_every_service() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "servizi.md"
    text = page.read_text()
    for service in SERVICES:
        assert f"## {teller().service(service.key)}" in text, (
            f"docs/servizi.md non parla di «{teller().service(service.key)}»"
        )
        assert f"`{service.key}`" in text
