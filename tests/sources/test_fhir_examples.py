"""HL7's own examples of FHIR R4, as the adapter reads them over a socket."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.conformance import read
from polydesk_dagster.sources.fhir import records
from polydesk_dagster.sources.fhir.records import Options
from polydesk_dagster.sources.port import Merged
from polydesk_dagster.told import teller
from tests.sources.fhir_server import FhirServer, meta
from tests.sources.test_fhir import PRICE, served

EXAMPLES = Path(__file__).parents[1] / "data" / "fhir"


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text())
    return found


def test_people_and_plans() -> None:
    with served() as (server, source):
        server.held["Patient"] = [example("patient-example-f201-roel")]
        server.held["Practitioner"] = [example("practitioner-example-f001-evdb")]
        server.held["InsurancePlan"] = [example("insuranceplan-example")]
        ((patient,), _), ((doctor,), _), ((plan,), _) = (
            read(source, kind) for kind in ("patients", "collaborators", "agreements")
        )
    named = [patient[field] for field in ("id", "last_name", "first_name", "sex", "mobile", "phone", "postal_code")]
    assert named == ["f201", "Bor", "Roelof Olaf", "M", "+31612345678", "+31201234567", "1055RW"]
    assert (str(patient["birth_date"]), patient["deceased_on"], patient["fiscal_code"]) == ("1960-03-13", None, None)
    assert (doctor["last_name"], doctor["title"], doctor["email"]) == ("van den broek", None, "E.M.vandenbroek@bmc.nl")
    assert doctor["specialties"] == ()
    assert (plan["name"], plan["kind"], plan["valid_to"]) == ("foo", "insurance", None)


def test_of_two_records_that_were_merged_only_the_one_that_stays_says_so() -> None:
    gone = example("patient-example-merge-subsumed") | {"id": "example-merge-subsumed"}
    with served() as (server, source):
        server.held["Patient"] = [gone, example("patient-example-merge-survivor")]
        assert list(source.merged()) == [Merged("example-merge-subsumed", "merge-survivor")]
        link = {"other": {"reference": "Patient/merge-survivor"}, "type": "replaced-by"}
        server.held["Patient"][0] = gone | {"link": [link]}
        assert list(source.merged()) == [Merged("example-merge-subsumed", "merge-survivor")]


def test_prices_that_depend_on_expressions_are_set_aside_each_by_its_name() -> None:
    names = ("chargeitemdefinition-ebm-example", "chargeitemdefinition-device-example")
    with served() as (server, source):
        server.held["ChargeItemDefinition"] = [*map(example, names), PRICE | {"id": "plain"}]
        pages = list(source.list("prices"))
    rejected = [each for page in pages for each in page.rejected]
    assert [(each.key, each.reason.code) for each in rejected] == [
        ("ebm", "fhir_applicability"),
        ("device", "fhir_applicability"),
    ]
    assert sum(len(page.records) for page in pages) == 1


def test_the_ebm_price_without_its_expressions() -> None:
    it = example("chargeitemdefinition-ebm-example")
    del it["applicability"]
    price = records.price(it, Options())
    assert (price["service_id"], price["amount"], price["currency"]) == ("30110", "67.44", "EUR")
    assert (price["valid_from"], price["valid_to"]) == ("2018-04-01", "2018-07-01")  # the last day is within
    assert price["vat_rate"] is None  # its other component is points, no tax


@pytest.mark.parametrize(("factor", "rate"), [("1.19", "19.00"), ("0.19", "19.00"), ("1.04", "4.00"), ("0", "0.00")])
def test_a_tax_is_written_as_a_part_or_as_a_multiple(factor: str, rate: str) -> None:
    """The device example has 1.19 for 19 %."""
    parts = [{"type": "base", "amount": {"value": Decimal("67.44")}}, {"type": "tax", "factor": Decimal(factor)}]
    it = example("chargeitemdefinition-device-example") | {"propertyGroup": [{"priceComponent": parts}]}
    del it["applicability"]
    assert records.price(it, Options())["vat_rate"] == rate


def bundles(server: FhirServer, url: str) -> None:
    """The example of a search, whose next page brings nothing more and no entry at all."""
    text = json.dumps(example("bundle-example")).replace("https://example.com/base", url)
    server.bundles["MedicationRequest"] = [json.loads(text), {"resourceType": "Bundle", "type": "searchset"}]


def test_a_search_with_an_absolute_link_and_what_came_along() -> None:
    with served() as (server, source):
        bundles(server, source.server.remote.url)
        first, last = source.server.search("MedicationRequest", {"patient": 347})
        assert [it["id"] for it in first.matches] == ["3123"]
        assert [it["id"] for it in first.included] == ["example"]
        assert (first.total, last.matches, last.total, last.following) == (3, (), None, None)
        assert server.requests[-1]["query"]["searchId"] == "ff15fd40-ff71-4b48-b366-09c706bed9d0"
        bundles(server, "https://example.com/base")  # as it stands: another server's address, no token for it
        with pytest.raises(PermanentError, match="next_elsewhere"):
            list(source.server.search("MedicationRequest", {"patient": 347}))


def test_a_warning_is_no_record() -> None:
    with served() as (server, source):
        server.bundles["Observation"] = [example("bundle-search-warning")]
        (page,) = source.server.search("Observation", {})
    assert (page.matches, page.included, page.total) == ((), (), 0)


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ({"deceasedDateTime": "2015-02-14T13:42:00+10:00"}, "2015-02-14"),
        ({"deceasedDateTime": "2015"}, "2026-03-01"),
        ({"deceasedBoolean": True}, "2026-03-01"),
        ({"deceasedBoolean": False}, None),
        ({}, None),
    ],
)
def test_who_is_dead_on_a_day_that_nobody_wrote_is_dead(said: dict[str, Any], day: str | None) -> None:
    it = example("patient-example-f201-roel") | {"meta": {"lastUpdated": "2026-03-01T10:00:00Z"}}
    del it["deceasedBoolean"]
    assert records.patient(it | said, Options())["deceased_on"] == day


def test_a_record_without_meta_has_a_moment_of_its_own() -> None:
    """Examples have a tag and no ``lastUpdated``; what says nothing of its time is as old as can be."""
    it = example("patient-example-f201-roel")
    assert records.patient(it, Options())["updated_at"] == records.NEVER_SAID
    assert records.patient(it | {"meta": meta(3)}, Options())["updated_at"] == meta(3)["lastUpdated"]


def test_a_service_is_called_by_its_first_identifier() -> None:
    with served(duration_minutes=50) as (server, source):
        server.held["HealthcareService"] = [example("healthcareservice-example")]
        (service,), _ = read(source, "services")
    assert (service["id"], service["code"], service["active"]) == ("example", "HS-12", True)
    assert service["name"] == "Consulting psychologists and/or psychology services"
    assert service["preparation"].startswith("Several assessments are required")
    assert service["duration_minutes"] == 50


def test_appointments_are_told_with_what_they_say() -> None:
    """R4 names the service by a code, seldom by a participant; a proposal is no booking, a chair no doctor."""
    names = ("appointment-example", "appointment-example2doctors", "appointment-example-request")
    held = [example(name) | {"meta": meta(number)} for number, name in enumerate(names)]
    known = example("healthcareservice-example") | {"id": "talk", "identifier": [{"value": "52"}]}
    with served() as (server, source):
        server.held["Appointment"], server.held["Slot"] = held, [example("slot-example")]
        told = source.news(None, 10)
        server.held["HealthcareService"] = [known]
        again = source.news(None, 10)
    assert (told.size, [event.entity.id for event in told.events]) == (3, ["example", "2docs"])
    assert [event.data["service_id"] for event in told.events] == ["52", "52"], "unknown, and asked about by its code"
    assert [event.data["service_id"] for event in again.events] == ["talk", "talk"]
    first, second = (event.data for event in told.events)
    assert (first["patient_id"], first["collaborator_id"], first["agenda_id"]) == ("example", "example", None)
    assert (second["collaborator_id"], second["starts_at"]) == ("example", "2013-12-09T09:00:00Z")


def test_the_agenda_is_that_of_the_slot() -> None:
    it = example("appointment-example") | {"meta": meta(1), "slot": [{"reference": "Slot/example"}]}
    with served() as (server, source):
        server.held["Appointment"], server.held["Slot"] = [it], [example("slot-example")]
        (event,) = source.news(None, 10).events
    assert event.data["agenda_id"] == "example"


def test_see_also_is_no_merger() -> None:
    with served() as (server, source):
        server.held["Patient"] = [example("patient-example-a")]
        (patient,), _ = read(source, "patients")
        assert list(source.merged()) == []
    assert (patient["last_name"], patient["first_name"]) == ("Donald", "Duck")


def test_who_is_insured_is_no_agreement() -> None:
    with served() as (server, source):
        server.held["InsurancePlan"] = [example("coverage-example-2"), example("insuranceplan-example")]
        (page,) = source.list("agreements")
    assert ([each.key for each in page.rejected], len(page.records)) == (["7546D"], 1)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("operationoutcome-example", {"mode": "outcome"}),
        ("operationoutcome-example-break-the-glass", {"mode": "outcome"}),
        ("operationoutcome-example-break-the-glass", {}),
        ("operationoutcome-example-searchfail", {"mode": "outcome"}),
    ],
)
def test_what_the_server_says_to_be_missing_makes_it_no_list(name: str, mode: dict[str, str]) -> None:
    """What is withheld would be taken for gone; and what the server says of it is not quoted."""
    entries = [{"resource": example("patient-example-a")}, {"resource": example(name), "search": mode}]
    bundle = {"resourceType": "Bundle", "type": "searchset", "entry": entries}
    with served() as (server, source):
        for answer in (bundle, example(name)):
            server.bundles["Patient"] = [answer]
            with pytest.raises(PermanentError, match="fhir_outcome") as caught:
                list(source.server.search("Patient", {}))
            assert "Break" not in teller("it").reason(caught.value.reason)
