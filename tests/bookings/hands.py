"""Hands that work on the same few slots: each places, renews, pays, confirms, releases, cancels, moves, books, sweeps,
closes and offers, and looks after every change of its own for what must never be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from multiprocessing.sharedctypes import Synchronized

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import appointments, confirming, holds, offers, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.confirming import Booking
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.bookings.offers import Taken
from polydesk_dagster.clinic.calendar import desk_closures, slots, touched
from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.world import AS_OF

REQUESTS = 715
"""Requests of each worker; each is a transaction that meets the others' on the same slots."""
TICK = timedelta(seconds=1)
"""The clock of all processes moves by this at every look at it, however fast the machine: holds expire while they are
being worked on."""
DAY = date(2026, 3, 18)


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


# What is broken, each as a sentence: slots with more than they hold, whoever is in two places, orphans that are none or
# are not listed. One doctor has all agendas here; the long service needs the one instrument. A patient may have her
# booking and the place that is offered to it at once.
BROKEN = sa.text(f"""
    WITH taking AS MATERIALIZED ({TAKING})
    SELECT concat('slot ', s.id, ': ', count(*), ' > ', s.capacity)
    FROM slot s JOIN taking t ON t.agenda_id = s.agenda_id AND t.starts_at < s.ends_at AND t.ends_at > s.starts_at
    WHERE s.id = ANY(:slots) GROUP BY s.id, s.capacity HAVING count(*) > s.capacity
    UNION ALL
    SELECT concat(CASE WHEN a.agenda_id <> b.agenda_id THEN 'doctor' WHEN a.patient_id = b.patient_id THEN 'patient'
                       ELSE 'instrument' END, ': ', a.what, ' ', a.id, ', ', b.what, ' ', b.id)
    FROM taking a JOIN taking b ON (a.what, a.id) < (b.what, b.id) AND a.starts_at < b.ends_at
                               AND a.ends_at > b.starts_at
    WHERE a.agenda_id <> b.agenda_id
       OR a.patient_id = b.patient_id AND a.booking <> b.booking AND NOT (a.asked OR b.asked)
       OR a.service_id = :long AND b.service_id = :long
    UNION ALL
    SELECT concat('slot ', s.id, ': an orphan that is none, or is not listed')
    FROM slot s FULL JOIN (SELECT slot_id FROM orphan WHERE resolved_at IS NULL) o ON o.slot_id = s.id
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
    last: dict[str, Answer] = field(default_factory=dict)
    """What each token was answered last."""
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
            (self.sweep, 5),
            (self.release_all, 0.8),
            (self.regenerate, 0.4),
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
            self.broken += connection.scalars(BROKEN, values)
            connection.commit()  # at a rollback psycopg forgets what it has prepared

    def token(self) -> str:
        return self.random.choice(self.tokens[-12:]) if self.tokens else "nessuno"

    def note(self, token: str, reply: Reply, request: str) -> bool:
        self.counted[f"{request}:{reply.answer}"] += 1
        if token != "nessuno":
            self.told.append((token, f"{request}:{reply.answer}", reply.appointment_id, self.asked_at.isoformat()))
        said_again = self.last.get(token) is reply.answer is not Answer.RENEWED
        self.last[token] = reply.answer
        return reply.done and not said_again

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
        with self.engine.begin() as connection:
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
        with self.engine.begin() as connection:
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
        if self.random.random() < 0.5:
            return self.close_as_seen()
        self.close()
        self.offer()
        self.offer_anything()
        return True

    def close_as_seen(self) -> bool:
        """As the desk does: whom it touches is looked at, and the plan closes and keeps their places; now and then it
        is taken back."""
        shown = desk_closures.propose(self.engine, Closure("Prova", DAY, DAY), as_of=self.now()).report
        if shown.plan_id is None:  # somebody else has closed it meanwhile
            assert shown.outcome is Outcome.REFUSED
            self.counted[f"propose:{shown.outcome}"] += 1
            return False
        with self.engine.begin() as connection:
            report = changes.apply(connection, shown.plan_id, as_of=self.now(), actor="desk:prova")
        self.counted[f"closing:{report.outcome}"] += 1
        self.look()
        if report.outcome is Outcome.REFUSED or self.random.random() < 0.6:
            return False
        with self.engine.begin() as connection:
            report = changes.undo(connection, shown.plan_id, as_of=self.now(), actor="desk:prova")
        self.counted[f"undo:{report.outcome}"] += 1
        return report.counts.changed > 0

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
