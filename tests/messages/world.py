"""A clinic with appointments for tomorrow, and carriers that are really there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import replies
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.clinic.messages.replies import Texted
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.providers.smtp import MailRelay
from tests import world
from tests.waiting import PATIENCE

AS_OF = world.AS_OF
TOMORROW = "2026-03-11"


def booked(
    connection: sa.Connection, practice: world.Practice, at: str = "09:00", day: str = TOMORROW, **fields: Any
) -> int:
    """An appointment on a slot of its own; a new patient unless ``patient_id`` is given."""
    slot_id = world.slot(connection, practice.agenda, world.rome(day, at), manual=True)
    patient_id = fields.pop("patient_id", None) or world.patient(connection)
    service_id = fields.pop("service_id", practice.service)
    return world.appointment(connection, slot_id, service_id=service_id, patient_id=patient_id, **fields)


def move(connection: sa.Connection, appointment: int, starts_at: datetime) -> None:
    connection.execute(
        sa.text("""UPDATE appointment SET starts_at = :start, ends_at = :end, start_version = start_version + 1
                   WHERE id = :id"""),
        {"id": appointment, "start": starts_at, "end": starts_at + timedelta(minutes=30)},
    )


_replies = itertools.count(1)


def texted(connection: sa.Connection, number: str, text: str, at: datetime) -> str:
    """Somebody texts back, and that is seen to at once; what came of it."""
    name = f"risposta-{next(_replies)}"
    assert replies.keep(connection, [Texted(name, number, text, at)], at) == 1
    replies.settle(connection, at)
    return str(
        connection.scalar(sa.text("SELECT outcome FROM message_reply WHERE external_id = :name"), {"name": name})
    )


@contextmanager
def gateway(**options: Any) -> Iterator[tuple[SmsSimulator, dict[Channel, Provider]]]:
    """The SMS simulator behind a real socket, and the carriers that a service is given: as patient as a busy machine
    needs, unless told otherwise."""
    simulator = SmsSimulator()
    with in_thread(simulator) as url:
        yield simulator, {"sms": SmsGateway(url, DEMO_TOKEN, "Polydesk", **{"patience": PATIENCE, **options})}


def states(engine: sa.Engine) -> list[tuple[str, str | None]]:
    """(state, reason) of the ledger's rows, in order of subject and version."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("SELECT state, reason FROM message_ledger_state ORDER BY subject_id, version, recipient_id")
        )
        return [(state, reason) for state, reason in rows]


SENDER = "no-reply@clinica.example"


def by_mail(url: str) -> dict[Channel, Provider]:
    return {"email": MailRelay(url, SENDER, patience=PATIENCE)}


def mailed(connection: sa.Connection, address: str) -> int:
    return world.patient(connection, mobile=None, email=address)
