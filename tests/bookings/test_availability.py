"""Availability beside a slow oracle that reads every row, and its summary beside the rows that it follows from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.clinic.bookings import appointments, availability, confirming, holds, unverified
from polydesk_dagster.clinic.bookings.availability import Wanted
from polydesk_dagster.clinic.calendar import slots, touched
from tests import postgres, world
from tests.world import AS_OF, rome

# The summary worked out anew, by another query than the one that keeps it.
RECOMPUTED = """
    SELECT s.agenda_id, CAST(s.starts_at AT TIME ZONE 'UTC' AS date) AS day,
           coalesce(range_agg(tstzrange(s.starts_at, s.ends_at)) FILTER (WHERE s.open), '{}') AS ranges,
           coalesce(array_agg(s.id ORDER BY s.id) FILTER (WHERE s.open), '{}') AS slots
    FROM (SELECT s.*, s.state = 'free' AND s.capacity > count(t.slot_id) AS open
          FROM slot s LEFT JOIN seat t ON t.slot_id = s.id AND t.held_until IS NULL GROUP BY s.id) s
    GROUP BY 1, 2"""

UNEQUAL = sa.text(f"""
    SELECT coalesce(d.agenda_id, r.agenda_id), coalesce(d.day, r.day), d.ranges, r.ranges
    FROM open_day d FULL JOIN ({RECOMPUTED}) r ON r.agenda_id = d.agenda_id AND r.day = d.day
    WHERE d.ranges IS DISTINCT FROM r.ranges
       OR r.slots IS DISTINCT FROM (SELECT coalesce(array_agg(x ORDER BY x), '{{}}') FROM unnest(d.slots) x)
       OR d.starts <> (SELECT coalesce(array_agg(s.starts_at ORDER BY x.place), '{{}}')
                       FROM unnest(d.slots) WITH ORDINALITY x (id, place) JOIN slot s ON s.id = x.id)
       OR d.longest <> (SELECT coalesce(max(extract(epoch FROM upper(x) - lower(x)) / 60), 0)
                         FROM unnest(d.ranges) x)""")

OFFERED = sa.text("""
    SELECT agenda_id, service_id FROM (
        (TABLE bookable EXCEPT SELECT * FROM bookable_of(ARRAY(SELECT id FROM clinic)))
        UNION ALL
        (SELECT * FROM bookable_of(ARRAY(SELECT id FROM clinic)) EXCEPT TABLE bookable)) d""")
"""What is offered otherwise than the table says."""

READ = {
    "slots": "SELECT id, agenda_id, starts_at, ends_at, state, capacity FROM slot ORDER BY agenda_id, starts_at",
    "seats": "SELECT slot_id, held_until FROM seat",
    "busy": """SELECT occupant, within, lower(during) AS begins, upper(during) AS ends, until
               FROM occupancy""",
    "offers": """SELECT a.id AS agenda, v.id AS service, v.code, v.duration_minutes, a.min_notice_minutes
                 FROM agenda a JOIN agenda_service o ON o.agenda_id = a.id JOIN service v ON v.id = o.service_id
                 WHERE a.online AND a.active AND v.active AND v.bookable_online""",
}


def oracle(connection: sa.Connection, wanted: Wanted, as_of: datetime) -> list[tuple[datetime, int]]:
    """Every start at which the service fits, by reading everything and thinking in Python; knows no summary."""
    read = {name: connection.execute(sa.text(query)).all() for name, query in READ.items()}
    found = []
    for offer in read["offers"]:
        if offer.code != wanted.service:
            continue
        mine = [s for s in read["slots"] if s.agenda_id == offer.agenda and s.state != "retired"]
        for first in mine:
            until = first.starts_at + timedelta(minutes=offer.duration_minutes)
            run = [s for s in mine if first.starts_at <= s.starts_at < until]
            whole = all(a.ends_at == b.starts_at for a, b in pairwise(run)) and run[-1].ends_at >= until
            room = all(
                s.state == "free"
                and sum(t.slot_id == s.id and (t.held_until is None or t.held_until > as_of) for t in read["seats"])
                < s.capacity
                for s in run
            )
            in_time = first.starts_at >= wanted.earliest and first.starts_at < wanted.before
            in_time = in_time and first.starts_at > as_of + timedelta(minutes=offer.min_notice_minutes)
            if whole and room and in_time and not _hindered(connection, read["busy"], offer, run, as_of):
                found.append((first.starts_at, first.id))
    return sorted(found)


def _hindered(connection: sa.Connection, busy: list, offer: sa.Row, run: list, as_of: datetime) -> bool:
    needed: dict[str, dict[int, bool]] = {}
    person = connection.scalar(sa.text("SELECT specialist_id FROM agenda WHERE id = :id"), {"id": offer.agenda})
    rows = connection.execute(
        sa.text("""SELECT kind, subject, lower(during) AS begins, upper(during) AS ends, within
                   FROM needs(:agenda, :person, :service, NULL, tstzrange(:begins, :ends), -1)"""),
        {
            "agenda": offer.agenda,
            "person": person,
            "service": offer.service,
            "begins": run[0].starts_at,
            "ends": run[-1].ends_at,
        },
    )
    for need in rows:
        occupant = 4 * need.subject + (0 if need.kind == "doctor" else 2)
        meets = any(
            b.occupant == occupant
            and b.within != need.within
            and b.begins < need.ends
            and b.ends > need.begins
            and (b.until is None or b.until > as_of)
            for b in busy
        )
        of_kind = needed.setdefault(need.kind, {})
        of_kind[need.subject] = of_kind.get(need.subject, False) or meets
    return any(all(each.values()) for each in needed.values())


def found(connection: sa.Connection, wanted: Wanted, as_of: datetime) -> list[tuple[datetime, int]]:
    return [(each.starts_at, each.slot_id) for each in availability.first_starts(connection, wanted, as_of)]


class Chain:
    """A doctor of two clinics, whose first has a longer service too, with the one instrument; slots of four days."""

    def __init__(self, connection: sa.Connection) -> None:
        self.here = world.practice(connection, capacity=2, horizon_days=4)
        self.there = world.practice(connection, "RE01", capacity=1, horizon_days=4, min_notice_minutes=90)
        connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
        connection.execute(sa.text("UPDATE service SET code = '89.7'"))
        pauses = {"pause_before_minutes": 10, "pause_after_minutes": 20}
        self.long = world.service(connection, self.here.clinic, code="88.7", duration_minutes=60, **pauses)
        offer = {"clinic_id": self.here.clinic, "agenda_id": self.here.agenda, "service_id": self.long}
        world.insert(connection, "agenda_service", [offer])
        place = {"clinic_id": self.here.clinic, "location_id": self.here.location}
        (echo,) = world.insert(connection, "resource", [{**place, "kind": "instrument", "name": "Ecografo"}])
        needs = {"clinic_id": self.here.clinic, "service_id": self.long, "resource_id": echo}
        world.insert(connection, "service_resource", [needs])
        # A turn over midnight in UTC: a long visit may begin on one day of the summary and end on the next.
        world.rules(connection, self.here.agenda, (3,), "00:00", "02:00")

    def wanted(self, code: str, as_of: datetime, **fields: object) -> Wanted:
        return Wanted(code, as_of, as_of + timedelta(days=14), availability.MOST, **fields)  # type: ignore[arg-type]


DEEDS = (
    "offer",
    "tidy",
    "place",
    "book",
    "confirm",
    "unverified",
    "cancel",
    "move",
    "release",
    "capacity",
    "close",
    "open",
    "slot",
    "drop",
)
deeds = st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 10_000), st.integers(0, 40)), min_size=5, max_size=25)


class Hands:
    """Does random deeds through the rules, on a clock that only goes on."""

    def __init__(self, connection: sa.Connection, chain: Chain) -> None:
        self.connection, self.chain, self.now = connection, chain, AS_OF
        self.tokens: list[tuple[str, int]] = []

    def do(self, deed: str, n: int, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        getattr(self, deed)(n)

    def _slot(self, n: int) -> tuple[int, int]:
        rows = self.connection.execute(
            sa.text("""SELECT s.id, o.service_id FROM slot s JOIN agenda_service o ON o.agenda_id = s.agenda_id
                       WHERE s.starts_at > :as_of ORDER BY s.starts_at, o.service_id"""),
            {"as_of": self.now},
        ).all()
        return tuple(rows[n % min(len(rows), 40)])  # type: ignore[return-value]

    def _booking(self, n: int) -> int:
        ids = list(self.connection.scalars(sa.text("SELECT id FROM appointment ORDER BY id")))
        return ids[n % len(ids)] if ids else 0

    def place(self, n: int) -> None:
        slot, service = self._slot(n)
        token = holds.new_token()
        given = {"slot_id": slot, "service_id": service, "token": token, "visitor": str(n), "as_of": self.now}
        if holds.place(self.connection, **given).done:
            self.tokens.append((token, service))

    def _confirm(self, n: int, patient: int | None) -> None:
        if self.tokens:
            token, service = self.tokens[n % len(self.tokens)]
            chosen = holds.Booking(service, patient, "chi@example.org")
            confirming.confirm(self.connection, token=token, booking=chosen, as_of=self.now)

    def confirm(self, n: int) -> None:
        self._confirm(n, world.patient(self.connection))

    def unverified(self, n: int) -> None:
        self._confirm(n, None)
        waiting = self.connection.scalar(sa.text("SELECT min(id) FROM appointment WHERE status = 'unverified'"))
        if waiting and n % 3 == 0:
            patient = world.patient(self.connection)
            unverified.verify(self.connection, appointment_id=waiting, patient_id=patient, as_of=self.now)

    def release(self, n: int) -> None:
        if self.tokens:
            holds.release(self.connection, token=self.tokens[n % len(self.tokens)][0], as_of=self.now)

    def book(self, n: int) -> None:
        slot, service = self._slot(n)
        patient = world.patient(self.connection)
        given = {"slot_id": slot, "service_id": service, "patient_id": patient, "as_of": self.now}
        appointments.book(self.connection, **given)

    def cancel(self, n: int) -> None:
        appointments.cancel(self.connection, appointment_id=self._booking(n), as_of=self.now)

    def move(self, n: int) -> None:
        slot = self._slot(n)[0]
        appointments.move(
            self.connection, appointment_id=self._booking(n // 7), slot_id=slot, as_of=self.now, by_staff=True
        )

    def _derive(self, day: date) -> None:
        self.connection.execute(
            sa.text(
                "CREATE TEMP TABLE touched AS SELECT id AS agenda_id, CAST(:day AS date) AS local_date FROM agenda"
            ),
            {"day": day},
        )
        touched.derive(self.connection, "touched", self.now)
        self.connection.execute(sa.text("DROP TABLE touched"))

    def capacity(self, n: int) -> None:
        given = {"capacity": 1 + n % 3, "agenda": self.chain.here.agenda}
        self.connection.execute(sa.text("UPDATE agenda SET capacity = :capacity WHERE id = :agenda"), given)
        self._derive(date(2026, 3, 11 + n % 3))

    def close(self, n: int) -> None:
        day = date(2026, 3, 11 + n % 3)
        world.closure(self.connection, day, from_time="10:00", to_time="11:30")
        self._derive(day)

    def open(self, _n: int) -> None:
        self.connection.execute(sa.text("UPDATE closure SET lifted_at = :as_of"), {"as_of": self.now})
        for day in (11, 12, 13):
            self._derive(date(2026, 3, day))

    def offer(self, n: int) -> None:
        """What is offered changes: online or not, at another notice, for longer, or by another person."""
        here, there = self.chain.here, self.chain.there
        statement, which = (
            ("UPDATE agenda SET online = NOT online WHERE id = :which", there.agenda),
            ("UPDATE agenda SET min_notice_minutes = 60 - min_notice_minutes % 60 WHERE id = :which", there.agenda),
            ("UPDATE service SET bookable_online = NOT bookable_online WHERE id = :which", self.chain.long),
            ("UPDATE service SET duration_minutes = 90 - duration_minutes WHERE id = :which", self.chain.long),
            ("UPDATE specialist SET fiscal_code = fiscal_code || 'X' WHERE id = :which", there.specialist),
            ("DELETE FROM agenda_service WHERE service_id = :which", here.service),
        )[n % 6]
        self.connection.execute(sa.text(statement), {"which": which})

    def tidy(self, _n: int) -> None:
        availability.tidy(self.connection)
        assert self.connection.execute(OFFERED).all() == []

    def slot(self, n: int) -> None:
        starts = rome(date(2026, 3, 11 + n % 3), f"{14 + n % 4}:{30 * (n % 2):02d}")
        there = sa.text("SELECT EXISTS (SELECT FROM slot WHERE agenda_id = :agenda AND starts_at = :starts)")
        if not self.connection.scalar(there, {"agenda": self.chain.there.agenda, "starts": starts}):
            world.slot(self.connection, self.chain.there.agenda, starts, manual=True)

    def drop(self, n: int) -> None:
        slot = self._slot(n)[0]
        self.connection.execute(
            sa.text("""DELETE FROM slot s WHERE id = :slot AND NOT EXISTS (SELECT FROM seat WHERE slot_id = s.id)
                       AND NOT EXISTS (SELECT FROM hold WHERE slot_id = s.id)
                       AND NOT EXISTS (SELECT FROM appointment WHERE slot_id = s.id)
                       AND NOT EXISTS (SELECT FROM orphan WHERE slot_id = s.id)"""),
            {"slot": slot},
        )


Generated = tuple[sa.Engine, Chain]


@pytest.fixture(scope="module")
def generated(server: sa.URL) -> Iterator[Generated]:
    """A database with the chain's slots in it, in which nothing more is committed."""
    with postgres.copied(server, postgres.EMPTY) as url:
        engine = postgres.create_engine(url)
        with engine.begin() as connection:
            chain = Chain(connection)
        slots.generate(engine, AS_OF)
        yield engine, chain
        engine.dispose()


def _compared(connection: sa.Connection, chain: Chain, as_of: datetime) -> None:
    assert connection.execute(UNEQUAL).all() == []
    for code in ("89.7", "88.7"):
        wanted = chain.wanted(code, as_of)
        assert found(connection, wanted, as_of) == oracle(connection, wanted, as_of)[: availability.MOST]


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(done=deeds)
def test_after_any_deeds_the_summary_is_as_recomputed_and_the_search_as_the_oracle(
    generated: Generated, done: list[tuple[str, int, int]]
) -> None:
    engine, chain = generated
    with engine.connect() as connection:
        hands = Hands(connection, chain)
        for deed, n, minutes in done:
            hands.do(deed, n, minutes)
            assert connection.execute(UNEQUAL).all() == []
        _compared(connection, chain, hands.now)
        _compared(connection, chain, hands.now + timedelta(minutes=45))
        assert connection.scalar(sa.text("SELECT count(*) FROM open_day_stale")) == 0


def test_a_hold_is_in_the_way_until_it_is_over_and_nothing_need_be_written(generated: Generated) -> None:
    engine, chain = generated
    with engine.connect() as connection:
        wanted = chain.wanted("89.7", AS_OF, specialist_id=chain.there.specialist, location_id=chain.there.location)
        (first, slot), *_ = found(connection, wanted, AS_OF)
        given = {"slot_id": slot, "service_id": chain.there.service, "token": "uno", "visitor": "una", "as_of": AS_OF}
        assert holds.place(connection, **given).done
        assert found(connection, wanted, AS_OF)[0][0] > first
        assert found(connection, wanted, AS_OF + timedelta(minutes=10))[0] == (first, slot)


def test_a_doctor_is_offered_at_one_clinic_while_she_is_held_at_the_other(generated: Generated) -> None:
    engine, chain = generated
    with engine.connect() as connection:
        there = chain.wanted("89.7", AS_OF, location_id=chain.there.location)
        before = found(connection, there, AS_OF)
        here = found(connection, chain.wanted("89.7", AS_OF, location_id=chain.here.location), AS_OF)
        (slot,) = [slot for start, slot in here if start == before[0][0]]
        given = {"slot_id": slot, "service_id": chain.here.service, "token": "uno", "visitor": "una", "as_of": AS_OF}
        assert holds.place(connection, **given).done
        assert found(connection, there, AS_OF) == before[1:]


def test_what_is_looked_for_is_narrowed_by_place_city_doctor_clinic_days_number_and_agreement(
    generated: Generated,
) -> None:
    engine, chain = generated
    with engine.connect() as connection:

        def places(wanted: Wanted) -> set[int]:
            return {start.agenda_id for start in availability.first_starts(connection, wanted, AS_OF)}

        both = {chain.here.agenda, chain.there.agenda}
        assert places(chain.wanted("89.7", AS_OF)) == both
        assert places(chain.wanted("89.7", AS_OF, municipality="A944")) == both
        assert places(chain.wanted("89.7", AS_OF, municipality="H501")) == set()
        assert places(chain.wanted("89.7", AS_OF, clinics=[chain.there.clinic])) == {chain.there.agenda}
        assert places(chain.wanted("89.7", AS_OF, location_id=chain.here.location)) == {chain.here.agenda}
        assert places(chain.wanted("89.7", AS_OF, specialist_id=chain.here.specialist)) == both
        assert places(chain.wanted("nessuna", AS_OF)) == set()
        connection.execute(sa.text("UPDATE location SET municipality_code = NULL"))
        assert places(chain.wanted("89.7", AS_OF, municipality="A944")) == both
        day = Wanted("89.7", rome("2026-03-12", "00:00"), rome("2026-03-12", "09:31"))
        starts = [each.starts_at for each in availability.first_starts(connection, day, AS_OF)]
        assert starts == [
            rome("2026-03-12"),
            rome("2026-03-12"),
            rome("2026-03-12", "09:30"),
            rome("2026-03-12", "09:30"),
        ]
        fewer = Wanted("89.7", AS_OF, AS_OF + timedelta(days=14), most=3)
        assert len(availability.first_starts(connection, fewer, AS_OF)) == 3
        row = {"clinic_id": chain.there.clinic, "name": "Fondo", "kind": "fund", "valid_from": date(2026, 1, 1)}
        (fund,) = world.insert(connection, "agreement", [row])
        under = chain.wanted("89.7", AS_OF, agreement_id=fund)
        assert places(under) == set()
        price = {"clinic_id": chain.there.clinic, "service_id": chain.there.service, "agreement_id": fund}
        world.insert(connection, "price", [{**price, "amount": "80.00", "valid_from": date(2026, 3, 12)}])
        assert places(under) == {chain.there.agenda}
        assert {each.starts_at.date() for each in availability.first_starts(connection, under, AS_OF)} == {
            date(2026, 3, 12),
            date(2026, 3, 13),
        }


def test_two_who_change_one_day_at_once_never_wait_and_the_search_is_right_all_the_same(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        chain = Chain(connection)
    slots.generate(engine, AS_OF)
    wanted = chain.wanted("89.7", AS_OF, location_id=chain.there.location)
    with engine.begin() as connection:
        free = found(connection, wanted, AS_OF)
        seats = [{"slot_id": slot, "service_id": chain.there.service, "patient_id": world.patient(connection)}
                 for _, slot in free[:2]]  # fmt: skip
        booked = appointments.book(connection, **seats[0], as_of=AS_OF).appointment_id
    assert booked is not None
    with engine.connect() as one, engine.connect() as two:
        for each in (one, two):
            each.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
        assert appointments.cancel(one, appointment_id=booked, as_of=AS_OF).done
        two.execute(sa.text("UPDATE slot SET state = 'retired' WHERE id = :slot"), {"slot": free[1][1]})
        two.commit()
        one.commit()
    with engine.begin() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM open_day_stale")) == 1
        connection.execute(sa.text("SELECT refresh_bookable()"))
        assert found(connection, wanted, AS_OF) == [free[0], *free[2:]]
        assert availability.tidy(connection) == 1
        assert connection.execute(UNEQUAL).all() == []
        assert connection.scalar(sa.text("SELECT count(*) FROM open_day_stale")) == 0
        assert availability.tidy(connection) == 0
