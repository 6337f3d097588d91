from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.demo.simulators import dataset
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.sources.events import staging
from polydesk_dagster.sources.port import GoneError, Page, Unchanged
from polydesk_dagster.sources.records import Event, Patient, Price
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.told import teller
from polydesk_dagster.wire import sort_records, storable
from tests import world
from tests.sources.test_remote_policy import FAST

PRICES = [
    {"service_id": f"S{n}", "amount": f"{n}.50", "currency": "EUR", "valid_from": "2026-01-01", "vat_rate": None}
    for n in range(2500)
]
PATIENT = {"id": "P1", "last_name": "Rossi", "first_name": "Anna", "updated_at": "2026-03-01T10:00:00+01:00"}


@pytest.fixture
def lab() -> Iterator[tuple[StudiolabSimulator, Studiolab]]:
    simulator = StudiolabSimulator()
    simulator.hold("BO01", {"prices": PRICES, "patients": [PATIENT]})
    with in_thread(simulator) as url, Studiolab("BO01", clinic(url), DEMO_TOKEN, FAST) as client:
        yield simulator, client


def clinic(url: str, code: str = "BO01") -> str:
    return url.replace("/api/v1", f"/{code}/api/v1")


def collect(pages: Iterable[Page[Price]]) -> list[Page[Price]]:
    taken: list[Page[Price]] = []
    for page in pages:
        if page.number == 1:
            taken.clear()
        taken.append(page)
    return taken


def test_a_list_comes_in_pages_and_whole(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    _, client = lab
    pages = collect(client.list("prices"))
    assert [len(page.records) for page in pages] == [1000, 1000, 500]
    prices = [price for page in pages for price in page.records]
    assert prices[33].amount == "33.50"
    assert {page.total for page in pages} == {2500}


def test_an_unchanged_list_is_not_an_empty_one(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    etag = collect(client.list("prices"))[0].etag
    with pytest.raises(Unchanged):
        collect(client.list("prices", etag=etag))
    simulator.hold("BO01", {"prices": PRICES[1:]})
    assert sum(len(page.records) for page in collect(client.list("prices", etag=etag))) == 2499


def test_a_list_that_changes_is_read_from_its_beginning(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    simulator.fail("snapshot", "/prices", after=1, times=1)
    assert sum(len(page.records) for page in collect(client.list("prices"))) == 2500
    simulator.requests.clear()
    simulator.fail("snapshot", "/prices", times=None)
    with pytest.raises(TransientError, match="list_keeps_changing"):
        collect(client.list("prices"))
    assert len(simulator.requests) == 8


def test_a_list_that_ends_early_or_in_a_circle_is_no_list(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    simulator.fail("top", "/prices", field="next_page", value=None, times=None)
    with pytest.raises(TransientError, match="read=1000, total=2500"):
        collect(client.list("prices"))
    simulator.faults.clear()
    simulator.fail("top", "/prices", field="next_page", value="1000", times=None)
    with pytest.raises(PermanentError, match="list_repeats_page"):
        collect(client.list("prices"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("items", None), ("next_page", 7), ("total", "2500"), ("total", True), ("snapshot", None), ("snapshot", "")),
        *(("total", -1), ("total", 10**400), ("total", 2**63)),
    ],
)
def test_another_shape_is_refused(lab: tuple[StudiolabSimulator, Studiolab], field: str, value: Any) -> None:
    simulator, client = lab
    simulator.fail("top", "/prices", field=field, value=value)
    with pytest.raises(PermanentError, match="remote_shape"):
        collect(client.list("prices"))


@pytest.mark.parametrize("value", ["5", None, True, -1, 10**400, 2**63], ids=lambda value: str(value)[:20])
def test_news_whose_last_number_no_column_holds_are_refused(
    lab: tuple[StudiolabSimulator, Studiolab], value: Any
) -> None:
    simulator, client = lab
    simulator.fail("top", "/events", field="last_sequence", value=value)
    with pytest.raises(PermanentError, match="remote_shape"):
        client.news("0", 10)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("amount", "1,234", "ambiguo"),
        ("amount", "1.005", "ambiguo"),
        ("amount", "1,234.50", "punto"),
        ("amount", "123.456.789,00", "punto"),
        ("amount", 33.6, "testo"),
        ("amount", "-1.00", "punto"),
        ("currency", "USD", "previsti"),
        ("valid_to", "2025-01-01", "prima"),
        ("patient_share", "99999.00", "supera"),
        ("service_id", None, "testo"),
        ("service_id", "\ufeff ", "vuoto"),
        ("service_id", "S" * 256, "più di 255"),
        ("vat_rate", "101", "supera 100"),
        ("vat_rate", "1000.00", "supera 100"),
        ("amount", "٥١.00", "punto"),
        ("valid_from", "٢٠٢٦-01-01", "data"),
    ],
)
def test_a_bad_price_is_rejected_alone(
    lab: tuple[StudiolabSimulator, Studiolab], field: str, value: Any, reason: str
) -> None:
    simulator, client = lab
    simulator.fail("set", "/prices", after=1, item=3, field=field, value=value)
    pages = collect(client.list("prices"))
    assert sum(len(page.records) for page in pages) == 2499
    (rejected,) = pages[1].rejected
    assert rejected.position == 1003
    assert reason in teller().reason(rejected.reason)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("51,00", "51.00"),
        ("51,5", "51.5"),
        ("1.234,50", "1234.50"),
        ("99.999.999,99", "99999999.99"),
        ("1234,5", "1234.5"),
    ],
)
def test_an_amount_with_an_italian_comma_is_read(written: str, meant: str) -> None:
    assert Price.read(PRICES[0] | {"amount": written}).amount == meant


def test_an_amount_from_a_binary_fraction_is_set_aside_as_it_was_written(
    lab: tuple[StudiolabSimulator, Studiolab],
) -> None:
    simulator, client = lab
    simulator.fail("set", "/prices", after=1, item=3, field="amount", value=33.300000000000004)
    (rejected,) = [each for page in client.list("prices") for each in page.rejected]
    assert repr(rejected.raw["amount"]) == "Decimal('33.300000000000004')"
    assert storable(rejected.raw)["amount"] == 33.300000000000004


def test_a_number_in_the_news_is_kept_as_a_number() -> None:
    data = {"fee": Decimal("33.300000000000004"), "parts": [{"share": Decimal("1E+400")}]}
    common = {"id": "6" * 8 + "-6666" * 3 + "-" + "6" * 12, "sequence": 1, "version": 1, "data": data}
    told = {"type": "fee.changed", "occurred_at": "2026-03-01T10:00:00+01:00", "entity": {"type": "fee", "id": "F1"}}
    (row,) = staging.batch([Event.model_validate(common | told)], []).rows.values()
    payload = row[staging.COLUMNS.index("payload")]
    assert payload is not None
    assert json.loads(payload)["data"] == {"fee": 33.300000000000004, "parts": [{"share": "1E+400"}]}


def test_a_reason_never_holds_a_patients_value(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    for field in ("birth_date", "birth_place", "sex", "updated_at"):
        simulator.fail("set", "/patients", field=field, value="RSSNNA80A41H501X")
    (page,) = client.list("patients")
    (rejected,) = sort_records(Patient, page.records, "id").rejected
    assert rejected.key == "P1"
    assert "RSSNNA" not in teller().reason(rejected.reason)
    assert all(
        field in teller().reason(rejected.reason) for field in ("birth_date", "birth_place", "sex", "updated_at")
    )


def test_untidy_names_are_tidied(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    simulator.fail("untidy", "/patients")
    (page,) = client.list("patients")
    (patient,) = sort_records(Patient, page.records).valid
    assert patient.last_name == "Rossi"


def test_news_and_the_end_of_memory(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    simulator.publish("BO01", *({"type": "price_list.changed", "entity": {"type": "price_list", "id": "L"}},) * 5)
    news = client.news("2", 10)
    assert ([event.sequence for event in news.events], news.last_sequence) == ([3, 4, 5], 5)
    simulator.feed("BO01").forget(4)
    with pytest.raises(GoneError) as caught:
        client.news("1", 10)
    assert caught.value.oldest == 4
    assert client.news("3", 10).size == 2
    simulator.fail("set", "/events", field="sequence", value="4")
    assert client.news("3", 10).rejected[0].key is not None


def test_one_clinics_fault_is_not_anothers(lab: tuple[StudiolabSimulator, Studiolab]) -> None:
    simulator, client = lab
    simulator.hold("MI01", {"prices": PRICES[:1]})
    simulator.fail("status", "/BO01/api/v1/prices", status=401, times=None)
    with Studiolab("MI01", client.remote.url.replace("BO01", "MI01"), DEMO_TOKEN, FAST) as other:
        assert len(collect(other.list("prices"))[0].records) == 1
    with pytest.raises(PermanentError, match="'of': 'BO01'"):
        collect(client.list("prices"))


def test_the_lists_of_a_clinic_come_from_its_own_records(connection: sa.Connection) -> None:
    practice = world.practice(connection)
    slot = world.slot(connection, practice.agenda, world.AS_OF)
    world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    mine = {"clinic_id": practice.clinic, "service_id": practice.service}
    prices = [
        {"amount": f"{d}.10", "valid_from": f"2026-01-{d}", "valid_to": f"2026-01-{d + 1}"} for d in range(10, 30)
    ]
    world.insert(connection, "price", [mine | price for price in prices])
    same = dataset.agreeing(connection, "BO01")
    assert [row["id"] for row in same["patients"]] == [f"P{practice.patient}"]
    assert Price.read(same["prices"][0]).amount == "10.10"
    other = dataset.differing(connection, "BO01")
    assert other == dataset.differing(connection, "BO01")
    assert other["prices"] != same["prices"]
