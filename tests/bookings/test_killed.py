"""SIGKILL while a proof is used up: the booking stands and the secret is spent, or neither; asking again settles it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.bookings import verification
from polydesk_dagster.clinic.bookings.unverified import Answer, Reply
from polydesk_dagster.database.engine import create_engine
from tests import world
from tests.kill_world import killed_at
from tests.world import AS_OF, rome

LATER = AS_OF + timedelta(hours=3)
Ask = Callable[[sa.Connection, int, str, int], Reply]


def by_token(connection: sa.Connection, booking: int, secret: str, patient: int) -> Reply:
    return verification.verify_by_token(connection, token=secret, patient_id=patient, as_of=LATER)


def by_code(connection: sa.Connection, booking: int, secret: str, patient: int) -> Reply:
    return verification.verify_by_code(connection, appointment_id=booking, code=secret, patient_id=patient, as_of=LATER)


def expired(engine: sa.Engine, practice: world.Practice, ask: Ask, number: int = 0) -> tuple[int, str, int]:
    """An expired booking with a secret of ``ask``'s channel: to stand it takes a seat, a patient and the secret."""
    with engine.begin() as connection:
        slot = world.slot(connection, practice.agenda, rome("2026-03-12") + number * timedelta(minutes=30))
        booking = world.appointment(
            connection, slot, service_id=practice.service, patient_id=None, status="unverified", channel="online",
            verification_expires_at=AS_OF + timedelta(hours=2), created_at=AS_OF, contact_email="chi@example.org",
            contact_phone="+393471234567",
        )  # fmt: skip
    bookings.expire_unverified(engine, LATER)
    with engine.begin() as connection:
        made = verification.issue(
            connection, appointment_id=booking, channel="email" if ask is by_token else "phone", as_of=LATER
        )
    return booking, made.secret, practice.patient


def state(engine: sa.Engine, booking: int) -> tuple[str, int, int, int]:
    """Status, seats, secrets that are used up, and wrong tries."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("""
                SELECT status, (SELECT count(*) FROM seat WHERE appointment_id = a.id) AS seats,
                       count(v.used_at) AS used, coalesce(sum(v.tries), 0) AS tries
                FROM appointment a LEFT JOIN verification v ON v.appointment_id = a.id
                WHERE a.id = :id GROUP BY a.id"""),
            {"id": booking},
        ).one()
    return row.status, row.seats, row.used, row.tries


UNTOUCHED = ("expired", 0, 0, 0)
STANDS = ("booked", 1, 1, 0)


def _ask(url: URL, ask: Ask, booking: int, secret: str, patient: int) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        ask(connection, booking, secret, patient)
    os.kill(os.getpid(), signal.SIGKILL)  # it has committed and never answers


@pytest.mark.slow
@pytest.mark.parametrize("ask", [by_token, by_code], ids=["token", "code"])
@pytest.mark.parametrize("table", ["appointment", "slot", "verification"])
def test_a_killed_verification_has_used_nothing_up(engine: sa.Engine, ask: Ask, table: str) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
    booking, secret, patient = expired(engine, practice, ask)
    killed_at(engine, f"SELECT id FROM {table} FOR UPDATE", _ask, engine.url, ask, booking, secret, patient)
    assert state(engine, booking) == UNTOUCHED
    with engine.begin() as connection:
        assert ask(connection, booking, secret, patient).answer is Answer.BOOKED
    assert state(engine, booking) == STANDS


@pytest.mark.slow
@pytest.mark.parametrize("ask", [by_token, by_code], ids=["token", "code"])
def test_killed_at_any_instant_asking_again_settles_it(engine: sa.Engine, ask: Ask) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
    context = multiprocessing.get_context("fork")
    choose = random.Random(5)
    seen = set()
    for number in range(10):
        booking, secret, patient = expired(engine, practice, ask, number)
        process = context.Process(target=_ask, args=(engine.url, ask, booking, secret, patient))
        process.start()
        if number:  # the first one ends by itself: it commits, and its answer is lost
            time.sleep(choose.uniform(0.01, 0.15))
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        seen.add(state(engine, booking))
        with engine.begin() as connection:
            assert ask(connection, booking, secret, patient).answer is Answer.BOOKED
        assert state(engine, booking) == STANDS
    assert seen <= {UNTOUCHED, STANDS}
    assert STANDS in seen
