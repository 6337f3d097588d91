"""Reminders in steps: each told once, farther ones only to who booked before, over nights when the clocks change."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.messages import calls, due, health, hours, planning, plans, service
from polydesk_dagster.clinic.messages.planning import Lead
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.messages.world import booked, gateway, move

WEEK = plans.read("3h, 7d 2d")
START = world.rome("2026-03-18", "12:00")
"""A Wednesday."""


def house(engine: sa.Engine, steps: tuple[Lead, ...] = WEEK) -> world.Practice:
    with engine.begin() as connection:
        practice = world.practice(connection)
        remind(connection, None, None, steps)
        connection.execute(sa.text("UPDATE message_policy SET quiet_from = '21:00' WHERE clinic_id IS NULL"))
    return practice


def remind(connection: sa.Connection, clinic: str | None, service: str | None, steps: tuple[Lead, ...]) -> int:
    """Make the steps hold, as the desk would; the plan."""
    at = START - timedelta(days=30)
    plan = plans.propose(connection, clinic, service, steps, who="Ada", at=at).id
    assert changes.apply(connection, plan, as_of=at, actor="Ada").counts.changed == 1
    return plan


def run(engine: sa.Engine, first: datetime, until: datetime, providers: Any, every: int = 20) -> list[datetime]:
    """Every tick from ``first``, as the schedule would; when something was sent."""
    sent, at = [], first
    while at < until:
        with engine.connect() as connection:
            idle = due.nothing_due(["reminder"], connection, at)
        if idle is None:
            report = service.send(engine, at, "reminder", providers)
            sent += [at] * report.counts.updated
        at += timedelta(minutes=every)
    return sent


def book(engine: sa.Engine, practice: world.Practice, made: datetime, start: datetime = START) -> int:
    local = start.astimezone(world.ROME)
    with engine.begin() as connection:
        return booked(connection, practice, f"{local:%H:%M}", f"{local:%Y-%m-%d}", created_at=made)


@pytest.mark.slow
def test_each_step_is_told_once_at_its_time(engine: sa.Engine) -> None:
    practice = house(engine)
    book(engine, practice, START - timedelta(days=10))
    with gateway() as (simulator, providers):
        sent = run(engine, world.rome("2026-03-10", "09:50"), START + timedelta(hours=1), providers)
        assert [f"{at.astimezone(world.ROME):%d %H:%M}" for at in sent] == ["11 10:10", "16 10:10", "18 09:10"]
        assert len(simulator.sent) == 3
        with engine.connect() as connection:
            assert calls.to_make(connection, START - timedelta(hours=1)) == []


@pytest.mark.slow
def test_who_books_late_hears_only_of_the_steps_that_are_left(engine: sa.Engine) -> None:
    practice = house(engine)
    made = world.rome("2026-03-15", "15:00")
    with gateway() as (simulator, providers):
        run(engine, world.rome("2026-03-13", "09:50"), world.rome("2026-03-13", "11:00"), providers)
        book(engine, practice, made)
        run(engine, made, START, providers)
        assert len(simulator.sent) == 2


def test_after_an_outage_only_the_step_that_is_of_use_is_told(engine: sa.Engine) -> None:
    practice = house(engine)
    book(engine, practice, START - timedelta(days=10))
    with gateway() as (simulator, providers):
        service.send(engine, world.rome("2026-03-17", "11:00"), "reminder", providers)
        assert len(simulator.sent) == 1
        with engine.connect() as connection:
            (step,) = connection.scalars(sa.text("SELECT step FROM message_ledger WHERE withheld IS NULL"))
            assert (step, calls.to_make(connection, world.rome("2026-03-17", "11:00"))) == (2880, [])


@pytest.mark.slow
def test_a_moved_appointment_is_told_anew_by_the_steps_that_are_left(engine: sa.Engine) -> None:
    practice = house(engine)
    number = book(engine, practice, START - timedelta(days=10))
    with gateway() as (simulator, providers):
        run(engine, world.rome("2026-03-11", "09:50"), world.rome("2026-03-16", "11:00"), providers)
        assert len(simulator.sent) == 2
        with engine.begin() as connection:
            move(connection, number, START + timedelta(days=1))
        run(engine, world.rome("2026-03-16", "11:00"), START + timedelta(days=1), providers)
        assert [("18 marzo" in m.text, "19 marzo" in m.text) for m in simulator.sent].count((False, True)) >= 2
        with engine.connect() as connection:
            twice = connection.scalar(
                sa.text("""SELECT count(*) FROM (SELECT FROM message_ledger WHERE withheld IS NULL
                                                 GROUP BY subject_id, version, step HAVING count(*) > 1) t""")
            )
        assert twice == 0


@pytest.mark.parametrize(
    "start", [world.rome("2026-03-29", "04:30"), world.rome("2026-10-25", "04:30")], ids=["forward", "back"]
)
def test_hours_are_hours_on_the_nights_when_the_clocks_change(engine: sa.Engine, start: datetime) -> None:
    practice = house(engine, plans.read("3h"))
    with engine.begin() as connection:
        connection.execute(
            sa.text("""UPDATE message_policy SET quiet_from = '00:00', quiet_to = '00:00', quiet_rest_days = false
                       WHERE clinic_id IS NULL""")
        )
    book(engine, practice, start - timedelta(days=3), start)
    with gateway() as (simulator, providers):
        sent = run(engine, start - timedelta(hours=5), start, providers, every=10)
        assert len(simulator.sent) == 1
    assert timedelta(0) <= sent[0] - (start - timedelta(hours=3)) <= timedelta(minutes=10)


@pytest.mark.parametrize("told", ["2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25"])
def test_the_day_before_goes_at_the_clinic_s_own_hour_around_nights_when_the_clocks_change(
    engine: sa.Engine, told: str
) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(sa.text("UPDATE message_policy SET quiet_rest_days = false WHERE clinic_id IS NULL"))
    ahead = (world.rome(told, "12:00") + timedelta(hours=24)).astimezone(world.ROME)
    start = world.rome(f"{ahead:%Y-%m-%d}", "12:00")
    book(engine, practice, start - timedelta(days=9), start)
    with gateway() as (simulator, providers):
        sent = run(engine, world.rome(told, "09:00"), world.rome(told, "11:00"), providers)
        assert [f"{at.astimezone(world.ROME):%Y-%m-%d %H:%M}" for at in sent] == [f"{told} 10:00"]
        assert "12:00" in simulator.sent[0].text


def test_the_nearest_plan_holds_and_without_one_everything_is_as_it_was(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        code = connection.scalar(sa.text("SELECT code FROM service WHERE id = :id"), {"id": practice.service})

        def steps() -> list[tuple[int, int, int]]:
            rows = connection.execute(
                sa.text("SELECT lead_days, lead_minutes, step FROM service_reminder ORDER BY 1, 2")
            )
            return [tuple(row) for row in rows]  # type: ignore[misc]

        assert steps() == [(1, 0, 0)]
        remind(connection, None, None, plans.read("2d"))
        remind(connection, "BO01", None, plans.read("3d 1d"))
        assert steps() == [(1, 0, 0), (3, 0, 4320)]
        last = remind(connection, "BO01", code, plans.read("90m"))
        assert steps() == [(0, 90, 90)]
        assert [plan.written for plan in plans.listed(connection)] == ["2d", "3d 1d", "90m"]
        assert not plans.propose(connection, "BO01", code, plans.read("90m"), who="Ada", at=START).writes
        gone = plans.withdraw(connection, "BO01", code, at=START)
        changes.apply(connection, gone.id, as_of=START, actor="Ada")
        assert not plans.withdraw(connection, "BO01", code, at=START).writes
        assert steps() == [(1, 0, 0), (3, 0, 4320)]
        changes.undo(connection, gone.id, as_of=START, actor="Ada")
        assert steps() == [(0, 90, 90)]
        changed = remind(connection, "BO01", code, plans.read("2d 3h"))
        assert steps() == [(0, 180, 180), (2, 0, 2880)]
        for plan in (changed, last):
            report = changes.undo(connection, plan, as_of=START, actor="Ada")
            assert report.outcome is Outcome.OK, report
        assert steps() == [(1, 0, 0), (3, 0, 4320)]
        assert health.without_reminder(connection, START) == []
        assert planning.due_spans(connection, "reminder", START, hours.load(connection, START))


@pytest.mark.parametrize("written", ["", "0d", "61d", "24h", "2", "3x", "2d 2d", "1d 2d 3d 4d 5d 6d", "-1d", "1d;2d"])
def test_what_is_no_plan_is_refused(written: str) -> None:
    with pytest.raises(PermanentError):
        plans.read(written)
