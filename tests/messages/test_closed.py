"""Whom a closure touches is told once, after somebody has looked, with the new place that is proposed."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import offers, places
from polydesk_dagster.clinic.messages import calls, closed, service, visits
from polydesk_dagster.clinic.messages.links import Reach
from polydesk_dagster.errors import PermanentError
from tests import world
from tests.messages.world import AS_OF, booked, gateway, move

DAY = "2026-03-18"


def closes(engine: sa.Engine) -> tuple[world.Practice, list[int]]:
    """Two bookings of a day that a closure takes away; the day after has one place."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        patients = [world.patient(connection, first_name=name, email=None) for name in ("Anna", "Zeno")]
        numbers = [
            booked(connection, practice, at, DAY, patient_id=patient)
            for at, patient in zip(("10:00", "11:00"), patients, strict=True)
        ]
        connection.execute(
            sa.text("""
                WITH lost AS (UPDATE slot SET state = 'orphan' WHERE id IN (SELECT slot_id FROM seat) RETURNING id)
                INSERT INTO orphan (slot_id, cause, detected_at) SELECT id, 'closure', :at FROM lost"""),
            {"at": AS_OF},
        )
        world.slot(connection, practice.agenda, world.rome("2026-03-19", "10:30"))
    return practice, numbers


def offered(engine: sa.Engine) -> int:
    with engine.begin() as connection:
        shown, _ = offers.propose(connection, AS_OF)
        assert shown.plan_id is not None
        changes.apply(connection, shown.plan_id, as_of=AS_OF, actor="desk:anna")
    return shown.plan_id


def test_each_is_told_once_with_the_place_that_is_kept_for_her(engine: sa.Engine) -> None:
    _, numbers = closes(engine)
    with engine.begin() as connection:
        assert [each.proposed for each in closed.untold(connection, AS_OF)] == [None, None]
    offered(engine)
    with engine.begin() as connection:
        first, second = closed.untold(connection, AS_OF)
        assert [first.appointment_id, second.appointment_id] == numbers
        assert first.notice.endswith(
            "saremo chiusi. Le teniamo un posto giovedì 19 marzo alle 10:30, fino a giovedì 12 marzo alle 10:00."
        )
        assert second.notice.endswith("saremo chiusi.")
        assert "ardiolog" not in first.notice
        with pytest.raises(PermanentError):
            closed.tell(connection, [first], AS_OF)
        assert closed.tell(connection, [first, second], AS_OF) == 2
        assert closed.untold(connection, AS_OF) == []
    with gateway() as (simulator, providers):
        for minutes in (0, 20):
            service.send(engine, AS_OF + timedelta(minutes=minutes), "reminder", providers)
        texts = sorted(message.text for message in simulator.sent)
    assert len(texts) == 2
    assert "il suo appuntamento di mercoledì 18 marzo alle 10:00 non può tenersi" in texts[0]
    with engine.connect() as connection:
        assert calls.to_make(connection, AS_OF) == []


def test_who_was_moved_meanwhile_is_not_told(engine: sa.Engine) -> None:
    _, numbers = closes(engine)
    with engine.begin() as connection:
        closed.tell(connection, closed.untold(connection, AS_OF), AS_OF)
        move(connection, numbers[0], world.rome("2026-03-19", "10:30"))
        connection.execute(
            sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = :at WHERE id = :id"),
            {"at": AS_OF, "id": numbers[1]},
        )
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers, clinic="BO01")
        assert simulator.sent == []


def test_she_takes_her_place_by_the_link_and_only_by_pressing(engine: sa.Engine) -> None:
    _, (first, _) = closes(engine)
    offered(engine)
    with engine.begin() as connection:
        closed.tell(connection, closed.untold(connection, AS_OF), AS_OF)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers, reach=Reach("https://polydesk.example"))
        texts = sorted(message.text for message in simulator.sent)
    assert "Per accettare: https://polydesk.example/v/" in texts[0]
    assert "polydesk.example" not in texts[1]
    link = texts[0].partition("/v/")[2].split()[0]
    with engine.begin() as connection:
        told = visits.look(connection, link, AS_OF)
        assert told is not None
        assert (told.offered, told.confirmable, told.visits[0].lost) == (True, False, True)
        visits.act(connection, link, "confirm", AS_OF)
        told = visits.act(connection, link, "take", AS_OF)
        assert told == visits.act(connection, link, "take", AS_OF)
        assert told is not None
        (visit,) = told.visits
        assert visit.offer is not None
        assert (visit.offer.state, visit.offer.start.at) == ("taken", world.rome("2026-03-19", "10:30"))
        rows = connection.execute(sa.text("SELECT id, starts_at, start_version FROM appointment ORDER BY id"))
        assert [row.start_version for row in rows] == [2, 1]
        said = connection.execute(sa.text("SELECT appointment_id, start_version, said FROM appointment_answer"))
        assert [tuple(row) for row in said] == [(first, 2, "confirmed")]


def test_who_presses_too_late_is_told_so_and_who_cannot_have_it_is_telephoned(engine: sa.Engine) -> None:
    _, (first, _) = closes(engine)
    offered(engine)
    with engine.begin() as connection:
        closed.tell(connection, closed.untold(connection, AS_OF), AS_OF)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers, reach=Reach("https://polydesk.example"))
        (link,) = (text.text.partition("/v/")[2].split()[0] for text in simulator.sent if "/v/" in text.text)
    with engine.begin() as connection:
        late = visits.act(connection, link, "take", AS_OF + places.TERM)
        assert late is not None
        assert late.visits[0].offer is not None
        assert late.visits[0].offer.state == "over"
        connection.execute(sa.text("UPDATE agenda SET active = false"))
        gone = visits.act(connection, link, "take", AS_OF)
        assert gone is not None
        assert gone.visits[0].said == {"other_time"}
        assert [call.appointment_id for call in calls.to_make(connection, AS_OF)] == [first]


def told(engine: sa.Engine, as_of: datetime = AS_OF) -> list[str]:
    with engine.begin() as connection:
        found = closed.untold(connection, as_of)
        assert closed.tell(connection, found, as_of) == len(found)
        assert closed.untold(connection, as_of) == []
    return [each.notice for each in found]


def test_a_place_that_is_kept_later_is_told_once_and_the_loss_no_second_time(engine: sa.Engine) -> None:
    closes(engine)
    assert all(notice.endswith("saremo chiusi.") for notice in told(engine))
    plan = offered(engine)
    with engine.connect() as connection:
        assert closed.waiting(connection, AS_OF).total() == 1
    (later,) = told(engine)
    assert later == (
        "per il suo appuntamento di mercoledì 18 marzo alle 10:00, che non può tenersi, le teniamo un posto "
        "giovedì 19 marzo alle 10:30, fino a giovedì 12 marzo alle 10:00."
    )
    with gateway() as (simulator, providers):
        for minutes in (0, 20):
            service.send(engine, AS_OF + timedelta(minutes=minutes), "reminder", providers)
        texts = [message.text for message in simulator.sent]
    assert sum("le teniamo un posto" in text for text in texts) == 1
    assert len(texts) == 3
    with engine.begin() as connection:
        changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")
        assert closed.untold(connection, AS_OF) == []
    offered(engine)
    assert len(told(engine)) == 1, "another place is told once, too"


def test_nobody_is_promised_a_place_that_was_taken_back_before_it_was_told(engine: sa.Engine) -> None:
    closes(engine)
    plan = offered(engine)
    assert len(told(engine)) == 2
    with engine.begin() as connection:
        changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        (text,) = (message.text for message in simulator.sent)
    assert "posto" not in text
    assert len(told(engine)) == 1, "she still has to be told that her time is lost"


def test_nobody_is_told_of_a_loss_that_is_over(engine: sa.Engine) -> None:
    closes(engine)
    assert len(told(engine)) == 2
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE slot SET state = 'free' WHERE state = 'orphan'"))
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert simulator.sent == []
    with engine.connect() as connection:
        reasons = connection.scalars(sa.text("SELECT reason FROM message")).all()
    assert reasons == ["not_lost"] * 2


def test_who_was_told_of_a_loss_that_is_over_is_telephoned_once(engine: sa.Engine) -> None:
    """By a message or by the desk's word; not who was told nothing, nor where the desk kept the visit."""
    _, (told_one, kept_one) = closes(engine)
    hour = timedelta(hours=1)

    def run(hours: int) -> list[tuple[int, str]]:
        with gateway() as (_, providers):
            service.send(engine, AS_OF + hours * hour, "reminder", providers)
        with engine.connect() as connection:
            return [(each.appointment_id, each.reason) for each in calls.to_make(connection, AS_OF)]

    def orphans(state: str, hours: int) -> None:
        with engine.begin() as connection:
            if state == "free":
                connection.execute(sa.text("UPDATE slot SET state = 'free' WHERE state = 'orphan'"))
                changed = sa.text("UPDATE orphan SET resolved_at = :at WHERE resolved_at IS NOT NULL")
                connection.execute(changed, {"at": AS_OF + hours * hour})
                return
            connection.execute(
                sa.text("""
                    WITH lost AS (UPDATE slot SET state = 'orphan' WHERE id IN (SELECT slot_id FROM seat) RETURNING id)
                    INSERT INTO orphan (slot_id, cause, detected_at) SELECT id, 'closure', :at FROM lost"""),
                {"at": AS_OF + hours * hour},
            )

    assert len(told(engine)) == 2
    with engine.begin() as connection:
        word = """INSERT INTO orphan_word (orphan_id, appointment_id, state, said_at)
                  SELECT o.id, t.appointment_id, 'kept', :at FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
                  WHERE t.appointment_id = :booking"""
        connection.execute(sa.text(word), {"at": AS_OF, "booking": kept_one})
    assert run(0) == []
    orphans("free", 1)
    assert [run(2), run(3)] == [[(told_one, "stands_again")]] * 2
    orphans("orphan", 4)
    assert run(5) == [], "it is lost again: nothing stands that she could be told of"
    orphans("free", 6)
    assert run(7) == [(told_one, "stands_again")]
    with engine.begin() as connection:
        (call,) = calls.to_make(connection, AS_OF)
        assert calls.done(connection, call.id, who="anna", outcome="reached", at=AS_OF + 8 * hour)
    assert run(9) == []


def test_only_a_closed_clinic_is_said_to_be_closed_and_another_place_is_named(engine: sa.Engine) -> None:
    practice, _ = closes(engine)
    with engine.begin() as connection:
        closure = world.closure(connection, DAY, layer="agenda", agenda_id=practice.agenda)
        connection.execute(sa.text("UPDATE orphan SET closure_id = :id"), {"id": closure})
        there = world.location(connection, practice.clinic, name="Sede Mazzini")
        other = world.agenda(connection, practice.clinic, there, service_id=practice.service)
        connection.execute(sa.text("UPDATE slot SET agenda_id = :id WHERE state = 'free'"), {"id": other})
    offered(engine)
    with engine.connect() as connection:
        first, second = (each.notice for each in closed.untold(connection, AS_OF))
    assert "chiusi" not in first + second
    assert "giovedì 19 marzo alle 10:30 (Sede Mazzini), fino a" in first
