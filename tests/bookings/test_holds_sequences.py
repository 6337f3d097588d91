"""Any sequence of requests about holds, against a plain model of what each must answer and leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.clinic.bookings import confirming, holds, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.confirming import Booking
from polydesk_dagster.clinic.bookings.emergency import Press
from tests import world
from tests.world import AS_OF, rome

CAPACITY = 2
VISITORS = ("ada", "bice", "cleo", "dora")
REQUESTS = ("place", "renew", "pay", "confirm", "release", "sweep", "release_all")
STEP = st.tuples(st.sampled_from(REQUESTS), st.sampled_from(VISITORS), st.integers(0, 400))


@dataclass
class Model:
    """A hold as anyone would keep it in mind: until when, and how it stands."""

    placed_at: datetime
    until: datetime
    state: str = "live"
    renewals: int = 0
    paying_since: datetime | None = None

    def at(self, now: datetime) -> str:
        return "expired" if self.state in {"live", "confirming"} and self.until <= now else self.state

    def taken_away(self, now: datetime) -> str:
        """How it stands after "release all": a payment that has only just begun is left to end by itself."""
        just_begun = self.paying_since is not None and now < self.paying_since + sweeping.PAYMENT_GRACE
        state = self.at(now)
        return "revoked" if state == "live" or (state == "confirming" and not just_begun) else state


OVER = {
    "expired": Answer.EXPIRED,
    "revoked": Answer.REVOKED,
    "released": Answer.RELEASED,
    "confirmed": Answer.CONFIRMED,
}


def expected(request: str, who: str, now: datetime, kept: dict[str, Model]) -> Answer:
    """What the request must answer; moves the model along."""
    hold = kept.get(who)
    if request == "place":
        if hold is not None:
            return OVER.get(hold.at(now), Answer.PLACED)
        taken = sum(each.at(now) in {"live", "confirming", "confirmed"} for each in kept.values())
        if taken >= CAPACITY:
            return Answer.FULL
        kept[who] = Model(now, now + timedelta(minutes=10))
        return Answer.PLACED
    if hold is None:
        return Answer.UNKNOWN
    state = hold.at(now)
    if state in OVER:
        return OVER[state]
    match request:
        case "renew" if state == "confirming":
            return Answer.CONFIRMING
        case "renew":
            until = min(now + timedelta(minutes=10), hold.placed_at + timedelta(minutes=30))
            if hold.renewals == 2 or until <= hold.until:
                return Answer.NO_MORE_RENEWALS
            hold.until, hold.renewals = until, hold.renewals + 1
            return Answer.RENEWED
        case "pay":
            if state == "live":
                hold.state, hold.paying_since, hold.until = "confirming", now, now + timedelta(minutes=20)
            return Answer.CONFIRMING
        case "confirm":
            hold.state = "confirmed"
            return Answer.CONFIRMED
        case _:
            hold.state = "released"
            return Answer.RELEASED


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=5, max_size=30))
def test_every_answer_is_the_right_one(engine: sa.Engine, steps: list[tuple[str, str, int]]) -> None:
    with engine.connect() as connection:  # each example is rolled back
        practice = world.practice(connection)
        slot = world.slot(connection, practice.agenda, rome("2026-03-12"), capacity=CAPACITY)
        patients = {who: world.patient(connection) for who in VISITORS}
        now, kept = AS_OF, dict[str, Model]()
        for request, who, seconds in steps:
            now += timedelta(seconds=seconds)
            if request == "sweep":
                sweeping.release_expired(connection, now)
                continue
            if request == "release_all":
                shown = releasing.release_all(connection, now, Press(), preview=True)
                phrase = f"LIBERA {shown.counts.updated}"
                given = world.typed(connection, Press("prova di sequenze", phrase, plan_id=shown.plan_id))
                done = releasing.release_all(connection, now, given, preview=False)
                if done.outcome != "refused":
                    for hold in kept.values():
                        hold.state = hold.taken_away(now)
                continue
            given_ = {"token": f"token {who}", "as_of": now}
            match request:
                case "place":
                    reply = holds.place(
                        connection, slot_id=slot, service_id=world.offered(connection, slot), visitor=who, **given_
                    )
                case "renew":
                    reply = holds.renew(connection, **given_)
                case "pay":
                    reply = confirming.begin_confirming(connection, **given_)
                case "confirm":
                    reply = confirming.confirm(connection, booking=Booking(practice.service, patients[who]), **given_)
                case _:
                    reply = holds.release(connection, **given_)
            assert reply.answer is expected(request, who, now, kept), f"{request} of {who}"
        stands = {"live", "confirming", "confirmed"}
        seats = connection.scalar(
            sa.text("""SELECT count(*) FROM seat WHERE slot_id = :slot
                       AND (appointment_id IS NOT NULL OR held_until > :now)"""),
            {"slot": slot, "now": now},
        )
        assert seats == sum(hold.at(now) in stands for hold in kept.values()) <= CAPACITY
