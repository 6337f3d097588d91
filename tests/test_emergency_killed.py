"""SIGKILL at any instant of the jobs that free seats: each has done all of its work or none."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic import bookings, holds
from polydesk_dagster.clinic.emergency import Press
from polydesk_dagster.database.engine import create_engine
from tests import world
from tests.world import AS_OF, rome

LATER = AS_OF + timedelta(minutes=12)


def _run(url: URL) -> None:
    engine = create_engine(url)
    while True:
        with engine.begin() as connection:
            holds.release_expired(connection, LATER)
        bookings.expire_unverified(engine, LATER)
        with engine.begin() as connection:
            shown = holds.release_all(connection, LATER, Press(), preview=True)
        with engine.begin() as connection:
            phrase = f"LIBERA {shown.counts.updated}"
            holds.release_all(connection, LATER, Press("prova di interruzione", phrase))


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
                    holds.place(connection, slot_id=slot, token=who, visitor=who, as_of=as_of)
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
