"""The appointment in the patient's calendar: one name for as long as it lives, moved and taken out by letters."""

from __future__ import annotations

from datetime import timedelta
from email import message_from_bytes, policy
from typing import Any

import sqlalchemy as sa
from icalendar import Calendar

from polydesk_dagster.clinic.bookings import appointments
from polydesk_dagster.clinic.messages import due, service
from polydesk_dagster.providers.smtp import MailRelay
from tests import world
from tests.messages.relay import Relay
from tests.messages.world import AS_OF, booked
from tests.waiting import PATIENCE

WHEN = ["2026-03-18", "2026-03-19"]


def entries(letter: bytes) -> tuple[str, str, list[dict[str, Any]]]:
    """The subject, what calendars are to do, and the events of a letter."""
    message = message_from_bytes(letter, policy=policy.default)
    (part,) = [each for each in message.walk() if each.get_content_type() == "text/calendar"]
    calendar = Calendar.from_ical(part.get_payload(decode=True))
    assert part.get_param("method") == calendar["METHOD"]
    names = ("UID", "SEQUENCE", "STATUS", "SUMMARY")
    found = [
        {**{name: str(event[name]) for name in names}, "start": event["DTSTART"].dt, "end": event["DTEND"].dt}
        for event in calendar.walk("VEVENT")
    ]
    return str(message["Subject"]), str(calendar["METHOD"]), found


def test_it_is_entered_moved_and_taken_out(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(sa.text("UPDATE message_policy SET confirmations = true WHERE clinic_id IS NULL"))
        patient = world.patient(connection, mobile=None, email="anna@example.org")
        number = booked(connection, practice, "10:00", WHEN[0], patient_id=patient, created_at=AS_OF)
        later = world.slot(connection, practice.agenda, world.rome(WHEN[1], "11:00"))
    relay = Relay()
    with relay.listening() as url:
        carriers: Any = {"email": MailRelay(url, "Segreteria <desk@clinica.example>", patience=PATIENCE)}

        def letters(minutes: int) -> list[bytes]:
            at = AS_OF + timedelta(minutes=minutes)
            with engine.connect() as connection:
                assert due.nothing_due(["reminder", "confirmation"], connection, at) is None
            service.send(engine, at, "reminder", carriers)
            service.send(engine, at + timedelta(minutes=1), "reminder", carriers)
            return [b"".join(letter.splitlines(keepends=True)) for letter in relay.got]

        subject, method, (first,) = entries(letters(1)[0])
        assert (subject, method, first["STATUS"]) == ("Prenotazione di mercoledì 18 marzo", "REQUEST", "CONFIRMED")
        assert (first["start"], first["end"] - first["start"]) == (
            world.rome(WHEN[0], "10:00"),
            timedelta(minutes=30),
        )
        assert "ardiolog" not in first["SUMMARY"]
        with engine.begin() as connection:
            at = AS_OF + timedelta(minutes=10)
            moved = appointments.move(connection, appointment_id=number, slot_id=later, as_of=at, by_staff=True)
            assert moved.done
        told = letters(11)
        assert len(told) == 2
        assert "spostato" in message_from_bytes(told[1], policy=policy.default).get_body(("plain",)).get_content()  # type: ignore[union-attr]
        _, method, (second,) = entries(told[1])
        assert (method, second["UID"], int(second["SEQUENCE"])) == ("REQUEST", first["UID"], int(first["SEQUENCE"]) + 1)
        assert second["start"] == world.rome(WHEN[1], "11:00")
        with engine.begin() as connection:
            appointments.cancel(connection, appointment_id=number, as_of=AS_OF + timedelta(minutes=20))
        told = letters(21)
        assert len(told) == 3
        subject, method, (third,) = entries(told[2])
        assert (subject, method) == ("Disdetto: appuntamento di giovedì 19 marzo", "CANCEL")
        assert (third["UID"], third["STATUS"]) == (first["UID"], "CANCELLED")
        assert int(third["SEQUENCE"]) > int(second["SEQUENCE"])


def test_who_was_not_confirmed_is_told_of_no_change(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(sa.text("UPDATE message_policy SET confirmations = true WHERE clinic_id IS NULL"))
        number = booked(connection, practice, "10:00", WHEN[0])
        appointments.cancel(connection, appointment_id=number, as_of=AS_OF)
    service.send(engine, AS_OF + timedelta(minutes=1), "reminder", {})
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM message")) == 0
