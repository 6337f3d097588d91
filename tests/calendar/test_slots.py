"""Slot generation: what the rules produce at any instant, and the smallest change that brings it about."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.outcome import Counts, Outcome
from polydesk_dagster.told import teller
from tests import world
from tests.calendar import world as w
from tests.world import AS_OF, rome


def test_a_first_run_creates_and_a_second_changes_nothing(engine: sa.Engine) -> None:
    w.practice(engine, horizon_days=7)
    first = slots.generate(engine, AS_OF)
    # today from 10:00 on (the 10:00 slot has begun), five working days of eight slots in seven days from Tuesday
    assert first.counts == Counts(created=5 + 4 * 8)
    assert first.outcome is Outcome.OK
    second = slots.generate(engine, AS_OF)
    assert second.outcome is Outcome.NOTHING_TO_DO
    assert second.counts == Counts(unchanged=37)


def test_the_next_night_adds_one_day_and_leaves_the_past(engine: sa.Engine) -> None:
    w.practice(engine, horizon_days=7)
    slots.generate(engine, AS_OF)
    later = slots.generate(engine, AS_OF + timedelta(days=1))
    assert later.counts.created == 8
    assert later.counts.retired == 0


def test_preview_says_the_same_and_writes_nothing(engine: sa.Engine) -> None:
    w.practice(engine)
    preview = slots.generate(engine, AS_OF, preview=True)
    assert preview.counts.created > 0
    assert w.slots(engine) == []
    assert slots.generate(engine, AS_OF).counts == preview.counts


def test_manual_agendas_are_skipped_and_counted(engine: sa.Engine) -> None:
    w.practice(engine, auto_generate=False)
    report = slots.generate(engine, AS_OF)
    assert report.counts == Counts(skipped=1)
    assert [reason.code for reason in report.reasons] == ["manual_agenda"]


# The clocks change: 29 March 2026 02:00 → 03:00, 25 October 2026 03:00 → 02:00.


def _night(engine: sa.Engine, starts_at: str, ends_at: str, minutes: int, **rule: Any) -> None:
    practice = w.practice(engine, weekdays=(), slot_minutes=minutes)
    with engine.begin() as connection:
        world.rules(connection, practice.agenda, (6, 7), starts_at, ends_at, **rule)


def test_hours_that_do_not_exist_are_left_out_and_counted(engine: sa.Engine) -> None:
    _night(engine, "01:00", "04:00", 30)
    report = slots.generate(engine, datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert w.slots(engine, "s.local_date = '2026-03-29'") == [
        ("2026-03-29 01:00", "01:30"),
        ("2026-03-29 01:30", "03:00"),
        ("2026-03-29 03:00", "03:30"),
        ("2026-03-29 03:30", "04:00"),
    ]
    assert report.figures["slots_in_the_hour_that_is_missing"] == 2
    assert slots.generate(engine, datetime(2026, 3, 28, 12, tzinfo=UTC)).outcome is Outcome.NOTHING_TO_DO


def test_a_slot_over_the_gap_lasts_its_minutes_and_its_successor_gives_way(engine: sa.Engine) -> None:
    _night(engine, "00:20", "04:20", 40)
    slots.generate(engine, datetime(2026, 3, 28, 12, tzinfo=UTC))
    with engine.connect() as connection:
        minutes = connection.scalars(sa.text("SELECT DISTINCT extract(epoch FROM ends_at - starts_at) / 60 FROM slot"))
        assert list(minutes) == [40]
    starts = [start for start, _ in w.slots(engine, "s.local_date = '2026-03-29'")]
    assert starts == ["2026-03-29 00:20", "2026-03-29 01:00", "2026-03-29 01:40", "2026-03-29 03:40"]


def test_hours_that_exist_twice_are_made_once_the_first_time(engine: sa.Engine) -> None:
    _night(engine, "01:30", "03:30", 30)
    report = slots.generate(engine, datetime(2026, 10, 24, 12, tzinfo=UTC))
    with engine.connect() as connection:
        instants = list(
            connection.scalars(sa.text("SELECT starts_at FROM slot WHERE local_date = '2026-10-25' ORDER BY 1"))
        )
    assert [instant.astimezone(UTC).strftime("%d %H:%M") for instant in instants] == [
        "24 23:30",
        "25 00:00",
        "25 00:30",
        "25 02:00",
    ]
    assert report.figures["slots_in_the_hour_that_comes_twice"] == 2


def test_morning_slots_keep_their_wall_time_across_the_change(engine: sa.Engine) -> None:
    w.practice(engine, weekdays=(6, 7, 1))
    slots.generate(engine, datetime(2026, 3, 27, 12, tzinfo=UTC))
    for day in ("2026-03-28", "2026-03-29", "2026-03-30"):
        assert w.slots(engine, f"s.local_date = '{day}'")[0] == (f"{day} 09:00", "09:30")


def test_a_turn_over_midnight_belongs_to_two_days(engine: sa.Engine) -> None:
    _night(engine, "22:00", "01:00", 60, crosses_midnight=True)
    slots.generate(engine, AS_OF)
    assert w.slots(engine, "s.local_date BETWEEN '2026-03-14' AND '2026-03-16'") == [
        ("2026-03-14 22:00", "23:00"),
        ("2026-03-14 23:00", "00:00"),
        ("2026-03-15 00:00", "01:00"),
        ("2026-03-15 22:00", "23:00"),
        ("2026-03-15 23:00", "00:00"),
        ("2026-03-16 00:00", "01:00"),
    ]
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO


def test_leap_day_and_year_end(engine: sa.Engine) -> None:
    w.practice(engine, weekdays=(1, 2, 3, 4, 5, 6, 7))
    slots.generate(engine, datetime(2027, 12, 15, 12, tzinfo=UTC))
    days = {start[:10] for start, _ in w.slots(engine)}
    assert {"2027-12-31", "2028-01-01", "2028-02-29", "2028-03-01"} <= days


def test_a_duration_that_does_not_divide_drops_the_last_and_says_so(engine: sa.Engine) -> None:
    w.practice(engine, slot_minutes=50, horizon_days=2)
    report = slots.generate(engine, rome("2026-03-10", "00:00"))
    assert [start for start, _ in w.slots(engine)][:4] == [
        "2026-03-10 09:00",
        "2026-03-10 09:50",
        "2026-03-10 10:40",
        "2026-03-10 11:30",
    ]
    assert report.figures["slots_too_long_for_their_turn"] == 2


def test_every_second_week_counts_from_the_rule(engine: sa.Engine) -> None:
    practice = w.practice(engine, weekdays=(), horizon_days=28)
    with engine.begin() as connection:
        world.rules(connection, practice.agenda, (3,), every_weeks=2, valid_from=date(2026, 3, 9))
    slots.generate(engine, AS_OF)
    assert sorted({start[:10] for start, _ in w.slots(engine)}) == ["2026-03-11", "2026-03-25"]


# Bad input: that agenda or clinic is named, the rest is done.


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("no_rules", "DELETE FROM agenda_rule WHERE agenda_id = :agenda"),
        ("end_before_start", "UPDATE agenda_rule SET starts_at = '13:00', ends_at = '09:00' WHERE agenda_id = :agenda"),
        (
            "overlapping_rules",
            """INSERT INTO agenda_rule (agenda_id, weekday, starts_at, ends_at, valid_from)
            VALUES (:agenda, 3, '12:30', '14:00', '2026-01-01')""",
        ),
    ],
)
def test_one_senseless_agenda_is_named_and_stops_nobody(engine: sa.Engine, code: str, spoil: str) -> None:
    bad = w.practice(engine)
    with engine.begin() as connection:
        good = world.agenda(connection, bad.clinic, bad.location, specialist_id=bad.specialist)
        connection.execute(sa.text(spoil), {"agenda": bad.agenda})
    report = slots.generate(engine, AS_OF)
    assert report.outcome is Outcome.PARTIAL
    assert report.counts.failed == 1
    (reason,) = report.reasons
    assert reason.code == code
    assert f"({bad.agenda})" in teller().reason(reason)
    spoiled = w.slots(engine, f"agenda_id = {bad.agenda}")
    if code == "overlapping_rules":
        assert {date.fromisoformat(start[:10]).isoweekday() for start, _ in spoiled} == {1, 2, 4, 5}
    else:
        assert spoiled == []
    assert w.slots(engine, f"agenda_id = {good}") != []


def test_an_unknown_time_zone_fails_that_clinic_only(engine: sa.Engine) -> None:
    w.practice(engine)
    with engine.begin() as connection:
        other = world.practice(connection, "MI01")
        connection.execute(sa.text("UPDATE clinic SET time_zone = 'Europe/Roma' WHERE id = :id"), {"id": other.clinic})
    report = slots.generate(engine, AS_OF)
    assert report.outcome is Outcome.PARTIAL
    assert [(reason.code, reason.clinic) for reason in report.reasons] == [("unknown_time_zone", "MI01")]
    assert "Europe/Roma" in teller().reason(report.reasons[0])
    assert report.counts.created > 0


def test_a_gap_between_validities_is_told(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    w.run(engine, "UPDATE agenda_rule SET valid_to = '2026-03-31'")
    with engine.begin() as connection:
        world.rules(connection, practice.agenda, valid_from=date(2026, 4, 15))
    report = slots.generate(engine, AS_OF)
    assert report.outcome is Outcome.OK
    (reason,) = report.reasons
    assert reason.code == "validity_gap"
    assert re.search(r"01/04/2026 e il 14/04/2026", teller().reason(reason))


@pytest.mark.parametrize(
    ("last", "code"), [("2026-04-08", "turns_end"), ("2026-04-09", None), ("2026-03-06", "turns_ended")]
)
def test_the_end_of_the_last_turn_is_told_thirty_days_ahead(engine: sa.Engine, last: str, code: str | None) -> None:
    practice = w.practice(engine)
    with engine.begin() as connection:
        past = world.agenda(connection, practice.clinic, practice.location, specialist_id=practice.specialist)
        connection.execute(
            sa.text("UPDATE agenda_rule SET valid_to = :last WHERE agenda_id = :id"), {"last": last, "id": past}
        )
    report = slots.generate(engine, AS_OF)
    assert [reason.code for reason in report.reasons] == ([code] if code else [])
    with engine.connect() as connection:
        through = connection.execute(
            sa.text("SELECT generated_through, derived_through FROM agenda_state WHERE agenda_id = :id"), {"id": past}
        ).one()
    friday = {"turns_ended": None}.get(code or "", date.fromisoformat(last))
    assert through == (friday, date(2026, 6, 7))
    w.run(engine, "UPDATE agenda SET valid_to = :last WHERE id = :id", last=last, id=past)
    assert slots.generate(engine, AS_OF).reasons == (), "an agenda that was given its end needs no word"


def test_a_service_longer_than_every_turn_is_told(engine: sa.Engine) -> None:
    practice = w.practice(engine, horizon_days=7)
    w.run(engine, "UPDATE service SET duration_minutes = 250 WHERE id = :id", id=practice.service)
    report = slots.generate(engine, AS_OF)
    (reason,) = report.reasons
    assert (report.outcome, reason.code) == (Outcome.OK, "service_too_long")
    assert "4 ore e 10 minuti" in teller().reason(reason)
    with engine.begin() as connection:
        world.rules(connection, practice.agenda, (7,), "21:00", "01:10", crosses_midnight=True)
    assert slots.generate(engine, AS_OF).reasons == ()


def test_an_agenda_that_ended_is_not_behind(engine: sa.Engine) -> None:
    w.practice(engine)
    w.run(engine, "UPDATE agenda_rule SET valid_to = '2026-03-20'")
    slots.generate(engine, AS_OF)
    with engine.connect() as connection:
        assert calendar_checks.agendas_behind(connection, AS_OF).count == 0
        assert calendar_checks.agendas_behind(connection, AS_OF + timedelta(days=4)).count == 1


def test_one_day_of_overlapping_turns_leaves_the_others(engine: sa.Engine) -> None:
    practice = w.practice(engine, weekdays=(4,))
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        once = {"valid_from": date(2026, 4, 16), "valid_to": date(2026, 4, 16)}
        world.rules(connection, practice.agenda, (4,), "12:30", "14:00", **once)
        connection.execute(sa.text("UPDATE agenda SET capacity = 2"))
    report = slots.generate(engine, AS_OF)
    assert (report.outcome, report.counts.failed) == (Outcome.PARTIAL, 1)
    assert "16/04/2026 12:30" in teller().reason(report.reasons[0])
    with engine.connect() as connection:
        left = connection.execute(
            sa.text("SELECT local_date, count(*) FROM slot WHERE capacity = 1 GROUP BY local_date")
        ).all()
    assert [tuple(row) for row in left] == [(date(2026, 4, 16), 8)]
    again = slots.generate(engine, AS_OF)
    assert again.counts.changed == 0


def test_an_unknown_clinic_is_named(engine: sa.Engine) -> None:
    report = slots.generate(engine, AS_OF, clinic="XX99")
    assert report.outcome is Outcome.FAILED
    assert "XX99" in teller().reason(report.reasons[0])


# Booked and held slots.


def test_a_booked_slot_outside_the_new_rules_becomes_an_orphan_and_comes_back(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    booked = w.booked(engine, practice, rome("2026-03-12", "12:30"))
    w.run(engine, "UPDATE agenda_rule SET ends_at = '12:00'")
    slots.generate(engine, AS_OF)
    assert world.approve(engine, AS_OF) == [Outcome.PARTIAL]
    assert w.slots(engine, "state = 'orphan'") == [("2026-03-12 12:30", "13:00")]
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO
    w.run(engine, "UPDATE agenda_rule SET ends_at = '13:00'")
    slots.generate(engine, AS_OF)
    with engine.connect() as connection:
        assert connection.execute(
            sa.text("SELECT s.state, o.state FROM slot s JOIN orphan o ON o.slot_id = s.id WHERE s.id = :id"),
            {"id": booked},
        ).all() == [("free", "resolved")]


def test_no_new_slot_overlaps_a_booked_one(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    booked = w.booked(engine, practice, rome("2026-03-12", "09:30"))
    w.run(engine, "UPDATE agenda SET slot_minutes = 40")
    slots.generate(engine, AS_OF)
    world.approve(engine, AS_OF)
    day = w.slots(engine, "s.local_date = '2026-03-12' AND state <> 'retired'")
    # 09:00-09:40 and 09:40-10:20 would meet the booking of 09:30-10:00
    assert day == [
        ("2026-03-12 09:30", "10:00"),
        ("2026-03-12 10:20", "11:00"),
        ("2026-03-12 11:00", "11:40"),
        ("2026-03-12 11:40", "12:20"),
        ("2026-03-12 12:20", "13:00"),
    ]
    with engine.connect() as connection:
        row = connection.execute(sa.text("SELECT ends_at - starts_at, state FROM slot WHERE id = :id"), {"id": booked})
        assert row.one() == (timedelta(minutes=30), "orphan")


def test_a_live_hold_protects_and_an_expired_one_does_not(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        ids = dict(
            connection.execute(
                sa.text("SELECT to_char(starts_at, 'HH24:MI'), id FROM slot WHERE local_date = '2026-03-12'")
            ).all()
        )
        world.hold(connection, practice.clinic, ids["11:00"])
        world.hold(
            connection,
            practice.clinic,
            ids["11:30"],
            created_at=AS_OF - timedelta(minutes=20),
            expires_at=AS_OF - timedelta(minutes=10),
        )
    w.run(engine, "UPDATE agenda_rule SET ends_at = '12:00'")
    slots.generate(engine, AS_OF)
    world.approve(engine, AS_OF)
    assert w.slots(engine, "s.local_date = '2026-03-12' AND s.state = 'orphan'") == [("2026-03-12 12:00", "12:30")]
    assert ("2026-03-12 12:30", "13:00") in w.slots(engine, "s.state = 'retired'")


def test_an_orphan_whose_booking_is_gone_is_retired_and_settled(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    w.booked(engine, practice, rome("2026-03-12", "12:30"))
    w.run(engine, "UPDATE agenda_rule SET ends_at = '12:00'")
    slots.generate(engine, AS_OF)
    world.approve(engine, AS_OF)
    w.run(engine, "DELETE FROM seat")
    assert slots.generate(engine, AS_OF).counts.retired == 1
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT state FROM orphan")) == "resolved"


def test_a_retired_slot_comes_back_with_its_id(engine: sa.Engine) -> None:
    w.practice(engine)
    slots.generate(engine, AS_OF)
    before = _ids(engine)
    w.run(engine, "UPDATE agenda_rule SET ends_at = '12:30'")
    slots.generate(engine, AS_OF)
    assert len(_ids(engine)) < len(before)
    w.run(engine, "UPDATE agenda_rule SET ends_at = '13:00'")
    slots.generate(engine, AS_OF)
    assert _ids(engine) == before


def _ids(engine: sa.Engine) -> set[int]:
    with engine.connect() as connection:
        return set(connection.scalars(sa.text("SELECT id FROM slot WHERE state = 'free'")))


# The guard.


def test_too_many_unexplained_retirements_wait_for_a_person(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    before = _ids(engine)
    w.run(engine, "UPDATE agenda_rule SET ends_at = '11:00'")
    report = slots.generate(engine, AS_OF)
    assert report.outcome is Outcome.PARTIAL
    assert [reason.code for reason in report.reasons] == [slots.RETIREMENT_GUARD]
    assert f"({practice.agenda})" in teller().reason(report.reasons[0])
    assert _ids(engine) == before
    assert report.counts.waiting == 64 * 4  # the last four of each whole day
    assert world.approve(engine, AS_OF) == [Outcome.OK]
    assert len(before) - len(_ids(engine)) == 64 * 4
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO


def test_an_agenda_switched_off_is_explained_and_goes_through(engine: sa.Engine) -> None:
    practice = w.practice(engine)
    slots.generate(engine, AS_OF)
    w.booked(engine, practice, rome("2026-03-12", "12:30"))
    w.run(engine, "UPDATE specialist SET ends_on = '2026-03-11'")
    report = slots.generate(engine, AS_OF)
    assert (report.outcome, report.counts.waiting) == (Outcome.PARTIAL, 1)
    assert {start[:10] for start, _ in w.slots(engine)} == {"2026-03-10", "2026-03-11"}
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT cause FROM orphan")) == "agenda_ended"


# Closures.
