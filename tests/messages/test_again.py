"""A message sent again is a person's doing: signed, once, and judged like any other."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import again, service, story
from polydesk_dagster.errors import PermanentError
from tests import world
from tests.messages.world import AS_OF, booked, gateway

LATER = AS_OF + timedelta(minutes=30)
WHO = {"who": "Ada", "why": "la paziente non lo trova più"}


def test_a_message_goes_again_once_and_who_wanted_it_is_known(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        number = booked(connection, world.practice(connection), "12:00")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        with engine.begin() as connection:
            first = connection.scalar(sa.text("SELECT id FROM message"))
            second = again.resend(connection, first, at=LATER, **WHO)
        for _ in range(2):
            with engine.begin() as connection, pytest.raises(PermanentError):
                again.resend(connection, first, at=LATER, **WHO)
        for minutes in range(3):
            service.send(engine, LATER + timedelta(minutes=minutes), "reminder", providers)
        assert [message.text for message in simulator.sent] == [simulator.sent[0].text] * 2
        assert len({message.key for message in simulator.sent}) == 2
        with engine.begin() as connection:
            again.resend(connection, second, at=LATER, **WHO)
            steps = [step for step in story.of(connection, "appointment", number) if step.what == "resent"]
        assert steps[0].code == "Ada: la paziente non lo trova più"
        service.send(engine, LATER + timedelta(minutes=5), "reminder", providers)
        assert len(simulator.sent) == 3


def test_it_is_judged_like_any_other(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        booked(connection, world.practice(connection), "12:00")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        with engine.begin() as connection:
            again.resend(connection, connection.scalar(sa.text("SELECT id FROM message")), at=LATER, **WHO)
            connection.execute(
                sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = :at"), {"at": LATER}
            )
        service.send(engine, LATER, "reminder", providers)
        assert len(simulator.sent) == 1


@pytest.mark.parametrize("state", ["planned", "retry", "unknown"])
def test_what_has_not_ended_or_has_no_reason_does_not_go_again(engine: sa.Engine, state: str) -> None:
    with engine.begin() as connection:
        booked(connection, world.practice(connection), "12:00")
    with gateway() as (_, providers):
        service.send(engine, AS_OF, "reminder", providers)
    with engine.begin() as connection:
        number = connection.scalar(sa.text("SELECT id FROM message"))
        for message, who, at in (
            (number, {"who": "Ada", "why": " "}, LATER),
            (number + 1, WHO, LATER),
            (number, WHO, AS_OF + timedelta(days=3)),
        ):
            with pytest.raises(PermanentError):
                again.resend(connection, message, at=at, **who)
        connection.execute(
            sa.text("UPDATE message SET state = :state, sent_at = NULL, ask_after = NULL"), {"state": state}
        )
        with pytest.raises(PermanentError):
            again.resend(connection, number, at=LATER, **WHO)
