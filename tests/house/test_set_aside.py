"""Set aside is not fine: what a run gives to a person colours that run, is counted as waiting, and colours no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes.kind import Limits
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Unreadable
from polydesk_dagster.changes.synchronise import synchronise
from polydesk_dagster.clinic.bookings import confirming, holds, sweeping
from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.clinic.messages import service
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.kinds.municipalities import MUNICIPALITY
from polydesk_dagster.values import Reason
from tests import world
from tests.calendar.test_closures_import import OTHER, THIS, central, item
from tests.changes import world as listed
from tests.knowledge.world import Shelf
from tests.messages.world import booked, gateway
from tests.patients.world import MARIO, Import, person
from tests.sources.events_world import booking
from tests.sources.events_world import lab as feed
from tests.sources.lab import AGREEMENTS, COLLABORATORS, PRICES, SERVICES, Lab, lab
from tests.world import AS_OF, rome

__all__ = ["lab"]  # a fixture

CALM = {Outcome.OK, Outcome.NOTHING_TO_DO}
DAY = "2026-03-12"

QUARANTINE = "SELECT count(*) FROM quarantine WHERE resolved_at IS NULL"
ASIDE = f"SELECT (SELECT count(*) FROM set_aside) + ({QUARANTINE})"
CALLS = "SELECT count(*) FROM call_list WHERE state = 'open'"
DOUBTS = "SELECT count(*) FROM message_ledger_state WHERE state = 'unknown'"
ORPHANS = "SELECT count(*) FROM orphan WHERE resolved_at IS NULL"


@dataclass
class House:
    """What a case is made of: a database, a folder, and what must stay open until the second run is over."""

    engine: sa.Engine
    folder: Path
    lab: Callable[[], Lab]
    open: ExitStack = field(default_factory=ExitStack)


Run = Callable[[int], Report]
"""The n-th run right after the other of a service that meets something it gives to a person."""


@pytest.fixture
def house(engine: sa.Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    made = House(engine, tmp_path, lambda: request.getfixturevalue("lab"))
    with made.open:
        yield made


def _of_studiolab(feed: str, *first: str, **lists: list[dict[str, Any]]) -> Callable[[House], Run]:
    """The list ``feed`` as ``lists`` say, after those that come ``first``."""

    def case(house: House) -> Run:
        studiolab = house.lab()
        for before in first:
            assert studiolab.sync(before).outcome is Outcome.OK
        studiolab.hold(
            **{"services": SERVICES, "agreements": AGREEMENTS, "prices": PRICES, "collaborators": COLLABORATORS} | lists
        )
        return lambda n: studiolab.sync(feed, as_of=AS_OF + n * timedelta(minutes=1))

    return case


def _taken_name(house: House) -> Run:
    """An agreement that is ours by hand, under a name that two of studiolab's claim."""
    studiolab = house.lab()
    with house.engine.begin() as connection:
        fund = {"clinic_id": studiolab.clinic, "name": "Fondo Uno", "kind": "fund", "valid_from": "2020-01-01"}
        world.insert(connection, "agreement", [fund])
    studiolab.hold(agreements=[AGREEMENTS[0] | {"id": id_, "name": "FONDO UNO"} for id_ in ("C2", "C3")])
    return lambda _: studiolab.sync("agreements")


def _municipalities(house: House) -> Run:
    bad = Unreadable("H501", "invalid", Reason("wire_not_foreseen"), {"cadastral_code": "H501"})
    few = replace(MUNICIPALITY, limits=Limits())
    good = [
        listed.municipality("A944", "Bologna"),
        *(listed.municipality(f"A{n}", f"Comune {n}") for n in range(100, 300)),
    ]

    def run(_: int) -> Report:
        pages = listed.pages(good, bad=[bad])
        return synchronise(house.engine, few, Scope("import_municipalities"), pages, as_of=AS_OF)

    return run


def _patients(*items: dict[str, Any]) -> Callable[[House], Run]:
    def case(house: House) -> Run:
        run = Import(house.engine)
        return lambda _: run(*items)

    return case


def _doubtful_patients(house: House) -> Run:
    """Everybody is like somebody whom the clinic knows under no number of studiolab's."""
    run = Import(house.engine)
    with house.engine.begin() as connection:
        world.patient(
            connection, last_name="Rossi", first_name="Mario", birth_date="1980-01-01", mobile="+393331234567"
        )
    return lambda _: run(person("P1", fiscal_code=None), person("P2", fiscal_code=None))


def _events(house: House) -> Run:
    bo = house.open.enter_context(feed(house.engine))
    bo.publish(booking("X1", agenda_id="A99"), booking("X1", "10:00", "rescheduled"))
    return lambda _: bo.sync()


def _unreachable(kind: str, **fields: Any) -> Callable[[House], Run]:
    """Of two appointments one is of somebody whom no message reaches in time."""

    def case(house: House) -> Run:
        with house.engine.begin() as connection:
            practice = world.practice(connection)
            nobody = world.patient(connection, mobile=None, email=None)
            offered = world.service(connection, practice.clinic, **fields) if fields else practice.service
            booked(connection, practice, "09:00", service_id=offered, patient_id=nobody)
            booked(connection, practice, "15:00", service_id=offered)
        _, providers = house.open.enter_context(gateway())
        return lambda _: service.send(house.engine, AS_OF, kind, providers)

    return case


def _nobody_reachable(house: House) -> Run:
    with house.engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, patient_id=world.patient(connection, mobile=None, email=None))
    _, providers = house.open.enter_context(gateway())
    return lambda _: service.send(house.engine, AS_OF, "reminder", providers)


def _in_doubt(house: House) -> Run:
    """The gateway takes a message and breaks off before it has said so."""
    with house.engine.begin() as connection:
        booked(connection, world.practice(connection))
    simulator, providers = house.open.enter_context(gateway())
    simulator.fail("cut", times=100)
    return lambda _: service.send(house.engine, AS_OF, "reminder", providers)


def _orphan(house: House) -> world.Practice:
    with house.engine.begin() as connection:
        practice = world.practice(connection)
    slots.generate(house.engine, AS_OF)
    with house.engine.begin() as connection:
        slot = connection.scalar(
            sa.text("SELECT id FROM slot WHERE agenda_id = :agenda AND starts_at = :start"),
            {"agenda": practice.agenda, "start": rome(DAY, "12:30")},
        )
        world.appointment(connection, slot or 0, service_id=practice.service, patient_id=practice.patient)
    return practice


def _closed_by_hand(house: House) -> Run:
    _orphan(house)
    with house.engine.begin() as connection:
        world.closure(connection, DAY)
    return lambda _: slots.generate(house.engine, AS_OF)


def _closed_by_the_centre(house: House) -> Run:
    _orphan(house)
    sets = {2026: [*THIS, item("nuova", DAY)], 2027: OTHER}

    def run(n: int) -> Report:  # orphans are kept by the slots' own service
        imported = closures.import_closures(house.engine, central(sets), as_of=AS_OF)
        return slots.generate(house.engine, AS_OF) if n else imported

    return run


def _closure_unreadable(house: House) -> Run:
    _orphan(house)
    sets = {2026: [*THIS, item("storta", "domani")], 2027: OTHER}
    return lambda _: closures.import_closures(house.engine, central(sets), as_of=AS_OF)


def _documents(house: House) -> Run:
    shelf = Shelf(house.engine, house.folder)
    shelf.topics()
    shelf.write("vuoto.md", "")
    shelf.write("persona.md", "# Elenco\n\nIl paziente BNCLRA85B41F205K ha chiamato.")
    return lambda _: shelf.blue()


def _payment(house: House) -> Run:
    with house.engine.begin() as connection:
        practice = world.practice(connection)
        for n, at in enumerate(("09:00", "10:00")):
            slot, who = world.slot(connection, practice.agenda, rome("2026-03-11", at)), f"ospite-{n}"
            holds.place(connection, slot_id=slot, service_id=practice.service, token=who, visitor=who, as_of=AS_OF)
        confirming.begin_confirming(connection, token="ospite-0", as_of=AS_OF, payment_reference="PAY-0")

    def run(n: int) -> Report:
        with house.engine.begin() as connection:
            return sweeping.release_expired(connection, AS_OF + timedelta(minutes=5 + n))

    return run


STUCK = "SELECT count(*) FROM hold WHERE state = 'confirming'"
BROKEN = {"service_id": "S3", "amount": "?", "currency": "EUR", "valid_from": "2024-01-01"}
CASES: dict[str, tuple[Callable[[House], Run], str]] = {
    "services unreadable": (_of_studiolab("services", services=[*SERVICES, {"id": "S98", "name": 7}]), ASIDE),
    "collaborators unreadable": (
        _of_studiolab("collaborators", collaborators=[*COLLABORATORS, {"id": "D98", "last_name": 1}]),
        ASIDE,
    ),
    "agreements unreadable": (
        _of_studiolab("agreements", agreements=[*AGREEMENTS, {"id": "C9", "name": None}]),
        ASIDE,
    ),
    "agreements claimed twice": (_taken_name, ASIDE),
    "prices unreadable": (_of_studiolab("prices", "services", "agreements", prices=[*PRICES, BROKEN]), ASIDE),
    "prices of nothing of ours": (_of_studiolab("prices"), ASIDE),
    "municipalities unreadable": (_municipalities, ASIDE),
    "patients unreadable": (
        _patients(*(person(f"P{n}", fiscal_code=None, last_name=f"Neri{'o' * n}") for n in range(2, 12)),
                  MARIO | {"birth_date": "1980-02-31"}),
        ASIDE,
    ),
    "patients in doubt": (_doubtful_patients, "SELECT count(*) FROM patient_review WHERE state = 'open'"),
    "events parked": (_events, "SELECT count(*) FROM event_inbox WHERE state IN ('parked', 'waiting')"),
    "reminders to nobody": (_nobody_reachable, CALLS),
    "a reminder to nobody": (_unreachable("reminder"), CALLS),
    "a reminder in doubt": (_in_doubt, DOUBTS),
    "a preparation to nobody": (
        _unreachable("preparation", preparation="A digiuno.", preparation_lead_days=1, preparation_last_hours=12),
        CALLS,
    ),
    "slots closed by hand": (_closed_by_hand, ORPHANS),
    "slots closed by the centre": (_closed_by_the_centre, ORPHANS),
    "closures unreadable": (_closure_unreadable, QUARANTINE),
    "documents": (_documents, "SELECT count(*) FROM document WHERE state = 'quarantined'"),
    "a payment without an answer": (_payment, STUCK),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_waits_for_a_person_is_never_inside_a_run_that_went_well(house: House, case: str) -> None:
    make, waiting = CASES[case]
    run = make(house)
    first = run(0)
    with house.engine.connect() as connection:
        number = connection.scalar(sa.text(waiting))
    assert number, "the case sets something aside"
    assert first.outcome in {Outcome.PARTIAL, Outcome.REFUSED}
    assert first.counts.waiting >= number
    again = run(1)
    assert again.outcome in CALM, [reason.code for reason in again.reasons]
    assert again.counts.waiting == first.counts.waiting
