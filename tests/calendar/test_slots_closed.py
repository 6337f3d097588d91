"""Closures and slots: which layer closes, which opens again, and what that leaves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import slots, touched
from polydesk_dagster.outcome import Counts, Outcome
from tests import world
from tests.calendar import world as w
from tests.world import AS_OF, rome


def _closed(engine: sa.Engine, day: str, until: str | None = None, **fields: Any) -> int:
    with engine.begin() as connection:
        return world.closure(connection, day, until, **fields)


def test_a_closed_day_has_no_slots_and_its_booking_names_the_closure(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    w.booked(engine, practice, rome("2026-03-12", "12:30"))
    closure = _closed(engine, "2026-03-12", "2026-03-13", name="Fiera")
    report = slots.generate(engine, AS_OF)
    assert (report.outcome, report.counts.waiting) == (Outcome.PARTIAL, 1)
    again = slots.generate(engine, AS_OF)
    assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 1)  # known, and still waiting
    assert not [s for s in w.slots(engine) if s[0][:10] in {"2026-03-12", "2026-03-13"}]
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT cause, closure_id FROM orphan")).one() == ("closure", closure)
    w.run(engine, "UPDATE closure SET lifted_at = now()")
    assert slots.generate(engine, AS_OF).counts.updated == 16
    assert len([s for s in w.slots(engine) if s[0][:10] in {"2026-03-12", "2026-03-13"}]) == 16


def test_half_a_day(engine: sa.Engine) -> None:
    w.practice(engine, weekdays=(4,))
    _closed(engine, "2026-03-12", from_time="00:00", to_time="11:15")
    slots.generate(engine, AS_OF)
    # the slot of 11:00 would begin while closed
    assert w.slots(engine, "s.local_date = '2026-03-12'")[0] == ("2026-03-12 11:30", "12:00")


def test_a_more_specific_layer_opens_again_and_closes_again(engine: sa.Engine) -> None:
    practice = w.practice(engine, weekdays=(4,))
    with engine.begin() as connection:
        second = world.agenda(
            connection, practice.clinic, practice.location, specialist_id=practice.specialist, weekdays=(4,)
        )
    _closed(engine, "2026-03-12", layer="national")
    _closed(engine, "2026-03-12", layer="clinic", clinic_id=practice.clinic, effect="open")
    _closed(engine, "2026-03-12", layer="agenda", agenda_id=second, from_time="09:00", to_time="11:00")
    slots.generate(engine, AS_OF)
    assert len(w.slots(engine, f"s.local_date = '2026-03-12' AND agenda_id = {practice.agenda}")) == 8
    assert len(w.slots(engine, f"s.local_date = '2026-03-12' AND agenda_id = {second}")) == 4


def test_a_less_specific_layer_cannot_open_what_a_more_specific_one_closes(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    _closed(engine, "2026-03-12", layer="clinic", clinic_id=practice.clinic)
    _closed(engine, "2026-03-12", layer="chain", effect="open")
    slots.generate(engine, AS_OF)
    assert w.slots(engine, "s.local_date = '2026-03-12'") == []


def test_regions_and_municipalities_reach_their_clinics(engine: sa.Engine) -> None:
    w.practice(engine)
    with engine.begin() as connection:
        milan = world.practice(connection, "MI01")
        connection.execute(
            sa.text("UPDATE clinic SET region = 'Lombardia', municipality_code = 'F205' WHERE id = :id"),
            {"id": milan.clinic},
        )
    _closed(engine, "2026-03-12", layer="municipality", municipality_code="F205")
    _closed(engine, "2026-03-13", layer="region", region="emilia romagna")
    slots.generate(engine, AS_OF)
    days = {
        clinic: {start[8:10] for start, _ in w.slots(engine, f"c.code = '{clinic}' AND s.local_date < '2026-03-14'")}
        for clinic in ("BO01", "MI01")
    }
    assert days == {"BO01": {"10", "11", "12"}, "MI01": {"10", "11", "13"}}


def test_a_yearly_closure_returns_and_29_february_only_in_leap_years(engine: sa.Engine) -> None:
    w.practice(engine, weekdays=(1, 2, 3, 4, 5, 6, 7))
    _closed(engine, "2020-08-15", yearly=True)
    _closed(engine, "2020-02-29", yearly=True)
    slots.generate(engine, datetime(2026, 7, 1, tzinfo=UTC))
    slots.generate(engine, datetime(2027, 2, 1, tzinfo=UTC))
    slots.generate(engine, datetime(2028, 2, 1, tzinfo=UTC))
    days = {start[:10] for start, _ in w.slots(engine)}
    assert "2026-08-15" not in days
    assert {"2026-08-14", "2026-08-16", "2027-02-28", "2027-03-01", "2028-02-28", "2028-03-01"} <= days
    assert "2028-02-29" not in days


def test_derive_touches_only_its_cells(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    _closed(engine, "2026-03-12")
    w.run(engine, "UPDATE agenda_rule SET ends_at = '12:00'")
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TEMP TABLE touched_days AS SELECT CAST(:a AS bigint) agenda_id, date '2026-03-12' local_date"
            ),
            {"a": practice.agenda},
        )
        report = touched.derive(connection, "touched_days", AS_OF)
    assert report.counts == Counts(retired=8)
    assert len(w.slots(engine, "s.local_date = '2026-03-13' AND state = 'free'")) == 8
