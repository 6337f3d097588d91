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
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import appointments, confirming, holds, offers, places, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.confirming import Booking
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.bookings.offers import Taken
from polydesk_dagster.clinic.calendar import slots, touched
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.waiting import until
from tests.world import AS_OF

WORKERS = 16
REQUESTS = 750
"""Requests of each worker; each is a transaction that meets the others' on the same slots."""
KILLED = 2
"""Workers that are killed when a third and two thirds of the requests are done, wherever they are; the clock then
passes over the term of all that is offered."""
TICK = timedelta(seconds=1)
"""The clock of all processes moves by this at every look at it, however fast the machine: holds expire while they are
being worked on."""
DAY = date(2026, 3, 18)
HORIZON = 11
PAST_ALL_TERMS = int((places.TERM + timedelta(minutes=10)) / TICK)
HOT_SLOTS = 6

# Bookings and live holds counted from their own tables, not from the seats and the occupancy that they take.
TAKING = """
    SELECT 'booking' AS what, a.id, a.agenda_id, a.patient_id, a.service_id, a.starts_at, a.ends_at,
           a.overlap_reason IS NOT NULL AS asked, a.id AS booking
    FROM appointment a
    WHERE a.status IN ('unverified', 'booked', 'accepted') AND coalesce(verify_by(a) > :as_of, true)
    UNION ALL
    SELECT 'hold', h.id, s.agenda_id, b.patient_id, h.service_id, s.starts_at, h.ends_at, false, h.offered_to
    FROM hold h JOIN slot s ON s.id = h.slot_id LEFT JOIN appointment b ON b.id = h.offered_to
    WHERE h.state IN ('live', 'confirming') AND h.expires_at > :as_of"""

OVERBOOKED = sa.text(f"""
    SELECT s.id, s.capacity, count(*) AS taken
    FROM slot s JOIN ({TAKING}) t ON t.agenda_id = s.agenda_id AND t.starts_at < s.ends_at AND t.ends_at > s.starts_at
    WHERE s.id = ANY(:slots) GROUP BY s.id, s.capacity HAVING count(*) > s.capacity""")

# One doctor has all agendas here; the long service needs the one instrument. A patient may have her booking and the
# place that is offered to it at once.
IN_TWO_PLACES = sa.text(f"""
    WITH taking AS ({TAKING})
    SELECT CASE WHEN a.agenda_id <> b.agenda_id THEN 'doctor' WHEN a.patient_id = b.patient_id THEN 'patient'
                ELSE 'instrument' END AS who, a.what, a.id, b.what AS other, b.id AS other_id
    FROM taking a JOIN taking b ON (a.what, a.id) < (b.what, b.id) AND a.starts_at < b.ends_at
                               AND a.ends_at > b.starts_at
    WHERE a.agenda_id <> b.agenda_id
       OR a.patient_id = b.patient_id AND a.booking <> b.booking AND NOT (a.asked OR b.asked)
       OR a.service_id = :long AND b.service_id = :long""")

NO_ORPHAN = sa.text("""
    SELECT s.id FROM slot s FULL JOIN (SELECT slot_id FROM orphan WHERE resolved_at IS NULL) o ON o.slot_id = s.id
    WHERE (s.state = 'orphan') IS DISTINCT FROM (o.slot_id IS NOT NULL)""")

Told = tuple[str, str, int | None, str]
"""A token, the request and its answer, the booking, and the instant by which it was asked."""


@dataclass
class Worker:
    """One process: its tokens, what it was told, and how often it looked."""

    engine: sa.Engine
    random: random.Random
    clock: Synchronized[int]
    services: list[int]
    """At the first clinic, short and long; at the second."""
    patients: list[int]
    agenda: int
    slots: list[list[int]]
    """Of each clinic on the day that is closed now and then; of the first another day's, where new places are."""
    tokens: list[str] = field(default_factory=list)
    service_of: dict[str, int] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    asked_at: datetime = AS_OF
    counted: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def now(self) -> datetime:
        with self.clock.get_lock():
            self.clock.value += 1
            self.asked_at = AS_OF + self.clock.value * TICK
            return self.asked_at

    def work(self) -> None:
        requests: list[tuple[Callable[[], bool], float]] = [
            (self.place, 40),
            (self.confirm, 14),
            (self.renew, 12),
            (self.pay, 6),
            (self.give_back, 6),
            (self.sweep, 8),
            (self.release_all, 0.8),
            (self.regenerate, 0.7),
            (self.close_or_open, 6),
            (self.cancel, 3),
            (self.move, 6),
            (self.book, 3),
            (self.offer, 1),
            (self.offer_anything, 4),
            (self.take, 6),
        ]
        chosen = self.random.choices(*zip(*requests, strict=True), k=REQUESTS)  # type: ignore[arg-type]
        for request in chosen:
            try:
                changed = request()
            except OperationalError as error:
                # PostgreSQL ends one of two transactions that wait for each other; a front end asks again.
                if getattr(error.orig, "sqlstate", None) != "40P01":
                    raise
                self.counted["deadlock"] += 1
                continue
            if changed:
                self.look()

    def look(self) -> None:
        """Test every slot in one snapshot, by a clock later than that of anything the snapshot can hold."""
        with self.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            connection.execute(sa.text("SELECT 1 FROM slot LIMIT 1"))
            values = {
                "slots": [slot for some in self.slots for slot in some],
                "as_of": self.now(),
                "long": self.services[1],
            }
            full = connection.execute(OVERBOOKED, values).all()
            two = connection.execute(IN_TWO_PLACES, values).all()
            ghosts = connection.scalars(NO_ORPHAN).all()
        self.broken += [f"slot {row.id}: {row.taken} > {row.capacity}" for row in full]
        self.broken += [f"slot {slot}: an orphan that is none, or is not listed" for slot in ghosts]
        self.broken += [f"{row.who}: {row.what} {row.id}, {row.other} {row.other_id}" for row in two]

    def token(self) -> str:
        return self.random.choice(self.tokens[-12:]) if self.tokens else "nessuno"

    def note(self, token: str, reply: Reply, request: str) -> bool:
        self.counted[f"{request}:{reply.answer}"] += 1
        if token != "nessuno":
            self.told.append((token, f"{request}:{reply.answer}", reply.appointment_id, self.asked_at.isoformat()))
        return reply.done

    def wanted(self) -> dict[str, int]:
        """A slot and a service that is offered there."""
        service = self.random.choice(self.services)
        clinic = self.services.index(service) // 2
        return {"slot_id": self.random.choice(self.slots[clinic]), "service_id": service}

    def place(self) -> bool:
        token, wanted = holds.new_token(), self.wanted()
        visitor = f"visitor {self.random.randrange(40)}"
        with self.engine.begin() as connection:
            reply = holds.place(connection, **wanted, token=token, visitor=visitor, as_of=self.now())
        self.counted[f"place:{reply.answer}"] += 1
        if reply.answer is Answer.PLACED:
            self.tokens.append(token)
            self.service_of[token] = wanted["service_id"]
        return reply.done

    def confirm(self) -> bool:
        token = self.token()
        (patient,) = self.random.choices([*self.patients, None], [6, 2, 2])  # mostly one, who meets herself
        booking = Booking(self.service_of.get(token, self.services[0]), patient, "chi@example.org")
        with self.engine.begin() as connection:
            reply = confirming.confirm(connection, token=token, booking=booking, as_of=self.now())
        return self.note(token, reply, "confirm")

    def some_booking(self) -> int:
        with self.engine.connect() as connection:
            found = connection.scalars(sa.text("SELECT id FROM appointment WHERE status IN ('booked', 'unverified')"))
            return self.random.choice(list(found) or [0])

    def move(self) -> bool:
        slot = self.random.choice(self.random.choice(self.slots))
        given = {"appointment_id": self.some_booking(), "slot_id": slot, "as_of": self.now()}
        with self.engine.begin() as connection:
            reply = appointments.move(connection, **given, by_staff=self.random.random() < 0.5)
        self.counted[f"move:{reply.answer}"] += 1
        return reply.done

    def book(self) -> bool:
        given = {**self.wanted(), "patient_id": self.random.choice(self.patients), "as_of": self.now()}
        reason = "li accompagna la figlia, nello stesso piano" if self.random.random() < 0.3 else None
        with self.engine.begin() as connection:
            reply = appointments.book(connection, **given, overlap_reason=reason)
        self.counted[f"book:{reply.answer}"] += 1
        return reply.done

    def renew(self) -> bool:
        token = self.token()
        with self.engine.begin() as connection:
            reply = holds.renew(connection, token=token, as_of=self.now())
        return self.note(token, reply, "renew")

    def pay(self) -> bool:
        token = self.token()
        with self.engine.begin() as connection:
            reply = confirming.begin_confirming(connection, token=token, as_of=self.now())
        return self.note(token, reply, "pay")

    def give_back(self) -> bool:
        token = self.token()
        with self.engine.begin() as connection:
            reply = holds.release(connection, token=token, as_of=self.now())
        return self.note(token, reply, "release")

    def sweep(self) -> bool:
        """As its schedule does: look first, and start only where something has expired."""
        as_of = self.now()
        with self.engine.connect() as connection:
            if sweeping.nothing_expired(connection, as_of):
                self.counted["sweep:skipped"] += 1
                return False
        with self.engine.begin() as connection:
            report = sweeping.release_expired(connection, as_of)
        self.counted[f"sweep:{report.outcome}"] += 1
        return report.outcome is Outcome.OK

    def release_all(self) -> bool:
        as_of = self.now()
        with self.engine.begin() as connection:
            shown = releasing.release_all(connection, as_of, Press(), preview=True)
        given = Press("prova di sovrapposizione", f"LIBERA {shown.counts.updated}", "desk:prova", shown.plan_id)
        with self.engine.begin() as connection:
            report = releasing.release_all(connection, self.now(), world.typed(connection, given))
        self.counted[f"release_all:{report.outcome}"] += 1
        return report.outcome is Outcome.OK

    def regenerate(self) -> bool:
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE agenda SET capacity = 1 + (capacity - 1 + :step) % 3 WHERE id = :agenda"),
                {"step": self.random.randint(1, 2), "agenda": self.agenda},
            )
        report = slots.generate(self.engine, self.now())
        world.approve(self.engine, self.now())
        self.counted[f"regenerate:{report.outcome}"] += 1
        return report.outcome is Outcome.OK

    def close_or_open(self) -> bool:
        """Open the day where it is closed, else close it now and then: never to no effect."""
        if self.open():
            return True
        if self.random.random() < 0.95:
            self.counted["close:left_open"] += 1
            return False
        for _ in range(3):
            self.book()
        self.close()
        self.offer()
        self.offer_anything()
        return True

    def open(self) -> bool:
        with self.engine.begin() as connection:
            opened = connection.execute(
                sa.text("UPDATE closure SET lifted_at = :as_of WHERE lifted_at IS NULL"), {"as_of": self.now()}
            ).rowcount
            if opened:
                self.derive(connection)
        return opened > 0

    def close(self) -> None:
        with self.engine.begin() as connection:
            world.closure(connection, DAY)
            self.derive(connection)

    def derive(self, connection: sa.Connection) -> None:
        connection.execute(
            sa.text("""CREATE TEMP TABLE touched ON COMMIT DROP AS
                       SELECT id AS agenda_id, CAST(:day AS date) AS local_date FROM agenda"""),
            {"day": DAY},
        )
        report = touched.derive(connection, "touched", self.now())
        self.counted[f"close:{report.outcome}"] += 1

    def cancel(self) -> bool:
        """Now and then, so that the slots are not simply full for ever."""
        with self.engine.begin() as connection:
            reply = appointments.cancel(connection, appointment_id=self.some_booking(), as_of=self.now())
        self.counted[f"cancel:{reply.answer}"] += 1
        return reply.done

    def offer(self) -> bool:
        """As the desk does: a plan for all whose slot is gone, looked at, then applied."""
        as_of = self.now()
        with self.engine.begin() as connection:
            shown, _ = offers.propose(connection, as_of)
        if not shown.counts.updated or shown.plan_id is None:
            self.counted["offer:none"] += 1
            return False
        with self.engine.begin() as connection:
            report = changes.apply(connection, shown.plan_id, as_of=self.now(), actor="desk:prova")
        self.counted[f"offer:{report.outcome}"] += 1
        return bool(report.counts.updated)

    def offer_anything(self) -> bool:
        """Any slot to any booking that has lost its own, for less time than anybody needs to answer."""
        lost = sa.text("""SELECT t.appointment_id FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
                          WHERE o.resolved_at IS NULL AND t.appointment_id IS NOT NULL ORDER BY random() LIMIT 1""")
        with self.engine.begin() as connection:
            given = {"booking": connection.scalar(lost), "slot": self.random.choice(self.slots[2]), "at": self.now()}
            made = connection.scalar(
                sa.text("SELECT offer_place(:booking, :slot, :at, CAST(:at AS timestamptz) + interval '20 minutes')"),
                given,
            )
        self.counted[f"offer_anything:{'made' if made else 'refused'}"] += 1
        return made is not None

    def take(self) -> bool:
        offered = sa.text("""SELECT offered_to FROM hold WHERE offered_to IS NOT NULL
                             ORDER BY ended_at IS NOT NULL, random() LIMIT 1""")
        with self.engine.begin() as connection:
            taken = offers.take(connection, appointment_id=connection.scalar(offered) or 0, as_of=self.now())
        self.counted[f"take:{taken}"] += 1
        return taken is Taken.TAKEN


def _worker(
    url: URL, seed: int, clock: Synchronized[int], ids: dict[str, Any], hot: list[list[int]], result: Path
) -> None:
    engine = create_engine(url, pool_size=1)
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
        "confirm:released", "pay:confirming", "sweep:ok", "release_all:ok", "regenerate:ok",
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

    def closed_out(slot: int, patient: int) -> int:
        with worker.engine.begin() as connection:
            given = {"slot_id": slot, "service_id": service, "patient_id": patient}
            booked = appointments.book(connection, **given, as_of=worker.now()).appointment_id
        assert booked is not None
        worker.close()
        assert worker.offer()
        return booked

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
        statuses = {row.id: row.status for row in connection.execute(sa.text("SELECT id, status FROM appointment"))}
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
            assert statuses[appointment] == "cancelled"
        assert answer is not Answer.UNKNOWN
