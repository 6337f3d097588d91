"""A carrier's codes as people are told them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import codes, service, story
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.told import LANGUAGES, teller
from tests import world
from tests.messages.world import AS_OF, booked, gateway


@pytest.mark.parametrize(
    ("channel", "code", "said"),
    [
        ("email", "550 5.1.1", "la casella o il numero non esiste (550 5.1.1)"),
        ("email", "452 4.2.2", "la casella è piena (452 4.2.2)"),
        ("email", "550 5.9.9", "la casella non esiste, o il server non accetta la nostra posta (550 5.9.9)"),
        ("email", "535", "le credenziali mancano o non valgono (535)"),
        ("email", "599 5.9.9", "599 5.9.9"),
        ("sms", "503", "un guasto passeggero del gestore (503)"),
        ("sms", "undeliverable absent", "il telefono è spento o non raggiungibile (undeliverable absent)"),
        ("sms", "undeliverable", "undeliverable"),
        ("sms", "timed_out", "nessuna risposta in tempo"),
    ],
)
def test_a_code_is_told_in_words_where_it_is_known(channel: Channel, code: str, said: str) -> None:
    assert teller().value(codes.in_words(channel, code)) == said


def test_every_language_has_words_for_every_code() -> None:
    known = {*codes._MAIL_IN_FULL.values(), *codes._MAIL.values(), *codes._GATEWAY.values()}
    names = [*(f"term.carrier_code.{each}" for each in known), *(f"term.failure.{each}" for each in codes._LINE)]
    assert [(language, name) for language in LANGUAGES for name in names if not teller(language).knows(name)] == []


def test_the_story_says_what_the_gateway_answered(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        nowhere = world.patient(connection, mobile="+393470010001", email=None)
        appointment = booked(connection, practice, "12:00", patient_id=nowhere)
    with gateway() as (_, providers):
        service.send(engine, AS_OF, "reminder", providers)
    with engine.connect() as connection:
        answers = [step.said for step in story.of(connection, "appointment", appointment) if step.answer]
    assert [teller().value(said) for said in answers] == [
        "rifiutato: il numero non esiste (undeliverable unknown_number)"
    ]
