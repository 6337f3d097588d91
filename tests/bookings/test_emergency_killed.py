"""SIGKILL at any instant of the jobs that free seats or bring services back: each has done all of its work or none."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from datetime import date, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.bookings import holds, releasing, sweeping
from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.upkeep import recovery
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Reason, Report
from tests import world
from tests.kill_world import killed_at
from tests.world import AS_OF, rome

LATER = AS_OF + timedelta(minutes=12)


def _run(url: URL) -> None:
    engine = create_engine(url)
    while True:
        with engine.begin() as connection:
            sweeping.release_expired(connection, LATER)
        bookings.expire_unverified(engine, LATER)
        with engine.begin() as connection:
            shown = releasing.release_all(connection, LATER, Press(), preview=True)
        with engine.begin() as connection:
            phrase = f"LIBERA {shown.counts.updated}"
            given = world.typed(connection, Press("prova di interruzione", phrase, plan_id=shown.plan_id))
            releasing.release_all(connection, LATER, given)


@pytest.mark.slow
def test_a_killed_job_leaves_nothing_half_done(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        slots = [
            world.slot(connection, practice.agenda, rome("2026-03-12", "00:00") + n * timedelta(minutes=30))
            for n in range(24)
        ]
    context = multiprocessing.get_context("fork")
    choose = random.Random(7)
    for turn in range(8):
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM seat"))
            for n, slot in enumerate(slots):
                as_of = AS_OF if n % 3 else AS_OF + timedelta(minutes=5)
                who = f"{turn}/{n}"
                if n % 3 < 2:
                    holds.place(
                        connection,
                        slot_id=slot,
                        service_id=world.offered(connection, slot),
                        token=who,
                        visitor=who,
                        as_of=as_of,
                    )
                else:
                    world.appointment(
                        connection, slot, service_id=practice.service, patient_id=None, status="unverified",
                        channel="online", verification_expires_at=AS_OF, created_at=AS_OF,
                    )  # fmt: skip
        process = context.Process(target=_run, args=(engine.url,))
        process.start()
        time.sleep(choose.uniform(0.02, 0.3))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        _whole(engine)


def _whole(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        holds_without = connection.scalar(
            sa.text("""SELECT count(*) FROM seat JOIN hold h ON h.id = seat.hold_id WHERE h.ended_at IS NOT NULL""")
        )
        bookings_without = connection.scalar(
            sa.text("""SELECT count(*) FROM seat JOIN appointment a ON a.id = seat.appointment_id
                       WHERE a.status = 'expired'""")
        )
        applied = connection.scalar(
            sa.text("""SELECT count(*) FROM plan WHERE state = 'applied' AND rows_kept
                       AND NOT EXISTS (SELECT FROM audit WHERE audit.plan_id = plan.id)""")
        )
        assert (holds_without, bookings_without, applied) == (0, 0, 0)
        assert audit.verify(connection) == []


SERVICES = 12
DELETED = AS_OF - timedelta(hours=20)
GIVEN = Press("eliminate per errore", f"RECUPERA {SERVICES}")


@pytest.fixture
def deleted(engine: sa.Engine) -> world.Practice:
    """Services that were deleted by mistake, each with the price that was closed for it."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        ids = [
            world.service(
                connection, practice.clinic, name=f"Visita {n}", active=False, deleted_at=DELETED,
                bookable_online=False,
            )
            for n in range(SERVICES)
        ]  # fmt: skip
        world.insert(
            connection,
            "agenda_service",
            [{"clinic_id": practice.clinic, "agenda_id": practice.agenda, "service_id": each} for each in ids],
        )
        world.insert(
            connection,
            "price",
            [
                {
                    "clinic_id": practice.clinic,
                    "service_id": each,
                    "amount": "120.00",
                    "valid_from": date(2026, 1, 1),
                    "valid_to": DELETED.date(),
                }
                for each in ids
            ],
        )
    return practice


def _recover(engine: sa.Engine, given: Press) -> Report:
    with engine.begin() as connection:
        typed = given if given.looks_only else world.typed(connection, given, "BO01")
        return recovery.recover(connection, AS_OF, typed, clinic="BO01")


def _recover_in_a_process(url: URL) -> None:
    engine = create_engine(url)
    _recover(engine, GIVEN)
    os.kill(os.getpid(), signal.SIGKILL)  # it has committed and never says so


def _back(engine: sa.Engine) -> tuple[int, int, int]:
    """Services that are back, prices that are open again, and audit lines."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("""
                SELECT (SELECT count(*) FROM service WHERE name LIKE 'Visita%' AND deleted_at IS NULL AND active
                                                       AND NOT bookable_online) AS services,
                       (SELECT count(*) FROM price WHERE valid_to IS NULL) AS prices,
                       (SELECT count(*) FROM audit WHERE action = 'apply') AS lines""")
        ).one()
        assert audit.verify(connection) == []
    return row.services, row.prices, row.lines


@pytest.mark.slow
@pytest.mark.usefixtures("deleted")
@pytest.mark.parametrize(
    "row",
    [
        "SELECT id FROM service WHERE deleted_at IS NOT NULL ORDER BY id DESC LIMIT 1 FOR UPDATE",
        "SELECT id FROM price ORDER BY id DESC LIMIT 1 FOR UPDATE",
        "SELECT * FROM audit_head FOR UPDATE",
    ],
    ids=["services", "prices", "audit"],
)
def test_a_killed_recovery_has_brought_nothing_back_and_the_next_brings_all(engine: sa.Engine, row: str) -> None:
    shown = _recover(engine, Press())
    todo = shown.figures[WHAT_TO_DO]
    assert isinstance(todo, Reason)
    assert str(todo.values["phrase"]).startswith(GIVEN.confirm)
    killed_at(engine, row, _recover_in_a_process, engine.url)
    assert _back(engine) == (0, 0, 0)
    again = _recover(engine, GIVEN)
    assert (again.outcome, again.counts.updated) == (Outcome.OK, SERVICES)
    assert _back(engine) == (SERVICES, SERVICES, 1)
    assert _recover(engine, Press()).counts.changed == 0


@pytest.mark.slow
@pytest.mark.usefixtures("deleted")
def test_a_recovery_killed_at_any_instant_is_whole_or_not_there(engine: sa.Engine) -> None:
    context = multiprocessing.get_context("fork")
    choose = random.Random(11)
    _recover(engine, Press())
    for _ in range(12):
        process = context.Process(target=_recover_in_a_process, args=(engine.url,))
        process.start()
        time.sleep(choose.uniform(0.01, 0.15))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert _back(engine) in {(0, 0, 0), (SERVICES, SERVICES, 1)}
    process = context.Process(target=_recover_in_a_process, args=(engine.url,))
    process.start()
    process.join()
    assert _back(engine) == (SERVICES, SERVICES, 1), "once, however often it was asked for"
    assert _recover(engine, GIVEN).outcome is Outcome.REFUSED
