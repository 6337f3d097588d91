"""The desk closes: whom it touches, with a place for each, before anything is done; then as a plan that goes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.calendar import desk_closures, rule_edits, slots
from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.world import AS_OF, rome

THURSDAY = date(2026, 3, 12)
FAIR = Closure("Fiera", THURSDAY, THURSDAY)


def _book(engine: sa.Engine, practice: world.Practice, start: datetime, patient: int | None = None) -> int:
    with engine.begin() as connection:
        slot = connection.scalar(
            sa.text("SELECT id FROM slot WHERE agenda_id = :agenda AND starts_at = :start"),
            {"agenda": practice.agenda, "start": start},
        )
        assert slot is not None
        who = world.patient(connection) if patient is None else patient
        return world.appointment(connection, slot, service_id=practice.service, patient_id=who)


def _state(engine: sa.Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("""
                SELECT s.id, s.state, o.cause FROM slot s LEFT JOIN orphan o ON o.slot_id = s.id AND resolved_at IS NULL
                ORDER BY s.id""")
        )
        return [tuple(row) for row in rows]


def test_whom_a_closure_touches_is_shown_with_a_place_for_each_and_nothing_is_done(
    engine: sa.Engine, practice: world.Practice
) -> None:
    first, second = (_book(engine, practice, rome(THURSDAY, at)) for at in ("09:00", "12:30"))
    before = _state(engine)
    shown = desk_closures.propose(engine, FAIR, as_of=AS_OF)
    again = desk_closures.propose(engine, FAIR, as_of=AS_OF)
    assert _state(engine) == before
    assert shown.touched == again.touched
    assert [each.appointment_id for each in shown.touched] == [first, second]
    places = [each.place for each in shown.touched]
    # the evening before is nearest to the first; it must still be a day ahead of ten o'clock on Tuesday
    assert [place and place.starts_at.astimezone(UTC) for place in places] == [
        rome("2026-03-11", "12:30"),
        rome("2026-03-13", "09:00"),
    ]
    assert (shown.report.outcome, shown.report.counts.retired, shown.report.preview) == (Outcome.PARTIAL, 0, True)
    assert "Rossi" not in str(shown.report)
    assert shown.report.plan_id is not None
    with engine.begin() as connection:
        applied = changes.apply(connection, shown.report.plan_id, as_of=AS_OF, actor="desk:anna")
    assert applied.outcome is Outcome.PARTIAL
    assert [cause for _, state, cause in _state(engine) if state == "orphan"] == ["closure", "closure"]


def test_two_bookings_never_go_to_one_place_nor_a_patient_where_she_is_elsewhere(
    engine: sa.Engine, practice: world.Practice
) -> None:
    with engine.begin() as connection:
        other = world.agenda(
            connection, practice.clinic, practice.location, services=[practice.service], service_id=practice.service
        )
    slots.generate(engine, AS_OF)
    touched = [_book(engine, practice, rome(THURSDAY, f"{hour:02}:00")) for hour in (9, 10, 11, 12)]
    _book(engine, replace(practice, agenda=other), rome("2026-03-13", "09:00"), practice.patient)
    _book(engine, practice, rome(THURSDAY, "12:30"), practice.patient)
    shown = desk_closures.propose(engine, FAIR, as_of=AS_OF)
    places = [each.place for each in shown.touched if each.place is not None]
    assert len(places) == len(touched) + 1
    assert len({place.slot_id for place in places}) == len(places)
    last = shown.touched[-1].place
    assert last is not None
    assert last.starts_at != rome("2026-03-13", "09:00")


def test_a_closure_is_taken_back_and_lifted(engine: sa.Engine, practice: world.Practice) -> None:
    _book(engine, practice, rome(THURSDAY, "09:00"))
    before = _state(engine)
    added = desk_closures.add(engine, FAIR, as_of=AS_OF, actor="desk:anna")
    closed = _state(engine)
    assert [state for _, state, _ in closed].count("retired") == 7
    assert added.plan_id is not None
    with engine.begin() as connection:
        assert changes.undo(connection, added.plan_id, as_of=AS_OF, actor="desk:anna").outcome is Outcome.OK
    assert _state(engine) == before
    desk_closures.add(engine, FAIR, as_of=AS_OF, actor="desk:anna")
    with engine.connect() as connection:
        closure = connection.scalar(sa.text("SELECT id FROM closure"))
        assert closure is not None
        assert desk_closures.standing(connection, AS_OF) == {closure: FAIR}
        assert desk_closures.standing(connection, AS_OF, "XX99") == {}
    assert desk_closures.lift(engine, closure, as_of=AS_OF, actor="desk:anna", preview=True).preview
    assert _state(engine) == closed
    assert desk_closures.lift(engine, closure, as_of=AS_OF, actor="desk:anna").outcome is Outcome.OK
    assert _state(engine) == before
    assert desk_closures.lift(engine, closure, as_of=AS_OF, actor="desk:anna").outcome is Outcome.REFUSED
    with engine.connect() as connection:
        assert desk_closures.standing(connection, AS_OF) == {}


def test_only_some_hours_of_one_agenda(engine: sa.Engine, practice: world.Practice) -> None:
    with engine.begin() as connection:
        world.agenda(connection, practice.clinic, practice.location, specialist_id=practice.specialist)
    slots.generate(engine, AS_OF)
    closure = replace(FAIR, from_time=time(9), to_time=time(11), agenda=practice.agenda)
    desk_closures.add(engine, closure, as_of=AS_OF, actor="desk:anna")
    with engine.connect() as connection:
        retired = sa.text("SELECT agenda_id, count(*) FROM slot WHERE state = 'retired' GROUP BY 1")
        assert [tuple(row) for row in connection.execute(retired)] == [(practice.agenda, 4)]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"name": " "}, "closure_without_name"),
        ({"date_to": date(2026, 3, 11)}, "closure_ends_before_it_starts"),
        ({"from_time": time(9)}, "closure_half_hours"),
        ({"from_time": time(9), "to_time": time(9)}, "closure_ends_before_it_starts"),
        ({"clinic": "XX99"}, "closure_nowhere"),
        ({"agenda": 999}, "closure_nowhere"),
        ({"date_from": date(2025, 3, 12), "date_to": date(2025, 3, 12)}, "closure_is_past"),
    ],
)
def test_what_is_no_closure_is_refused_by_name(
    engine: sa.Engine, practice: world.Practice, wrong: dict[str, object], code: str
) -> None:
    closure = replace(FAIR, **wrong)
    for report in (
        desk_closures.propose(engine, closure, as_of=AS_OF).report,
        desk_closures.add(engine, closure, as_of=AS_OF, actor="desk:anna"),
    ):
        assert (report.outcome, [reason.code for reason in report.reasons]) == (Outcome.REFUSED, [code])


def test_whom_edited_turns_touch_is_shown_before_the_slots_follow_them(
    engine: sa.Engine, practice: world.Practice
) -> None:
    first = _book(engine, practice, rome(THURSDAY, "09:00"))
    later = _book(engine, practice, rome(THURSDAY, "12:00"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE agenda_rule SET starts_at = '10:00' WHERE weekday = 4"))
    before = _state(engine)
    shown = rule_edits.propose(engine, "BO01", as_of=AS_OF)
    assert _state(engine) == before
    assert [each.appointment_id for each in shown.touched] == [first]
    assert shown.touched[0].place is not None
    assert shown.report.figures["bookings_to_move"] == 1
    assert shown.report.plan_id is not None
    with engine.begin() as connection:
        changes.apply(connection, shown.report.plan_id, as_of=AS_OF, actor="desk:anna")
    assert [cause for _, state, cause in _state(engine) if state == "orphan"] == ["rule_changed"]
    # past the guard: all turns of a weekday end, and whom that touches is shown although its plan waits for a person
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM agenda_rule WHERE weekday <> 1"))
    shown = rule_edits.propose(engine, "BO01", as_of=AS_OF)
    assert [each.appointment_id for each in shown.touched] == [later]
    assert rule_edits.propose(engine, "XX99", as_of=AS_OF).report.outcome is Outcome.FAILED


def test_what_is_closed_already_is_not_closed_twice(engine: sa.Engine, practice: world.Practice) -> None:
    once, again = (desk_closures.propose(engine, FAIR, as_of=AS_OF).report.plan_id for _ in range(2))
    assert once is not None
    assert again is not None
    with engine.begin() as connection:
        assert changes.apply(connection, once, as_of=AS_OF, actor="desk:anna").outcome is Outcome.OK
    with engine.begin() as connection:
        assert changes.apply(connection, again, as_of=AS_OF, actor="desk:berta").outcome is Outcome.REFUSED
    with engine.connect() as connection:
        (number,) = desk_closures.standing(connection, AS_OF)
    renamed = replace(FAIR, name="Fiera campionaria")
    for report in (
        desk_closures.propose(engine, renamed, as_of=AS_OF).report,
        desk_closures.add(engine, renamed, as_of=AS_OF, actor="desk:berta"),
    ):
        assert (report.outcome, report.reasons[0].code) == (Outcome.REFUSED, "closure_stands")
        assert report.reasons[0].values == {"closure": number}
    for other in (replace(FAIR, agenda=practice.agenda), replace(FAIR, from_time=time(9), to_time=time(11))):
        assert desk_closures.add(engine, other, as_of=AS_OF, actor="desk:anna").outcome is Outcome.OK
    desk_closures.lift(engine, number, as_of=AS_OF, actor="desk:anna")
    assert desk_closures.add(engine, FAIR, as_of=AS_OF, actor="desk:anna").outcome is Outcome.OK
