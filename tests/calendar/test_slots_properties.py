"""Slot generation under random rules, closures and bookings, and under SIGKILL: its promises as invariants."""

from __future__ import annotations

import time as clock
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.outcome import Counts
from tests import world
from tests.warm import program
from tests.world import AS_OF

ROME = ZoneInfo("Europe/Rome")
quarters = st.integers(0, 95).map(lambda n: time(n // 4, n % 4 * 15))
days = st.dates(date(2026, 3, 10), date(2026, 4, 20))
turns = st.fixed_dictionaries(
    {
        "weekday": st.integers(1, 7),
        "starts_at": quarters,
        "ends_at": quarters,
        "every_weeks": st.sampled_from([1, 1, 2]),
        "slot_minutes": st.sampled_from([None, 15, 25, 40]),
    }
).map(lambda turn: {**turn, "crosses_midnight": turn["ends_at"] <= turn["starts_at"]})
closures = st.fixed_dictionaries(
    {
        "layer": st.sampled_from(["national", "chain"]),
        "effect": st.sampled_from(["closed", "closed", "open"]),
        "date_from": days,
        "length": st.integers(0, 3),
        "half": st.booleans(),
    }
)


def _world(connection: sa.Connection, rules: list[dict[str, Any]], closed: list[dict[str, Any]]) -> world.Practice:
    world.clear(connection, "clinic", "patient")
    practice = world.practice(connection, weekdays=(), horizon_days=30)
    _rules(connection, practice.agenda, rules)
    for closure in closed:
        hours = {"from_time": time(0), "to_time": time(13)} if closure["half"] else {}
        world.closure(
            connection,
            closure["date_from"],
            closure["date_from"] + timedelta(days=closure["length"]),
            layer=closure["layer"],
            effect=closure["effect"],
            **hours,
        )
    return practice


def _rules(connection: sa.Connection, agenda: int, rules: list[dict[str, Any]]) -> None:
    connection.execute(sa.text("DELETE FROM agenda_rule WHERE agenda_id = :agenda"), {"agenda": agenda})
    world.insert(
        connection, "agenda_rule", [{"agenda_id": agenda, "valid_from": date(2026, 1, 5), **rule} for rule in rules]
    )


def _book_some(connection: sa.Connection, practice: world.Practice, every: int) -> set[tuple[Any, ...]]:
    free = connection.scalars(sa.text("SELECT id FROM slot WHERE state = 'free' ORDER BY starts_at")).all()
    for slot in free[::every]:
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    return _booked(connection)


def _booked(connection: sa.Connection) -> set[tuple[Any, ...]]:
    rows = connection.execute(
        sa.text("""
        SELECT s.id, s.agenda_id, s.starts_at, s.ends_at, s.capacity FROM seat t JOIN slot s ON s.id = t.slot_id""")
    )
    return {tuple(row) for row in rows}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(turns, min_size=1, max_size=4),
    after=st.lists(turns, min_size=1, max_size=4),
    closed=st.lists(closures, max_size=3),
    every=st.integers(2, 9),
)
def test_whatever_the_rules_become(
    engine: sa.Engine,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    closed: list[dict[str, Any]],
    every: int,
) -> None:
    with engine.begin() as connection:
        practice = _world(connection, before, closed)
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        booked = _book_some(connection, practice, every)
        _rules(connection, practice.agenda, after)
    slots.generate(engine, AS_OF)
    world.approve(engine, AS_OF)
    again = slots.generate(engine, AS_OF)
    assert again.counts.changed == 0, "a second run changes nothing"
    with engine.connect() as connection:
        assert _booked(connection) == booked, "no booked slot changes"
        assert calendar_checks.free_on_closure(connection, AS_OF).count == 0
        assert calendar_checks.overlapping(connection, AS_OF).count == 0
        assert calendar_checks.bookings_without_slot(connection, AS_OF).count == 0
        unsettled = connection.scalar(
            sa.text("""
            SELECT count(*) FROM slot s FULL JOIN orphan o ON o.slot_id = s.id AND o.resolved_at IS NULL
            WHERE (s.state = 'orphan') IS DISTINCT FROM (o.id IS NOT NULL)""")
        )
        assert unsettled == 0, "orphan slots and orphan rows are the same"


def _expected(rule: dict[str, Any], first: date, days_ahead: int) -> set[datetime]:
    """The starts of one plain rule, worked out minute by minute in Python's own calendar arithmetic."""
    starts = set()
    step = timedelta(minutes=rule["slot_minutes"] or 30)
    for offset in range(-1, days_ahead):
        day = first + timedelta(days=offset)
        weeks = (day - date(2026, 1, 5)).days // 7
        if day.isoweekday() != rule["weekday"] or weeks % rule["every_weeks"]:
            continue
        opens = datetime.combine(day, rule["starts_at"])
        closes = datetime.combine(day, rule["ends_at"]) + timedelta(days=rule["crosses_midnight"])
        while opens + step <= closes:
            if first <= opens.date() < first + timedelta(days=days_ahead):
                starts.add(opens.replace(tzinfo=ROME).astimezone(UTC))
            opens += step
    return {start for start in starts if start > AS_OF}


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=turns)
def test_one_rule_gives_what_a_calendar_gives(engine: sa.Engine, rule: dict[str, Any]) -> None:
    """Over a horizon without a change of the clocks, against an independent reckoning."""
    with engine.begin() as connection:
        practice = _world(connection, [rule], [])
        connection.execute(sa.text("UPDATE agenda SET horizon_days = 18 WHERE id = :id"), {"id": practice.agenda})
    slots.generate(engine, AS_OF)
    with engine.connect() as connection:
        starts = {start.astimezone(UTC) for start in connection.scalars(sa.text("SELECT starts_at FROM slot"))}
    assert starts == _expected(rule, date(2026, 3, 10), 18)


GENERATE = """
import sys
from datetime import datetime
from sqlalchemy.engine import make_url
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.database.engine import create_engine
print("ready", flush=True)
slots.generate(create_engine(make_url(sys.argv[1])), datetime.fromisoformat(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_whole_clinics_and_the_next_run_completes(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for number in range(6):
            practice = world.practice(connection, f"C{number}")
            for _ in range(10):
                world.agenda(connection, practice.clinic, practice.location, specialist_id=practice.specialist)
    url = engine.url.render_as_string(hide_password=False)
    for delay in (0.0, 0.03, 0.08, 0.15, 0.25):
        with program(GENERATE, url, AS_OF.isoformat()) as process:
            process.stdout.readline()
            clock.sleep(delay)
        with engine.connect() as connection:
            counts = set(
                connection.scalars(
                    sa.text("SELECT count(*) FROM slot s JOIN agenda a ON a.id = s.agenda_id GROUP BY a.clinic_id")
                )
            )
        assert len(counts) <= 1, "a clinic has all of its slots or none"
    slots.generate(engine, AS_OF)
    whole = slots.generate(engine, AS_OF)
    assert whole.counts == Counts(unchanged=6 * 11 * (5 + 63 * 8))
