"""Bookings under many hands at once: sixteen processes that place, renew, pay, confirm, release, cancel, move, book at
the desk, let patients overlap on purpose, sweep, release all, change capacity, regenerate slots, close days, offer new
places to whom that costs hers and take them, all on the same few slots of a doctor of two clinics, while some of them
are killed; after every commit no slot may hold more than its capacity, nobody may be in two places unasked, and
whatever is listed as an orphan is one."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
from collections import Counter
from datetime import datetime, timedelta
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.bookings import appointments, holds, offers, places
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.offers import Taken
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.bookings.hands import DAY, REQUESTS, TICK, Told, Worker
from tests.waiting import until
from tests.world import AS_OF

WORKERS = 16
KILLED = 2
"""Workers that are killed when a third and two thirds of the requests are done, wherever they are; the clock then
passes over the term of all that is offered."""
HORIZON = 11
PAST_ALL_TERMS = int((places.TERM + timedelta(minutes=10)) / TICK)
HOT_SLOTS = 6


def _worker(
    url: URL, seed: int, clock: Synchronized[int], ids: dict[str, Any], hot: list[list[int]], result: Path
) -> None:
    # Asks no server, before each request, whether it is still there, and keeps the second session that some want.
    engine = sa.create_engine(url, pool_size=2)
    worker = Worker(engine, random.Random(seed), clock, ids["services"], ids["patients"], ids["agenda"], hot)
    worker.work()
    engine.dispose()
    result.write_text(json.dumps([worker.told, worker.counted, worker.broken]))


def _world(connection: sa.Connection) -> tuple[dict[str, Any], list[int]]:
    """A doctor at two clinics; at the first a longer service too, which needs the one instrument. Ids, and agendas."""
    here = world.practice(connection, capacity=2, horizon_days=HORIZON)
    there = world.practice(connection, "RE01", capacity=1, horizon_days=HORIZON)
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
    long = world.service(connection, here.clinic, duration_minutes=60)
    offer = {"clinic_id": here.clinic, "agenda_id": here.agenda, "service_id": long}
    world.insert(connection, "agenda_service", [offer])
    place = {"clinic_id": here.clinic, "location_id": here.location}
    (echo,) = world.insert(connection, "resource", [{**place, "kind": "instrument", "name": "Ecografo"}])
    world.insert(connection, "service_resource", [{"clinic_id": here.clinic, "service_id": long, "resource_id": echo}])
    connection.execute(sa.text("SELECT refresh_bookable()"))
    patients = [here.patient, there.patient]
    ids = {"services": [here.service, long, there.service], "patients": patients, "agenda": here.agenda}
    return ids, [here.agenda, there.agenda]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_interleaving_overbooks_or_loses_a_booking(engine: sa.Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        ids, agendas = _world(connection)
    assert slots.generate(engine, AS_OF).outcome is Outcome.OK
    of_agenda = sa.text(
        "SELECT id FROM slot WHERE agenda_id = :agenda AND local_date = :day ORDER BY starts_at LIMIT :hot"
    )
    with engine.connect() as connection:
        hot = [
            list(connection.scalars(of_agenda, {"agenda": agenda, "day": day, "hot": HOT_SLOTS}))
            for agenda, day in [*((each, DAY) for each in agendas), (agendas[0], DAY + timedelta(days=1))]
        ]
    context = multiprocessing.get_context("fork")
    clock = context.Value("q", 0)
    results = [tmp_path / f"{n}.json" for n in range(WORKERS)]
    workers = [
        context.Process(target=_worker, args=(engine.url, seed, clock, ids, hot, result))
        for seed, result in enumerate(results, 1)
    ]
    for worker in workers:
        worker.start()
    for number in range(KILLED):
        far = (number + 1) * WORKERS * REQUESTS // (KILLED + 1) + number * PAST_ALL_TERMS
        until(lambda: clock.value >= far or not any(worker.is_alive() for worker in workers), "they stopped")  # noqa: B023
        with clock.get_lock():  # which it must not hold when it dies
            workers[number].kill()
            clock.value += PAST_ALL_TERMS
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * KILLED + [0] * (WORKERS - KILLED)

    counted: Counter[str] = Counter()
    told: list[Told] = []
    for result in results[KILLED:]:
        ours, count, broken = json.loads(result.read_text())
        assert broken == []
        counted.update(count)
        told += ours
    assert counted.total() >= 10_000
    for needed in (
        "place:placed", "place:full", "renew:renewed", "confirm:confirmed", "confirm:expired",
        "confirm:released", "pay:confirming", "sweep:ok", "regenerate:ok",
        "close:ok", "cancel:cancelled", "move:moved", "move:full", "book:booked", "book:doctor_busy",
        "offer_anything:refused",
    ):  # fmt: skip
        assert counted[needed] > 0, f"never happened: {needed} in {counted}"
    _offered_in_quiet(Worker(engine, random.Random(0), clock, ids["services"], ids["patients"], ids["agenda"], hot))
    _everybody_was_told_the_truth(engine, told)


def _offered_in_quiet(worker: Worker) -> None:
    """However chance had it before: who books on what all those hands have left, and is closed out, is kept a place
    for its term and no longer; closed out anew, she and another take theirs."""
    with worker.engine.begin() as connection:
        bookings = list(
            connection.scalars(sa.text("SELECT id FROM appointment WHERE status IN ('booked', 'unverified')"))
        )
        appointments.cancel_all(connection, bookings, worker.now())
    worker.clock.value += int(timedelta(hours=4) / TICK)
    worker.sweep()
    worker.open()
    worker.regenerate()
    (first, second), (service, *_) = worker.patients, worker.services
    with worker.engine.begin() as connection:
        pressed = connection.scalar(sa.text("SELECT count(*) FROM audit WHERE service = 'release_all_holds'"))
        if not pressed:  # who has pressed may have been killed, and for ten minutes nobody presses after her
            slot = {"slot_id": worker.slots[0][0], "service_id": service, "as_of": worker.now()}
            assert holds.place(connection, **slot, token="quiet", visitor="quiet").answer is Answer.PLACED
    assert pressed or worker.release_all()

    def closed_out(slot: int, patient: int) -> int:
        with worker.engine.begin() as connection:
            given = {"slot_id": slot, "service_id": service, "patient_id": patient}
            booked = appointments.book(connection, **given, as_of=worker.now()).appointment_id
        assert booked is not None
        worker.close()
        assert worker.offer()
        return booked

    with worker.engine.begin() as connection:
        given = {"slot_id": worker.slots[0][0], "service_id": service, "patient_id": first}
        seen = appointments.book(connection, **given, as_of=worker.now()).appointment_id
    assert seen is not None
    worker.close_as_seen()
    worker.open()
    assert not any(outcome.startswith("closing:refused") for outcome in worker.counted)
    with worker.engine.begin() as connection:
        assert appointments.cancel(connection, appointment_id=seen, as_of=worker.now()).done
    unanswered = closed_out(worker.slots[0][0], first)
    worker.clock.value += PAST_ALL_TERMS
    with worker.engine.begin() as connection:
        assert offers.take(connection, appointment_id=unanswered, as_of=worker.now()) is Taken.OVER
    worker.look()
    worker.open()
    taker = closed_out(worker.slots[0][1], second)
    with worker.engine.begin() as connection:
        for booking in (taker, unanswered):  # whose slot was lost anew
            assert offers.take(connection, appointment_id=booking, as_of=worker.now()) is Taken.TAKEN
    worker.look()
    assert worker.broken == []


def _everybody_was_told_the_truth(engine: sa.Engine, told: list[Told]) -> None:
    """What has ended stays as it ended, so the last state tells whether each answer was right when it was given."""
    with engine.connect() as connection:
        ended = {
            bytes(row.token_hash): row
            for row in connection.execute(sa.text("SELECT token_hash, state, appointment_id, expires_at FROM hold"))
        }
        standing = set(connection.scalars(sa.text("SELECT appointment_id FROM seat WHERE appointment_id IS NOT NULL")))
        bookings = connection.execute(sa.text("SELECT id, status, verification_expires_at FROM appointment")).all()
        statuses = {row.id: row.status for row in bookings}
        until_when = {row.id: row.verification_expires_at for row in bookings}
        leftover = connection.scalar(
            sa.text("""SELECT count(*) FROM seat JOIN hold h ON h.id = seat.hold_id WHERE h.ended_at IS NOT NULL""")
        )
    assert leftover == 0, "an ended hold keeps no seat"
    assert standing == {each for each, status in statuses.items() if status in {"unverified", "booked"}}
    allowed = {
        Answer.CONFIRMED: {"confirmed"},
        Answer.NO_LONGER_BOOKED: {"confirmed"},
        Answer.RELEASED: {"released"},
        Answer.REVOKED: {"revoked"},
        Answer.EXPIRED: {"expired", "live", "confirming"},
    }
    for token, what, appointment, asked_at in told:
        hold = ended[holds.hashed(token)]
        answer = Answer(what.partition(":")[2])
        if answer is Answer.EXPIRED and hold.state == "revoked":
            # It was live when "release all" was looked at and had expired by itself when that was pressed.
            assert datetime.fromisoformat(asked_at) >= hold.expires_at, f"{what}, but the hold was taken away"
        elif answer in allowed:
            assert hold.state in allowed[answer], f"{what}, but the hold is {hold.state}"
        if answer in {Answer.CONFIRMED, Answer.NO_LONGER_BOOKED}:
            assert hold.appointment_id == appointment
            assert appointment in statuses, "a confirmed booking is never lost"
        if answer is Answer.NO_LONGER_BOOKED:
            # Who cancels a booking after its term to be verified finds it expired.
            over = statuses[appointment] == "expired" and until_when[appointment] <= datetime.fromisoformat(asked_at)
            assert over or statuses[appointment] == "cancelled"
        assert answer is not Answer.UNKNOWN
