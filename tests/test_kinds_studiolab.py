"""Studiolab's lists, over HTTP from its simulator, become ours; what is bad in them is named and stops nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans, show
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.studiolab import sync
from polydesk_dagster.studiolab.client import Studiolab
from polydesk_dagster.studiolab.kinds import AGREEMENT, COLLABORATOR, MUNICIPALITY, PRICE, SERVICE
from tests import world
from tests.test_remote_policy import FAST

SERVICES = [
    {"id": f"S{n}", "code": f"89.{n:02d}", "name": f"Visita {n}", "duration_minutes": 20, "active": True}
    for n in range(20)
]
AGREEMENTS = [{"id": "C1", "name": "Fondo Sanità", "kind": "fund", "valid_from": "2024-01-01"}]
PRICES = [
    {"service_id": f"S{n}", "amount": f"{50 + n}.00", "currency": "EUR", "valid_from": "2024-01-01"} for n in range(20)
] + [
    {"service_id": "S1", "agreement_id": "C1", "amount": "40.00", "patient_share": "10.00", "currency": "EUR",
     "valid_from": "2024-01-01"}
]  # fmt: skip
COLLABORATORS = [
    {"id": "D1", "title": "Dott.", "last_name": "Neri", "first_name": "Ugo", "active": True, "specialties": ["ORL"]},
    *(
        {"id": f"D{n}", "title": "Prof.", "last_name": f"Verdi{'o' * n}", "first_name": "Eva", "active": True}
        for n in range(2, 8)
    ),
]


@dataclass
class Lab:
    """A clinic and its studiolab."""

    engine: sa.Engine
    simulator: StudiolabSimulator
    url: str
    clinic: int

    def hold(self, **lists: list[dict[str, Any]]) -> None:
        self.simulator.hold("BO01", lists)

    def sync(self, feed: str, *, preview: bool = False, as_of: datetime = world.AS_OF) -> Report:
        scope = Scope(f"sync_{feed}", "BO01", self.clinic)
        with Studiolab("BO01", self.url, DEMO_TOKEN, FAST) as client:
            return sync.synchronise(self.engine, client, feed, scope, as_of=as_of, preview=preview)

    def plan(self, report: Report) -> plans.Plan:
        assert report.plan_id is not None
        with self.engine.connect() as connection:
            return plans.load(connection, report.plan_id)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def write(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))


@pytest.fixture
def lab(engine: sa.Engine) -> Iterator[Lab]:
    simulator = StudiolabSimulator()
    with engine.begin() as connection:
        clinic = world.clinic(connection)
    with in_thread(simulator) as url:
        lab = Lab(engine, simulator, url.replace("/api/v1", "/BO01/api/v1"), clinic)
        lab.hold(services=SERVICES, agreements=AGREEMENTS, prices=PRICES, collaborators=COLLABORATORS)
        yield lab


@pytest.fixture
def synced(lab: Lab) -> Lab:
    for feed in ("services", "collaborators", "agreements", "prices"):
        assert lab.sync(feed).outcome is Outcome.OK
    return lab


@pytest.mark.parametrize("kind", [SERVICE, COLLABORATOR, AGREEMENT, PRICE, MUNICIPALITY])
def test_every_column_belongs_to_somebody(connection: sa.Connection, kind: changes.Kind) -> None:
    known = {
        *kind.identity,
        *kind.fixed,
        *kind.owned,
        *kind.kept,
    }
    assert set(plans.column_types(connection, kind.table)) - {"updated_at"} == known


def test_a_second_run_changes_nothing_and_an_unchanged_list_is_not_read(synced: Lab) -> None:
    with synced.engine.begin() as connection:
        connection.execute(sa.text("UPDATE source_state SET etag = NULL"))
    for feed in ("services", "collaborators", "agreements", "prices"):
        assert synced.sync(feed).outcome is Outcome.NOTHING_TO_DO
    report = synced.sync("prices")
    assert [reason.code for reason in report.reasons] == ["not_modified"]
    synced.write("UPDATE price SET amount = 1 WHERE amount = 55")
    assert synced.sync("prices", preview=True).counts.updated == 1


def test_prices_of_every_kind_of_discrepancy(synced: Lab) -> None:
    prices = [dict(price) for price in PRICES]
    prices[0] |= {"amount": "51.00"}
    prices[1] |= {"amount": "1,234"}
    prices[2] |= {"valid_from": "2026-02-01", "amount": "53.00"}
    del prices[3]
    prices.append(prices[4])
    prices.append({"service_id": "S9999", "amount": "1.00", "currency": "EUR", "valid_from": "2024-01-01"})
    prices.append({"service_id": "S5", "amount": "60.00", "currency": "EUR", "valid_from": "2025-01-01"})
    synced.hold(prices=prices)
    report = synced.sync("prices", preview=True)
    tally = synced.plan(report).tally
    assert {name: tally[name] for name in ("differs", "invalid", "unmapped", "overlapping", "missing_there")} == {
        "differs": 2,
        "invalid": 1,
        "unmapped": 1,
        "overlapping": 2,
        "missing_there": 1,
    }
    assert synced.rows("SELECT count(*) FROM price WHERE valid_to IS NULL") == [(21,)]
    applied = synced.sync("prices")
    assert (applied.outcome, applied.counts.failed) == (Outcome.PARTIAL, 1)
    # The unreadable one and those that contradict themselves stay as they were.
    amounts = "SELECT p.amount FROM price p JOIN service s ON s.id = p.service_id WHERE s.external_id = '{}' {}"
    assert synced.rows(amounts.format("S1", "AND p.agreement_id IS NULL"))[0][0] == 51
    assert [str(a) for (a,) in synced.rows(amounts.format("S5", ""))] == ["55.00"]
    assert [str(a) for (a,) in synced.rows(amounts.format("S2", "ORDER BY valid_from"))] == ["52.00", "53.00"]
    assert synced.sync("prices").counts.changed == 0


def test_a_price_edited_after_the_preview_refuses_the_plan_by_name(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "51.00"}, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    plan = synced.plan(synced.sync("prices", preview=True))
    synced.write("UPDATE price SET amount = 7 WHERE amount = 50")
    scope = Scope("sync_prices", "BO01", synced.clinic)
    report = settle(synced.engine, PRICE, scope, plan, as_of=world.AS_OF, actor="desk:anna")
    assert report.outcome is Outcome.REFUSED
    assert [reason.message for reason in report.reasons] == ["89.00 · privato dal 2024-01-01: modificato dopo"]
    assert synced.rows("SELECT count(*) FROM price WHERE amount IN (51, 7)") == [(2,)]


def test_what_the_clinic_owns_is_never_overwritten_and_a_rename_is_no_new_service(synced: Lab) -> None:
    synced.write("UPDATE service SET price = 12, bookable_online = true WHERE external_id = 'S3'")
    synced.hold(services=[*SERVICES[:3], SERVICES[3] | {"name": "Visita rinominata"}, *SERVICES[4:]])
    report = synced.sync("services")
    assert (report.counts.updated, report.counts.changed) == (1, 1)
    assert synced.rows("SELECT name, price, bookable_online FROM service WHERE external_id = 'S3'") == [
        ("Visita rinominata", 12, True)
    ]


def test_a_service_or_a_doctor_with_bookings_cannot_vanish(synced: Lab) -> None:
    with synced.engine.begin() as connection:
        service = connection.scalar(sa.text("SELECT id FROM service WHERE external_id = 'S3'"))
        doctor = connection.scalar(sa.text("SELECT id FROM specialist WHERE external_id = 'D1'"))
        location = world.location(connection, synced.clinic)
        agenda = world.agenda(connection, synced.clinic, location_id=location, specialist_id=doctor)
        patient = world.patient(connection)
        slot = world.slot(connection, agenda, world.rome("2026-03-12"))
        world.appointment(connection, slot, patient_id=patient, service_id=service, specialist_id=doctor)
    synced.hold(services=[s for s in SERVICES if s["id"] not in {"S3", "S4"}], collaborators=COLLABORATORS[1:])
    report = synced.sync("services")
    assert (report.counts.retired, report.counts.skipped) == (1, 1)
    assert synced.rows("SELECT external_id FROM service WHERE deleted_at IS NOT NULL") == [("S4",)]
    report = synced.sync("collaborators")
    assert (report.outcome, report.counts.changed, report.counts.skipped) == (Outcome.NOTHING_TO_DO, 0, 1)
    synced.hold(services=SERVICES)
    assert synced.sync("services").counts.updated == 1
    assert synced.rows("SELECT count(*) FROM service WHERE deleted_at IS NOT NULL") == [(0,)]


def test_what_the_desk_had_typed_is_linked_and_not_doubled(lab: Lab) -> None:
    with lab.engine.begin() as connection:
        world.service(connection, lab.clinic, code="89.03", name="Visita vecchia", external_id=None)
        world.specialist(connection, lab.clinic, last_name="NERI", first_name="Ugo", external_id=None)
    assert lab.sync("services").counts.as_dict() | {"unchanged": 0} == {
        "created": 19, "updated": 1, "retired": 0, "skipped": 0, "failed": 0, "unchanged": 0,
    }  # fmt: skip
    assert lab.sync("collaborators").counts.updated == 1
    assert lab.rows("SELECT count(*) FROM specialist") == [(7,)]


@pytest.mark.parametrize(
    "bad",
    [
        {"service_id": "S0\0", "amount": 5},
        {"service_id": "S\ud800", "amount": 5},
        {"amount": 5, "note": ["a\0b", {"\ud800": 1}]},
        {"service_id": world.NOISE},
        {"agreement_id": world.NOISE},
        {"vat_rate": "1000.00"},
        {"vat_rate": "101"},
        {"amount": "123456789.00"},
        {"patient_share": "-1.00"},
    ],
    ids=lambda bad: next(reversed(bad)) + str(len(str(bad))),
)
def test_whatever_is_in_a_bad_price_it_is_set_aside_alone(synced: Lab, bad: dict[str, Any]) -> None:
    synced.hold(prices=[PRICES[0] | bad, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.updated, report.counts.failed) == (Outcome.PARTIAL, 1, 1)
    assert synced.rows("SELECT count(*) FROM quarantine") == [(1,)]


@pytest.mark.parametrize("field", ["id", "code"])
def test_a_service_whose_id_or_code_is_a_book_is_set_aside_alone(lab: Lab, field: str) -> None:
    lab.hold(services=[*SERVICES[1:], SERVICES[0] | {field: world.NOISE}])
    report = lab.sync("services")
    assert (report.outcome, report.counts.created, report.counts.failed) == (Outcome.PARTIAL, 19, 1)


def test_a_service_may_have_the_nomenclatures_long_name(lab: Lab) -> None:
    lab.hold(services=[*SERVICES[1:], SERVICES[0] | {"name": world.NOISE[:640], "preparation": world.NOISE[:5000]}])
    assert lab.sync("services").counts.created == 20


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "empty"},
        {"kind": "html"},
        {"kind": "cut"},
        {"kind": "status", "status": 401},
        {"kind": "status", "status": 500, "times": None},
        {"kind": "remove", "field": "items"},
        {"kind": "top", "field": "items", "value": None},
    ],
    ids=lambda fault: f"{fault['kind']}-{fault.get('status', '')}",
)
def test_a_source_that_fails_shrinks_or_changes_shape_keeps_the_last_good_state(
    synced: Lab, fault: dict[str, Any]
) -> None:
    before = synced.rows("SELECT * FROM price ORDER BY id")
    synced.hold(prices=PRICES[:10])  # so that the list is not simply unchanged
    synced.simulator.fail(fault.pop("kind"), "/prices", **{"times": None, **fault})
    said = ""
    try:
        report = synced.sync("prices")
        assert report.outcome is Outcome.REFUSED
        said = report.reasons[0].message
    except PolydeskError as error:
        said = str(error)
    assert "fermato da un controllo" in said or "BO01" in said
    assert synced.rows("SELECT * FROM price ORDER BY id") == before


def test_a_short_list_a_reencoded_one_and_contradictions_are_refused(synced: Lab) -> None:
    synced.hold(prices=PRICES[:8])
    report = synced.sync("prices")
    assert (report.outcome, "source_short" in report.reasons[0].message) == (Outcome.REFUSED, True)
    synced.hold(services=[s | {"name": "Visita di attivitÃ  motoria"} for s in SERVICES])
    report = synced.sync("services")
    assert (report.outcome, "source_encoding" in report.reasons[0].message) == (Outcome.REFUSED, True)
    synced.hold(services=[*SERVICES, SERVICES[0] | {"name": "Un'altra"}])
    report = synced.sync("services")
    assert "numero 1, 21" in report.reasons[0].message
    assert synced.rows("SELECT count(*) FROM service WHERE name LIKE 'Visita %'") == [(20,)]


def test_a_price_that_jumps_or_falls_to_zero_waits_for_a_person(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "5.00"}, PRICES[1] | {"amount": "0.00"}, *PRICES[2:]])
    plan = synced.plan(synced.sync("prices"))
    assert plan.state == "ready"
    assert {guard.name for guard in plan.failed_guards} == {"price_jump", "code_reused", "zero_price"}


def test_the_preview_of_people_masks_codes(synced: Lab) -> None:
    synced.hold(collaborators=[*COLLABORATORS, COLLABORATORS[0] | {"id": "D3", "fiscal_code": "RSSMRA80A01H501U"}])
    report = synced.sync("collaborators", preview=True)
    assert "RSSMRA80A01H501U" not in str(report)
    with synced.engine.connect() as connection:
        rows = list(show.rows(connection, synced.plan(report), COLLABORATOR))
    assert rows[0].after["fiscal_code"] == "RSSMRA80A01H501U"
