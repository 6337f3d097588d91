"""What people answer to a text: closed words act once, whatever order they come in, and the rest is the desk's."""

from __future__ import annotations

import itertools
from datetime import date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from polydesk_dagster.clinic.messages import calls, links, replies, saying, service, story, visits
from polydesk_dagster.clinic.messages.links import Reach
from polydesk_dagster.clinic.messages.replies import Heard, Texted, decide
from polydesk_dagster.clinic.statistics import answered
from polydesk_dagster.clinic.statistics.reading import Period
from polydesk_dagster.told import teller
from tests import world
from tests.messages.world import AS_OF, booked, gateway, move, texted

NUMBER = "+393471112223"
REACH = Reach("https://polydesk.example", replies=True)
t = teller("it")
LATER = AS_OF + timedelta(minutes=10)


class Told:
    """A patient who was reminded by a text, and the carriers."""

    def __init__(self, engine: sa.Engine, simulator: Any, providers: Any, appointments: list[int]) -> None:
        self.engine, self.simulator, self.providers, self.appointments = engine, simulator, providers, appointments

    def says(self, text: str, at: datetime = LATER, number: str = NUMBER) -> str:
        with self.engine.begin() as connection:
            return texted(connection, number, text, at)

    def answered(self, at: datetime = LATER) -> list[str]:
        """What goes out at once, and all that went out since the reminder."""
        service.answer(self.engine, at, self.providers, reach=REACH)
        return [message.text for message in self.simulator.sent[1:]]

    def state(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text("SELECT status FROM appointment ORDER BY id")))

    def said(self) -> list[tuple[str, str]]:
        with self.engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT said, via FROM appointment_answer ORDER BY id"))
            return [(row.said, row.via) for row in rows]


@pytest.fixture
def told(engine: sa.Engine, request: pytest.FixtureRequest) -> Any:
    many = getattr(request, "param", 1)
    with engine.begin() as connection:
        practice = world.practice(connection)
        patient = world.patient(connection, mobile=NUMBER, email=None)
        appointments = [
            booked(connection, practice, at, patient_id=patient) for at in ("12:00", "12:30", "09:00")[:many]
        ]
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers, reach=REACH)
        assert len(simulator.sent) == 1
        yield Told(engine, simulator, providers, appointments)


def test_one_confirms_and_the_desk_sees_it(told: Told) -> None:
    text = told.simulator.sent[0].text
    assert "Risponda 1 per confermare, 2 per disdire https://polydesk.example/v/" in text
    assert told.says("1, grazie") == "confirmed"
    assert told.says("1") == "confirmed"
    assert (told.said(), told.state(), told.answered()) == ([("confirmed", "sms")], ["booked"], [])
    with told.engine.connect() as connection:
        steps = [step.what for step in story.of(connection, "appointment", told.appointments[0])]
        assert connection.scalar(sa.text("SELECT count(*) FROM call_list")) == 0
    assert steps[-3:].count("replied") == 2
    assert "confirmed" in steps


@pytest.mark.parametrize("told", [1, 3], indirect=True)
def test_two_cancels_after_a_question_back_and_the_seat_is_free_at_once(told: Told) -> None:
    assert told.says("2") == "asked"
    assert told.says("2") == "repeated"  # before the question can have been read
    assert set(told.state()) == {"booked"}
    (question,) = told.answered()
    assert "vuole davvero disdire" in question
    assert told.answered() == [question]
    assert told.says("2", LATER + timedelta(minutes=2)) == "cancelled"
    assert set(told.state()) == {"cancelled"}
    with told.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM seat")) == 0
    assert {said for said, _ in told.said()} == {"cancelled"}
    assert "disdett" in told.answered(LATER + timedelta(minutes=3))[-1]
    assert told.says("2", LATER + timedelta(minutes=9)) == "desk"
    assert len(told.said()) == len(told.appointments)


def test_who_thinks_again_keeps_the_appointment(told: Told) -> None:
    told.says("2")
    told.answered()
    assert told.says("1", LATER + timedelta(minutes=2)) == "confirmed"
    assert told.state() == ["booked"]


def test_a_late_word_never_undoes_a_later_one(told: Told) -> None:
    told.says("2")
    told.answered()
    assert told.says("1", LATER + timedelta(minutes=5)) == "confirmed"
    assert told.says("2", LATER + timedelta(minutes=3)) == "desk"  # said before, told after
    assert told.state() == ["booked"]
    assert told.says("STOP", LATER + timedelta(minutes=6)) == "stopped"
    assert told.says("START", LATER) == "desk"
    with told.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM message_block WHERE lifted_at IS NULL")) == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_replies_in_one_round_come_to_the_same_in_any_order(told: Told, order: tuple[int, ...]) -> None:
    said = [Texted(f"r{n}", NUMBER, text, LATER + timedelta(minutes=n)) for n, text in enumerate(("2", "1", "STOP"))]
    with told.engine.begin() as connection:
        at = LATER + timedelta(minutes=9)
        replies.keep(connection, [said[n] for n in order] * 2, at)
        replies.settle(connection, at)
        found = connection.execute(sa.text("SELECT external_id, outcome FROM message_reply ORDER BY 1")).all()
    assert [tuple(row) for row in found] == [("r0", "desk"), ("r1", "confirmed"), ("r2", "stopped")]


def test_what_is_none_of_the_words_is_the_desks_to_read(told: Told) -> None:
    assert told.says("Sono in ritardo, arrivo alle 12:15") == "desk"
    assert told.says("1", number="+393479999999") == "desk"
    with told.engine.begin() as connection:
        first, second = replies.to_read(connection)
        assert (first.reason, first.clinic, first.patients) == ("free_text", "BO01", ("Mario Rossi",))
        assert (second.reason, second.clinic, second.patients) == ("nothing_to_answer", None, ())
        assert replies.handled(connection, first.id, who="Ada", at=LATER)
        assert not replies.handled(connection, first.id, who="Ada", at=LATER)
        assert [each.id for each in replies.to_read(connection)] == [second.id]
        assert replies.to_read(connection, "BO01") == []


def test_an_appointment_that_moved_meanwhile_is_not_answered_for(told: Told) -> None:
    with told.engine.begin() as connection:
        move(connection, told.appointments[0], world.rome("2026-03-12", "10:00"))
    assert (told.says("1"), told.said()) == ("desk", [])


def test_one_telephone_of_two_people_asks_the_desk(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for at in ("12:00", "12:30"):
            patient = world.patient(connection, mobile=NUMBER, email=None)
            booked(connection, practice, at, patient_id=patient)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers, reach=REACH)
        assert len(simulator.sent) == 2
    with engine.begin() as connection:
        assert texted(connection, NUMBER, "2", LATER) == "desk"
        assert [each.reason for each in replies.to_read(connection)] == ["ambiguous"]


def test_a_question_that_cannot_be_asked_goes_to_the_desk(told: Told) -> None:
    told.says("2")
    with told.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE message SET state = 'failed', reason = 'refused' WHERE kind = 'cancel_question'")
        )
    assert told.says("2", LATER + timedelta(minutes=2)) == "desk"
    assert told.state() == ["booked"]


HEARD = st.builds(
    Heard,
    id=st.just(1),
    address=st.sampled_from([None, NUMBER]),
    reading=st.sampled_from([None, "confirm", "cancel", "stop", "start"]),
    message=st.sampled_from([None, 7]),
    items=st.sampled_from([(), (1,), (1, 2)]),
    others=st.booleans(),
    asked=st.sampled_from(["no", "waiting", "sent", "failed"]),
    later=st.sampled_from([None, "confirm", "cancel", "stop", "start"]),
)


@given(HEARD)
def test_nothing_is_cancelled_without_two_words_and_whatever_is_unclear_is_read(heard: Heard) -> None:
    outcome, why = decide(heard)
    assert (outcome == "desk") == (why is not None)
    if outcome in {"confirmed", "asked", "cancelled"}:
        assert (bool(heard.items), heard.others, heard.later) == (True, False, None)
    if outcome == "cancelled":
        assert (heard.reading, heard.asked) == ("cancel", "sent")


# The link -------------------------------------------------------------------------------------------------------------


def link(told: Told) -> str:
    return str(told.simulator.sent[0].text).rpartition("/v/")[2]


def test_the_link_shows_and_says_nothing_of_the_person(told: Told) -> None:
    with told.engine.begin() as connection:
        shown = visits.look(connection, link(told), LATER)
        assert shown is not None
        assert shown.open
        assert [visit.start.at for visit in shown.visits] == [world.rome("2026-03-11", "12:00")]
        assert "Rossi" not in repr(shown)
        assert "cardiologica" not in repr(shown)
        number = links.read(links.secret(connection), link(told), links.SHOW)
        assert number is not None
        for forged in (link(told)[::-1], links.token(b"x" * 32, number, links.SHOW), "", "à"):
            assert visits.look(connection, forged, LATER) is None
            assert visits.act(connection, forged, "cancel", LATER) is None
    assert told.said() == []


def test_the_link_confirms_asks_for_another_time_and_cancels(told: Told) -> None:
    def press(verb: visits.Verb) -> visits.Visit:
        with told.engine.begin() as connection:
            after = visits.act(connection, link(told), verb, LATER)
        assert after is not None
        return after.visits[0]

    assert press("confirm").said == {"confirmed"}
    press("confirm")
    press("other_time")
    with told.engine.connect() as connection:
        (call,) = calls.to_make(connection, LATER)
        assert (call.reason, call.phones) == ("other_time", (NUMBER,))
    assert press("cancel").state == "cancelled"
    assert press("confirm").state == "cancelled"
    assert told.said() == [("confirmed", "link"), ("other_time", "link"), ("cancelled", "link")]
    assert told.state() == ["cancelled"]
    assert "disdetto" in told.answered()[-1]
    with told.engine.connect() as connection:
        assert calls.to_make(connection, LATER) == []


def test_without_tls_or_answers_a_text_promises_neither(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        booked(connection, world.practice(connection), "12:00")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
    assert simulator.sent[0].text.endswith("Per disdire: +39 051 000 0000")


# What it is good for --------------------------------------------------------------------------------------------------


def test_statistics_tell_no_shows_by_plan_and_what_people_answered(told: Told) -> None:
    day = Period(date(2026, 3, 11), date(2026, 3, 11))
    told.says("1")
    with told.engine.begin() as connection:
        practice = connection.execute(
            sa.text("SELECT clinic_id, agenda_id, service_id, patient_id FROM appointment")
        ).one()
        slots = [world.slot(connection, practice.agenda_id, world.rome("2026-03-11", at)) for at in ("15:00", "16:00")]
        given = {"service_id": practice.service_id, "patient_id": practice.patient_id}
        gone = world.appointment(connection, slots[0], **given)
        saying.note(connection, [gone], "cancelled", "sms", LATER)
        connection.execute(
            sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = :at WHERE id = :id"),
            {"at": LATER, "id": gone},
        )
        connection.execute(sa.text("UPDATE appointment SET status = 'no_show' WHERE id = :id"),
                           {"id": told.appointments[0]})  # fmt: skip
        world.appointment(connection, slots[1], **given, status="completed", created_at=LATER, seat=False)
    with told.engine.connect() as connection:
        plans, answers = answered.by_plan(connection, day), answered.by_answer(connection, day)
        assert answered.by_answer(connection, Period(date(2026, 3, 10), date(2026, 3, 10))).rows == ()
    assert {tuple(map(t.value, row[:3])) for row in plans.rows} == {("1d", "1", "1"), ("nessuno", "1", "0")}
    assert [tuple(map(t.value, row[:2])) for row in answers.rows] == [
        ("confermati", "1"), ("disdetti rispondendo", "1"), ("di questi, prenotati di nuovo", "1"),
        ("con richiesta di un altro orario", "0"),
    ]  # fmt: skip
