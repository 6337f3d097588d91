"""Studiolab's lists, over HTTP from its simulator, become ours; what is bad in them is named and stops nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans, show
from polydesk_dagster.changes.kind import Limits
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.collaborators import COLLABORATOR
from polydesk_dagster.sources.kinds.municipalities import MUNICIPALITY
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from tests import world
from tests.changes import world as w
from tests.sources.test_remote_policy import FAST

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
            return lists.synchronise(self.engine, client, feed, scope, as_of=as_of, preview=preview)

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
    synced.write("UPDATE price SET amount = 54 WHERE amount = 55")
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
    assert (applied.outcome, applied.counts.waiting) == (Outcome.PARTIAL, 4)
    # The unreadable one and those that contradict themselves stay as they were.
    amounts = "SELECT p.amount FROM price p JOIN service s ON s.id = p.service_id WHERE s.external_id = '{}' {}"
    assert synced.rows(amounts.format("S1", "AND p.agreement_id IS NULL"))[0][0] == 51
    assert [str(a) for (a,) in synced.rows(amounts.format("S5", ""))] == ["55.00"]
    assert [str(a) for (a,) in synced.rows(amounts.format("S2", "ORDER BY valid_from"))] == ["52.00", "53.00"]
    assert synced.sync("prices").counts.changed == 0


def spell(amount: str, start: str, end: str | None = None, **fields: str) -> dict[str, Any]:
    """What S1 costs for a while."""
    return {"service_id": "S1", "amount": amount, "currency": "EUR", "valid_from": start, "valid_to": end, **fields}


THEN = [spell("51.00", "2024-01-01", "2025-01-01"), spell("52.00", "2025-01-01", "2026-01-01")]
EARLIER = [spell("51.00", "2024-01-01", "2024-06-01"), spell("52.00", "2024-06-01", "2026-01-01")]
LATER = [spell("51.00", "2024-01-01", "2025-06-01"), spell("52.00", "2025-06-01", "2026-01-01")]
NOW = spell("53.00", "2026-01-01")
ALWAYS = [spell("51.00", "2024-01-01")]
WITHDRAWN = [spell("51.00", "2024-01-01", "2025-06-01"), spell("55.00", "2025-06-01")]
SOON = [spell("51.00", "2024-01-01", "2026-06-01"), spell("55.00", "2026-06-01")]
DELAYED = [spell("51.00", "2024-01-01", "2026-07-01"), spell("55.00", "2026-07-01")]


@pytest.mark.parametrize(
    ("lists", "held"),
    [
        ([[spell("51.00", "2023-01-01")]], ["2023-01-01 - 51.00"]),
        ([WITHDRAWN, ALWAYS], ["2024-01-01 - 51.00"]),
        (
            [[*THEN, NOW], [*LATER, NOW]],
            ["2024-01-01 2025-06-01 51.00", "2025-06-01 2026-01-01 52.00", "2026-01-01 - 53.00"],
        ),
        (
            [[*THEN, NOW], [*EARLIER, NOW]],
            ["2024-01-01 2024-06-01 51.00", "2024-06-01 2026-01-01 52.00", "2026-01-01 - 53.00"],
        ),
        (
            [[*THEN, NOW], [NOW]],
            ["2024-01-01 2025-01-01 51.00", "2025-01-01 2026-01-01 52.00", "2026-01-01 - 53.00"],
        ),
        ([SOON, DELAYED], ["2024-01-01 2026-07-01 51.00", "2026-07-01 - 55.00"]),
        ([DELAYED, SOON], ["2024-01-01 2026-06-01 51.00", "2026-06-01 - 55.00"]),
        ([SOON, ALWAYS], ["2024-01-01 - 51.00"]),
        ([SOON, ALWAYS, SOON], ["2024-01-01 2026-06-01 51.00", "2026-06-01 - 55.00"]),
        (
            [[SOON[0]], [spell("51.00", "2026-09-01")]],
            ["2024-01-01 2026-03-10 51.00", "2026-09-01 - 51.00"],
        ),
    ],
    ids=[
        "start-earlier",
        "past-change-withdrawn",
        "past-boundary-later",
        "past-boundary-earlier",
        "history-dropped",
        "announced-delayed",
        "announced-brought-forward",
        "announced-withdrawn",
        "announced-again",
        "announced-after-a-gap",
    ],
)
def test_a_price_is_valid_when_the_source_says_so(
    synced: Lab, lists: list[list[dict[str, Any]]], held: list[str]
) -> None:
    others = [price for price in PRICES if price["service_id"] != "S1"]
    for prices in lists:
        synced.hold(prices=[*others, *prices])
        assert synced.sync("prices").outcome in {Outcome.OK, Outcome.NOTHING_TO_DO}
    spells = """SELECT concat_ws(' ', p.valid_from, coalesce(CAST(p.valid_to AS text), '-'), p.amount)
                FROM price p JOIN service s ON s.id = p.service_id
                WHERE s.external_id = 'S1' AND p.agreement_id IS NULL AND p.valid_to IS DISTINCT FROM p.valid_from
                ORDER BY p.valid_from"""
    assert [spell for (spell,) in synced.rows(spells)] == held
    synced.write("UPDATE source_state SET etag = NULL")
    assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO


def test_a_corrected_period_is_told_as_such_and_taken_back_whole(synced: Lab) -> None:
    others = [price for price in PRICES if price["service_id"] != "S1"]
    synced.hold(prices=[*others, *THEN, NOW])
    synced.sync("prices")
    before = synced.rows("SELECT id, valid_from, valid_to, amount FROM price ORDER BY id")
    synced.hold(prices=[*others, *LATER, NOW])
    report = synced.sync("prices")
    assert synced.plan(report).tally["replaced"] == 1
    with synced.engine.begin() as connection:
        (gone,) = [row for row in show.rows(connection, synced.plan(report), PRICE) if row.action == "retire"]
        assert gone.reason == Reason("period_corrected")
        undone = changes.undo(connection, report.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert undone.outcome is Outcome.OK
    assert synced.rows("SELECT id, valid_from, valid_to, amount FROM price ORDER BY id") == before


def test_a_price_that_starts_earlier_is_measured_against_the_one_in_force(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "99.00", "valid_from": "2023-01-01"}, *PRICES[1:]])
    assert [guard.name for guard in synced.plan(synced.sync("prices")).holding_guards] == ["price_jump"]


def test_what_replaces_a_price_is_taken_though_another_of_the_service_is_unreadable(synced: Lab) -> None:
    fund = PRICES[-1]
    synced.hold(prices=[*PRICES[:1], *SOON, *PRICES[2:-1], fund | {"amount": "?"}])
    assert synced.sync("prices").counts.created == 1
    synced.hold(prices=[*PRICES[:1], SOON[0], SOON[1] | {"valid_from": "2026-05-01", "amount": "?"}, *PRICES[2:]])
    assert synced.sync("prices").outcome is Outcome.PARTIAL
    synced.hold(prices=[*PRICES[:1], NOW, *PRICES[2:], {"amount": "?"}])
    report = synced.sync("prices")
    assert (report.counts.created, report.counts.updated, report.counts.retired) == (1, 0, 2)


def test_an_item_whose_records_leave_no_room_for_each_other_is_left_as_it_is(synced: Lab) -> None:
    unclear = [spell("51.00", "2024-01-01", "2025-06-01"), spell("60.00", "2025-01-01", "2026-01-01"), NOW]
    synced.hold(prices=[PRICES[0] | {"amount": "51.00"}, *unclear, *PRICES[2:]])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 3)
    with synced.engine.connect() as connection:
        rows = [row for row in show.rows(connection, synced.plan(report), PRICE) if row.action == "conflict"]
    assert {(row.finding, row.key[:5]) for row in rows} == {("overlapping", "89.01")}
    assert any("si sovrappone a un prezzo che resta" in teller().value(row.reason) for row in rows)


def test_a_price_of_something_unknown_is_not_taken_for_the_private_one(synced: Lab) -> None:
    others = [price for price in PRICES if price["service_id"] != "S1"]
    unknown = [price | {"agreement_id": "NUOVA", "amount": "30.00"} for price in SOON]
    synced.hold(prices=[*others, *SOON, *unknown])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 1, 2)
    assert synced.plan(report).tally["unmapped"] == 2
    synced.hold(prices=[*others, *unknown])
    assert synced.sync("prices").counts.retired == 2


def test_a_deleted_service_gets_no_price_and_keeps_what_it_had(synced: Lab) -> None:
    synced.write("UPDATE service SET deleted_at = now() WHERE external_id IN ('S1', 'S2')")
    synced.hold(prices=[*PRICES, PRICES[2] | {"agreement_id": "C1"}])
    report = synced.sync("prices")
    assert (report.counts.changed, report.counts.waiting) == (0, 4)
    with synced.engine.connect() as connection:
        rows = list(show.rows(connection, synced.plan(report), PRICE))
    assert {(row.action, row.finding) for row in rows} == {("conflict", "unmapped")}
    assert rows[0].reason is not None
    assert rows[0].reason.code == "service_deleted"


@pytest.mark.parametrize(("was", "becomes"), [("10.00", "40.00"), ("0.00", "10.00"), ("30.00", "10.00")])
def test_what_the_patient_pays_may_not_jump_either(synced: Lab, was: str, becomes: str) -> None:
    synced.write(f"UPDATE price SET patient_share = {was} WHERE agreement_id IS NOT NULL")
    synced.hold(prices=[*PRICES[:-1], PRICES[-1] | {"patient_share": becomes}])
    assert [guard.name for guard in synced.plan(synced.sync("prices")).holding_guards] == ["price_jump"]


def test_two_records_for_one_of_ours_wait_for_a_person(lab: Lab) -> None:
    with lab.engine.begin() as connection:
        fund = {"clinic_id": lab.clinic, "name": "Fondo Uno", "kind": "fund", "valid_from": "2020-01-01"}
        world.insert(connection, "agreement", [fund])
        world.specialist(connection, lab.clinic, last_name="Neri", first_name="Ugo", external_id=None)
    lab.hold(
        agreements=[*AGREEMENTS, *(AGREEMENTS[0] | {"id": id_, "name": "FONDO UNO"} for id_ in ("C2", "C3"))],
        collaborators=[*COLLABORATORS, COLLABORATORS[0] | {"id": "D99"}],
    )
    for feed, kind, created in (("agreements", AGREEMENT, 1), ("collaborators", COLLABORATOR, 6)):
        report = lab.sync(feed)
        assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, created, 2)
        with lab.engine.connect() as connection:
            rows = [row for row in show.rows(connection, lab.plan(report), kind) if row.action == "conflict"]
        assert {row.finding for row in rows} == {"duplicate"}
        assert "più record per" in teller().value(rows[0].reason)


def test_services_may_exchange_their_codes(synced: Lab) -> None:
    codes = ["89.01", "89.02", "89.00"]
    moved = [service | {"code": code} for service, code in zip(SERVICES, codes, strict=False)]
    synced.hold(services=[*moved, *SERVICES[3:]])
    assert synced.sync("services").counts.updated == 3
    assert [code for (code,) in synced.rows("SELECT code FROM service ORDER BY external_id LIMIT 2")] == codes[:2]


def test_a_code_that_another_service_keeps_is_a_conflict_and_so_is_what_waits_for_it(synced: Lab) -> None:
    first, second, third, fourth, *others = SERVICES
    synced.hold(services=SERVICES[1:])
    assert synced.sync("services").counts.retired == 1
    with synced.engine.begin() as connection:
        world.service(connection, synced.clinic, code="89.00", name="Della segreteria", external_id=None)

    def conflicts() -> tuple[int, set[str | None]]:
        report = synced.sync("services")
        with synced.engine.connect() as connection:
            rows = list(show.rows(connection, synced.plan(report), SERVICE))
        assert {row.finding for row in rows if row.action == "conflict"} == {"duplicate"}
        return report.counts.changed, {teller().value(row.reason) for row in rows if row.action == "conflict"}

    returned = [first, second, third, fourth | {"name": "Altra"}, *others]
    synced.hold(services=returned)
    assert conflicts() == (1, {"il codice 89.00 è di un'altra prestazione"})
    waiting = [second | {"code": "89.00"}, third | {"code": "89.01"}, fourth | {"name": "Terza"}, *others]
    synced.hold(services=waiting)
    assert conflicts() == (
        1,
        {"il codice 89.00 è di un'altra prestazione", "il codice 89.01 è di un'altra prestazione"},
    )
    synced.hold(services=[*SERVICES[1:], first | {"id": "S99"}])
    assert synced.sync("services").counts.updated == 2


def test_a_service_that_comes_twice_word_for_word_is_one(lab: Lab) -> None:
    lab.hold(services=[*SERVICES, SERVICES[0]])
    report = lab.sync("services")
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.OK, 20, 0)


def test_a_clinic_without_agreements_is_in_step_and_one_that_had_some_is_stopped(lab: Lab) -> None:
    lab.hold(agreements=[])
    report = lab.sync("agreements", preview=True)
    assert (report.outcome, report.figures["what_to_do"]) == (
        Outcome.NOTHING_TO_DO,
        Reason("in_step"),
    )
    lab.hold(agreements=AGREEMENTS)
    assert lab.sync("agreements").counts.created == 1
    lab.hold(agreements=[])
    report = lab.sync("agreements", preview=True)
    assert "source_empty" in {guard.name for guard in lab.plan(report).failed_guards}
    lab.write("UPDATE agreement SET valid_to = valid_from")
    report = lab.sync("agreements", preview=True)
    assert not lab.plan(report).writes
    assert report.figures["what_to_do"] != Reason("in_step")
    assert lab.sync("agreements").outcome is Outcome.REFUSED


def test_a_municipality_that_has_ended_is_opened_again_by_a_person_only(engine: sa.Engine) -> None:
    scope = Scope("import_municipalities")
    bologna = w.municipality("A944", "Bologna")
    whole, parts = [bologna], [
        w.municipality("A944", "Bologna", valid_to=date(2020, 1, 1)),
        w.municipality("A944", "Bologna la Grassa", valid_from=date(2020, 1, 1)),
    ]  # fmt: skip
    kind = replace(MUNICIPALITY, limits=Limits(minimum=1, shrink=1, retired=None))
    for records in (whole, parts, whole, parts, whole):
        report = synchronise(engine, kind, scope, w.pages(records), as_of=world.AS_OF)
        with engine.connect() as connection:
            plan = plans.load(connection, report.plan_id or 0)
            (closed,) = connection.execute(sa.text("SELECT count(*) FROM municipality WHERE valid_to IS NULL")).one()
        assert closed == 1
        if plan.holding_guards:  # what an older edition would take back
            assert (records, plan.writes) == (whole, 0)
            past = {"reason": "annullata la fusione", "past_guards": [guard.name for guard in plan.holding_guards]}
            report = settle(engine, kind, scope, plan, as_of=world.AS_OF, actor="desk:anna", **past)
        assert report.outcome is Outcome.OK


def test_a_name_that_was_given_up_does_not_come_back_by_itself(engine: sa.Engine) -> None:
    scope = Scope("import_municipalities")
    kind = replace(MUNICIPALITY, limits=Limits(minimum=1, shrink=1, retired=None))
    old, new = w.municipality("A944", "Bologna"), w.municipality("A944", "Bologna la Grassa", other_name="Bulåggna")

    def read(record: Any) -> Report:
        return synchronise(engine, kind, scope, w.pages([record]), as_of=world.AS_OF)

    def held() -> tuple[Any, ...]:
        with engine.connect() as connection:
            query = "SELECT name, former_names FROM municipality"
            return tuple(connection.execute(sa.text(query)).one())

    assert read(old).outcome is Outcome.OK
    renamed = read(new)
    assert (renamed.outcome, held()) == (Outcome.OK, ("Bologna la Grassa", ["Bologna"]))
    for older in (old, w.municipality("A944", "Bologna la Grassa"), w.municipality("A944", "Bologna")):
        assert read(older).counts.changed == 0
    assert held()[0] == "Bologna la Grassa"
    with engine.begin() as connection:
        changes.undo(connection, renamed.plan_id or 0, as_of=world.AS_OF, actor="dagster")
    assert held() == ("Bologna", [])


def test_a_price_edited_after_the_preview_refuses_the_plan_by_name(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "51.00"}, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    plan = synced.plan(synced.sync("prices", preview=True))
    synced.write("UPDATE price SET amount = 7 WHERE amount = 50")
    scope = Scope("sync_prices", "BO01", synced.clinic)
    report = settle(synced.engine, PRICE, scope, plan, as_of=world.AS_OF, actor="desk:anna")
    assert report.outcome is Outcome.REFUSED
    assert [teller().reason(reason) for reason in report.reasons] == ["89.00 Visita 0 · 2024-01-01: modificato dopo"]
    assert synced.rows("SELECT count(*) FROM price WHERE amount IN (51, 7)") == [(2,)]


def test_what_the_clinic_owns_is_never_overwritten_and_a_rename_is_no_new_service(synced: Lab) -> None:
    synced.write("UPDATE service SET price = 12, bookable_online = true WHERE external_id = 'S3'")
    synced.hold(services=[*SERVICES[:3], SERVICES[3] | {"name": "Visita rinominata"}, *SERVICES[4:]])
    report = synced.sync("services")
    assert (report.counts.updated, report.counts.changed) == (1, 1)
    assert synced.rows("SELECT name, price, bookable_online FROM service WHERE external_id = 'S3'") == [
        ("Visita rinominata", 12, True)
    ]


def test_a_name_that_tells_of_health_is_proposed_as_sensitive_until_somebody_decides(synced: Lab) -> None:
    def why(named: str, number: int) -> str | None:
        """What the plan says of a service of that name."""
        services = [*SERVICES[:3], SERVICES[3] | {"name": named, "id": f"S{number}"}, *SERVICES[4:]]
        synced.hold(services=services if number == 3 else [*SERVICES, services[3] | {"code": "99.99"}])
        plan = synced.plan(synced.sync("services", preview=True))
        with synced.engine.connect() as connection:
            rows = [row for row in show.rows(connection, plan, SERVICE) if named in row.key]
        return rows[0].reason and rows[0].reason.code

    assert why("Visita psichiatrica", 3) == "sensitive_proposed"
    assert why("Visita oncologica", 30) == "sensitive_proposed"
    assert why("Visita semplice", 3) == "name_changed"
    synced.write("UPDATE service SET sensitive_decided_at = now(), sensitive_decided_by = 'Ada'")
    assert why("Visita psichiatrica", 3) == "name_changed"


def book(lab: Lab, connection: sa.Connection) -> None:
    """An appointment for the service S3 with the doctor D1, two days from now."""
    service = connection.scalar(sa.text("SELECT id FROM service WHERE external_id = 'S3'"))
    doctor = connection.scalar(sa.text("SELECT id FROM specialist WHERE external_id = 'D1'"))
    assert service is not None
    location = world.location(connection, lab.clinic)
    agenda = world.agenda(connection, lab.clinic, location_id=location, specialist_id=doctor)
    slot = world.slot(connection, agenda, world.rome("2026-03-12"))
    patient = world.patient(connection)
    world.appointment(connection, slot, patient_id=patient, service_id=service, specialist_id=doctor)


def test_a_service_or_a_doctor_with_bookings_cannot_vanish(synced: Lab) -> None:
    with synced.engine.begin() as connection:
        book(synced, connection)
    synced.hold(services=[s for s in SERVICES if s["id"] not in {"S3", "S4"}], collaborators=COLLABORATORS[1:])
    report = synced.sync("services")
    assert (report.counts.retired, report.counts.waiting) == (1, 1)
    assert synced.rows("SELECT external_id FROM service WHERE deleted_at IS NOT NULL") == [("S4",)]
    report = synced.sync("collaborators")
    assert (report.outcome, report.counts.changed, report.counts.waiting) == (Outcome.PARTIAL, 0, 1)
    synced.hold(services=SERVICES)
    assert synced.sync("services").counts.updated == 1
    assert synced.rows("SELECT count(*) FROM service WHERE deleted_at IS NOT NULL") == [(0,)]


@pytest.mark.parametrize(
    ("feed", "left", "named"),
    [
        ("services", [s for s in SERVICES if s["id"] not in {"S3", "S4"}], "89.03 Visita 3"),
        ("services", [s | {"active": s["id"] != "S3"} for s in SERVICES], "89.03 Visita 3"),
        ("collaborators", COLLABORATORS[1:], "Dott. Neri Ugo"),
    ],
    ids=["service-gone", "service-switched-off", "doctor-gone"],
)
def test_what_is_booked_after_the_preview_is_not_retired(
    synced: Lab, feed: str, left: list[dict[str, Any]], named: str
) -> None:
    synced.hold(**{feed: left})
    plan = synced.plan(synced.sync(feed, preview=True))
    with synced.engine.begin() as connection:
        book(synced, connection)
    with synced.engine.begin() as connection:
        report = changes.apply(connection, plan.id, as_of=world.AS_OF, actor="desk:anna")
    assert (report.outcome, report.counts.changed) == (Outcome.REFUSED, 0)
    ((code, message),) = [(reason.code, teller().reason(reason)) for reason in report.reasons]
    assert (code, message.startswith(f"{named}: ha appuntamenti prenotati")) == ("barred", True)
    assert synced.rows("SELECT id FROM service WHERE NOT active UNION SELECT id FROM specialist WHERE NOT active") == []


def test_a_booking_under_way_is_waited_for(synced: Lab) -> None:
    synced.hold(services=[s for s in SERVICES if s["id"] != "S3"])
    plan = synced.plan(synced.sync("services", preview=True))

    with synced.engine.begin() as desk, ThreadPoolExecutor(1) as pool:
        book(synced, desk)

        def apply() -> Report:
            with synced.engine.begin() as connection:
                return changes.apply(connection, plan.id, as_of=world.AS_OF, actor="desk:anna")

        applied = pool.submit(apply)
        with pytest.raises(TimeoutError):
            applied.result(timeout=0.5)
        desk.commit()
        assert [reason.code for reason in applied.result(timeout=30).reasons] == ["barred"]


def test_undo_leaves_alone_what_would_go_out_of_service_with_bookings(synced: Lab) -> None:
    synced.hold(services=SERVICES[:3] + SERVICES[4:])
    synced.sync("services")
    synced.hold(services=SERVICES)
    back = synced.sync("services")
    assert back.counts.updated == 1
    with synced.engine.begin() as connection:
        book(synced, connection)
    with synced.engine.begin() as connection:
        report = changes.undo(connection, back.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert (report.outcome, [teller().reason(r) for r in report.reasons]) == (
        Outcome.REFUSED,
        ["89.03 Visita 3: ha appuntamenti prenotati: vanno spostati prima"],
    )
    assert synced.rows("SELECT active FROM service WHERE external_id = 'S3'") == [(True,)]


def test_undo_keeps_a_new_service_that_the_desk_has_worked_with(lab: Lab) -> None:
    services = lab.sync("services")
    lab.write("UPDATE service SET price = 99, bookable_online = true WHERE external_id = 'S3'")
    doctors = lab.sync("collaborators")
    lab.write("UPDATE specialist SET sort_name = 'NERI', sort_name_manual = (external_id = 'D1')")
    with lab.engine.begin() as connection:
        back = [
            changes.undo(connection, done.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
            for done in (services, doctors)
        ]
    assert [(report.outcome, report.counts.retired) for report in back] == [(Outcome.PARTIAL, 19), (Outcome.PARTIAL, 6)]
    assert teller().reason(back[0].reasons[0]) == "89.03 Visita 3: modificato dopo l'applicazione"
    assert lab.rows("SELECT external_id, price FROM service") == [("S3", 99)]
    assert lab.rows("SELECT external_id FROM specialist") == [("D1",)]


def test_what_the_desk_had_typed_is_linked_and_not_doubled(lab: Lab) -> None:
    with lab.engine.begin() as connection:
        world.service(connection, lab.clinic, code="89.03", name="Visita vecchia", external_id=None)
        world.specialist(connection, lab.clinic, last_name="NERI", first_name="Ugo", external_id=None)
    assert lab.sync("services").counts.as_dict() | {"unchanged": 0} == {
        "created": 19, "updated": 1, "retired": 0, "skipped": 0, "waiting": 0, "failed": 0, "unchanged": 0,
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
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    assert synced.rows("SELECT count(*) FROM quarantine") == [(1,)]


@pytest.mark.parametrize("field", ["id", "code"])
def test_a_service_whose_id_or_code_is_a_book_is_set_aside_alone(lab: Lab, field: str) -> None:
    lab.hold(services=[*SERVICES[1:], SERVICES[0] | {field: world.NOISE}])
    report = lab.sync("services")
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 19, 1)


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
        said = teller().reason(report.reasons[0])
    except PolydeskError as error:
        said = str(error)
    assert "fermato da" in said or "BO01" in said
    assert synced.rows("SELECT * FROM price ORDER BY id") == before


def test_a_short_list_a_reencoded_one_and_contradictions_are_refused(synced: Lab) -> None:
    synced.hold(prices=PRICES[:8])
    report = synced.sync("prices")
    assert (report.outcome, "l'ultima volta 21" in teller().reason(report.reasons[0])) == (Outcome.REFUSED, True)
    synced.hold(services=[s | {"name": "Visita di attivitÃ  motoria"} for s in SERVICES])
    report = synced.sync("services")
    assert (report.outcome, "lettere accentate rovinate" in teller().reason(report.reasons[0])) == (
        Outcome.REFUSED,
        True,
    )
    synced.hold(services=[*SERVICES, SERVICES[0] | {"name": "Un'altra"}])
    report = synced.sync("services")
    assert "numero 1 e 21" in teller().reason(report.reasons[0])
    assert synced.rows("SELECT count(*) FROM service WHERE name LIKE 'Visita %'") == [(20,)]


def test_a_price_that_jumps_or_falls_to_zero_waits_for_a_person(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "5.00"}, PRICES[1] | {"amount": "0.00"}, *PRICES[2:]])
    report = synced.sync("prices")
    plan = synced.plan(report)
    assert (report.outcome, report.counts.waiting, plan.state) == (Outcome.PARTIAL, 2, "ready")
    assert {guard.name for guard in plan.holding_guards} == {"price_jump", "code_reused", "zero_price"}
    assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO  # the same question is asked once


def test_one_true_jump_holds_back_nothing_else_and_is_let_through_by_name(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "70.00"}, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    assert "trattenut" not in str(report)
    assert "30 %" in " ".join(map(teller().reason, report.reasons))
    plan = synced.plan(synced.sync("prices", preview=True))
    scope = Scope(plan.service, plan.clinic, plan.clinic_id)

    def past(**word: Any) -> Report:
        return settle(synced.engine, PRICE, scope, plan, as_of=world.AS_OF, actor="desk:anna", **word)

    assert past(past_guards=["price_jump"]).reasons[0].code == "reason_missing"
    let = past(past_guards=["price_jump"], reason="listino nuovo della direzione")
    assert (let.outcome, let.counts.updated, let.counts.waiting) == (Outcome.OK, 1, 0)
    assert synced.rows("SELECT amount FROM price p JOIN service s ON s.id = p.service_id WHERE external_id = 'S0'") == [
        (70,)
    ]
    with synced.engine.begin() as connection:
        assert changes.undo(connection, plan.id, as_of=world.AS_OF, actor="desk:anna").counts.updated == 1
    assert synced.sync("prices").counts.changed == 0


def test_the_preview_of_people_masks_codes(synced: Lab) -> None:
    synced.hold(collaborators=[*COLLABORATORS, COLLABORATORS[0] | {"id": "D3", "fiscal_code": "RSSMRA80A01H501U"}])
    report = synced.sync("collaborators", preview=True)
    assert "RSSMRA80A01H501U" not in str(report)
    with synced.engine.connect() as connection:
        rows = list(show.rows(connection, synced.plan(report), COLLABORATOR))
    assert rows[0].after["fiscal_code"] == "RSSMRA80A01H501U"


def test_a_patient_that_studiolab_merged_into_another_is_asked_about_and_not_imported_anew(lab: Lab) -> None:
    someone = {"last_name": "Rossi", "sex": "M", "updated_at": "2026-01-01T00:00:00+01:00"}
    people = [
        someone | {"id": f"P{n}", "first_name": f"Ugo {n}", "birth_date": f"1980-01-{n + 1:02d}"} for n in range(9)
    ]
    lab.hold(patients=people)
    assert lab.sync("patients").counts.created == 9
    merged = people[1] | {"merged_into": "P0"}
    lab.hold(patients=[people[0], merged, *people[2:], people[2] | {"id": "P99", "merged_into": "P2"}])
    report = lab.sync("patients")
    assert (report.outcome, report.counts.created) == (Outcome.PARTIAL, 0)
    assert [reason.code for reason in report.reasons] == ["links_suspended"]
    asked = "SELECT external_id FROM patient_link WHERE suspended_reason LIKE '%merged_at_source%'"
    assert lab.rows(asked) == [("P1",)]
    assert lab.sync("patients").outcome is Outcome.NOTHING_TO_DO
    # Whoever is simply gone is told of after the second reading, and keeps the link.
    lab.hold(patients=[people[0], merged, *people[3:]])
    for days, told in ((1, False), (2, True)):
        report = lab.sync("patients", as_of=world.AS_OF + timedelta(days=days))
        assert ("patients_gone_at_source" in {reason.code for reason in report.reasons}) is told
    assert lab.rows("SELECT count(*) FROM patient_link") == [(9,)]
