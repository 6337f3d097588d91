"""A FHIR R4 server on a socket: links, tokens, numbers, merged patients, what changed; shapes of R4's examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from joserfc.jwk import ECKey, RSAKey

from polydesk_dagster.answers import decode
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.conformance import read
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.numbering import feed_of
from polydesk_dagster.sources.fhir.server import Server
from polydesk_dagster.sources.fhir.source import Fhir
from polydesk_dagster.sources.fhir.vendor import VENDOR, FhirSettings
from polydesk_dagster.sources.port import Merged
from polydesk_dagster.told import teller
from polydesk_dagster.wire import storable
from tests.sources.events_world import CODE, NOW, records
from tests.sources.fhir_server import APPOINTMENT, SLOT, FhirServer, key, meta
from tests.sources.stages import ONCE

PATIENT = {
    "resourceType": "Patient",
    "id": "example",
    "meta": meta(1),
    "identifier": [{"use": "usual", "system": "urn:oid:1.2.36.146.595.217.0.1", "value": "12345"}],
    "active": True,
    "name": [
        {"use": "official", "family": "Chalmers", "given": ["Peter", "James"]},
        {"use": "usual", "given": ["Jim"]},
    ],
    "telecom": [{"use": "home"}, {"system": "phone", "value": "(03) 3410 5613", "use": "mobile", "rank": 2}],
    "gender": "male",
    "birthDate": "1974-12-25",
    "deceasedBoolean": False,
    "address": [{"use": "home", "line": ["534 Erewhon St"], "city": "PleasantVille", "postalCode": "3999"}],
}
"""As https://hl7.org/fhir/R4/patient-example.json has it."""

PRICE = {
    "resourceType": "ChargeItemDefinition",
    "id": "ebm",
    "meta": meta(1),
    "url": "http://sap.org/ChargeItemDefinition/ebm-workingcopy",
    "status": "active",
    "effectivePeriod": {"start": "2018-04-01", "end": "2018-06-30"},
    "code": {"coding": [{"system": "http://fhir.de/CodingSystem/kbv/ebm", "code": "30110"}]},
    "propertyGroup": [{"priceComponent": [{"type": "base", "amount": {"value": 67.44, "currency": "EUR"}}]}],
}
"""As https://hl7.org/fhir/R4/chargeitemdefinition-ebm-example.json, without its expressions."""


@contextmanager
def served(**settings: Any) -> Iterator[tuple[FhirServer, Fhir]]:
    server = FhirServer()
    secret = {"POLYDESK_FHIR_TOKEN_BO01": DEMO_TOKEN}
    with in_thread(server) as url:
        root = url.removesuffix("/api/v1")
        if (smart := settings.get("smart")) is not None:
            server.public_key = smart
            settings["smart"] = {"client_id": "polydesk", "token_url": f"{root}/token"}
            secret["POLYDESK_FHIR_TOKEN_BO01"] = server.public_key.as_pem(private=True).decode()
            server.token = "nobody has it yet"
        given = {"url": f"{root}/fhir", "token": "POLYDESK_FHIR_TOKEN_BO01", **settings}
        source = VENDOR.open("BO01", FhirSettings.model_validate(given), lambda name: secret[name], ONCE)
        yield server, source
        source.close()


def test_a_patient_of_the_specification() -> None:
    with served() as (server, source):
        server.held["Patient"] = [PATIENT, PATIENT | {"id": "month", "birthDate": "1974-12", "meta": meta(2)}]
        (first, second), _ = read(source, "patients")
    assert (first["last_name"], first["first_name"], first["sex"]) == ("Chalmers", "Peter James", "M")
    assert (str(first["birth_date"]), first["mobile"], first["postal_code"]) == ("1974-12-25", "(03) 3410 5613", "3999")
    assert first["fiscal_code"] is None, "only an identifier of the fiscal code's own system is one"
    assert second["birth_date"] is None, "a month is no day"


@pytest.mark.parametrize(
    ("value", "amount"),
    [(33.300000000000004, "33.30"), (67.44, "67.44"), (0.8500000000000001, "0.85"), (120, "120.00")],
)
def test_a_binary_fraction_is_the_price_that_was_meant(value: float, amount: str) -> None:
    with served() as (server, source):
        group = [{"priceComponent": [{"type": "base", "amount": {"value": value, "currency": "EUR"}}]}]
        server.held["ChargeItemDefinition"] = [PRICE | {"propertyGroup": group}]
        (price,), _ = read(source, "prices")
    assert price["amount"] == amount
    assert (price["service_id"], str(price["valid_to"])) == ("30110", "2018-07-01")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propertyGroup": [{"priceComponent": []}]}, "fhir_prices"),
        ({"applicability": [{"expression": "%patient.age > 6"}]}, "fhir_applicability"),
        ({"propertyGroup": [{"priceComponent": [{"type": "base", "amount": {"value": 1.23456}}]}]}, "field"),
        ({"status": 7}, "status"),
    ],
)
def test_a_price_that_cannot_be_told_is_set_aside(change: dict[str, Any], said: str) -> None:
    with served() as (server, source):
        server.held["ChargeItemDefinition"] = [PRICE | change, PRICE | {"id": "good"}]
        (page,) = source.list("prices")
    assert len(page.records) == 1
    assert said in str(page.rejected[0].reason.as_dict())
    teller("it").reason(page.rejected[0].reason)


@pytest.mark.parametrize("field", ["value", "factor"])
@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e999999999999", "1e60", "9" * 400, "1.5e300", '"NaN"', '"Infinity"', "true", "[1]"]
)
def test_a_number_beyond_all_bounds_costs_its_own_price_only(field: str, number: str) -> None:
    parts = [{"type": "base", "amount": {"value": 10, "currency": "EUR"}}, {"type": "tax", "factor": 0.04}]
    wrong = PRICE | {"id": "wrong", "propertyGroup": [{"priceComponent": parts}]}
    text = json.dumps(wrong).replace('"value": 10' if field == "value" else '"factor": 0.04', f'"{field}": {number}')
    with served() as (_, source):
        found = [decode("Prova", text.encode()), PRICE]
        page = source._page("prices", 1, found, 0, "x", None, source.options)
    (rejected,) = page.rejected
    assert (len(page.records), rejected.position) == (1, 0)
    teller("it").reason(rejected.reason)
    json.dumps(storable(rejected.raw), default=str, allow_nan=False)


def test_bundles_without_a_total_and_links_that_are_absolute() -> None:
    with served() as (server, source):
        server.totals = False
        server.held["Practitioner"] = [
            {
                "resourceType": "Practitioner",
                "id": f"D{n}",
                "meta": meta(n),
                "name": [{"family": "N", "given": ["U"]}],
            }
            for n in range(5)
        ]
        found, first = read(source, "collaborators")
    assert (len(found), first.total, first.etag) == (5, None, None)


@pytest.mark.parametrize(
    "link",
    [
        "https://elsewhere.example/fhir/Practitioner?_offset=2",
        "//elsewhere.example/fhir/Practitioner",
        "/admin/requests",
        "http://127.0.0.1:1/fhir/Practitioner?_offset=2",
        "{base}.elsewhere.example/Practitioner",
        "{base}/../admin/requests",
    ],
)
def test_a_link_that_leads_elsewhere_is_not_followed(link: str) -> None:
    """The token would go with it."""
    with served() as (server, source):
        server.next_link = link.format(base=source.server.remote.url)
        server.held["Practitioner"] = [
            {"resourceType": "Practitioner", "id": f"D{n}", "meta": meta(n), "name": [{"family": "N", "given": ["U"]}]}
            for n in range(5)
        ]
        asked = len(server.requests)
        with pytest.raises((PermanentError, TransientError)) as caught:
            list(source.list("collaborators"))
        if "admin" not in link or "{base}" in link:
            assert caught.value.reason.code == "next_elsewhere"
        assert len(server.requests) - asked <= 4


def test_a_link_below_the_address_is_followed() -> None:
    server = Server("Prova", "https://fhir.example/base", "t")
    absolute = {"https://fhir.example/base?_getpages=1": "?_getpages=1"}
    below = absolute | {"/base/Patient?p=2": "/Patient?p=2", "?p=2": "?p=2"}
    assert {link: server.below(link) for link in below} == below
    server.close()


def test_merged_patients_are_no_patients_and_say_whose_they_are() -> None:
    with served() as (server, source):
        link = [{"other": {"reference": "Patient/example"}, "type": "replaced-by"}]
        server.held["Patient"] = [PATIENT, PATIENT | {"id": "old", "meta": meta(2), "active": False, "link": link}]
        found, _ = read(source, "patients")
        assert [patient["id"] for patient in found] == ["example"]
        assert list(source.merged()) == [Merged("old", "example")]


@pytest.mark.parametrize("first", ["old", "example"])
def test_who_is_merged_into_one_that_alone_says_so_is_no_patient(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """On whichever page either stands, and also where the record that is gone says nothing."""
    monkeypatch.setattr("polydesk_dagster.sources.fhir.source.PAGE", 1)
    with served() as (server, source):
        link = [{"other": {"reference": "Patient/old"}, "type": "replaces"}]
        both = [PATIENT | {"link": link}, PATIENT | {"id": "old", "meta": meta(2)}]
        server.held["Patient"] = sorted(both, key=lambda each: each["id"] != first)
        found, _ = read(source, "patients")
        assert [patient["id"] for patient in found] == ["example"]
        assert list(source.merged()) == [Merged("old", "example")]


def test_a_link_to_a_record_that_was_merged_away_waits_for_a_person(engine: sa.Engine) -> None:
    clinic = records(engine)
    with served() as (server, source):
        link = [{"other": {"reference": "Patient/P2"}, "type": "replaced-by"}]
        living = [PATIENT | {"id": f"P{n}", "meta": meta(n)} for n in (2, 3)]
        server.held["Patient"] = [PATIENT | {"id": "P1", "link": link}, *living]
        scope = Scope("import_patients", CODE, clinic)
        found = lists.synchronise(engine, source, "patients", scope, as_of=NOW)
        again = lists.synchronise(engine, source, "patients", scope, as_of=NOW + timedelta(hours=1))
    assert "links_merged" in {reason.code for reason in found.reasons}
    assert "links_merged" not in {reason.code for reason in again.reasons}
    with engine.connect() as connection:
        waiting = connection.execute(
            sa.text("SELECT external_id FROM patient_link WHERE suspended_reason LIKE '%merged_at_source%'")
        ).all()
        review = connection.execute(sa.text("SELECT external_id, candidates, cause FROM patient_review")).all()
    assert [row.external_id for row in waiting] == ["P1"]
    (asked,) = [row for row in review if row.external_id == "P1"]
    assert len(asked.candidates) == 2, "whose it was, and whose the record is that it was merged into"


@pytest.mark.parametrize("kind", [ECKey.generate_key("P-384"), RSAKey.generate_key(2048)], ids=["EC", "RSA"])
def test_a_token_that_expires_in_the_middle_of_a_list_is_got_anew(kind: ECKey | RSAKey) -> None:
    """By a key of either kind, as openssl writes both: «BEGIN PRIVATE KEY»."""
    with served(smart=kind) as (server, source):
        server.held["Practitioner"] = [
            {"resourceType": "Practitioner", "id": f"D{n}", "meta": meta(n), "name": [{"family": "N", "given": ["U"]}]}
            for n in range(9)
        ]
        server.lasts = 4
        found, _ = read(source, "collaborators")
    assert len(found) == 9
    assert server.tokens >= 2


def test_whoever_has_another_key_gets_no_token() -> None:
    with served(smart=key()) as (server, source):
        server.public_key = ECKey.generate_key("P-384")
        with pytest.raises((PermanentError, TransientError), match="token_"):
            list(source.list("collaborators"))
    assert server.tokens == 0


def test_appointments_come_as_events_and_only_once(engine: sa.Engine) -> None:
    records(engine)
    with served() as (server, source):
        server.held["Slot"] = [SLOT]
        server.held["Appointment"] = [APPOINTMENT, APPOINTMENT | {"id": "wish", "status": "proposed"}]

        def take(minute: int) -> Any:
            return intake.sync(engine, NOW.replace(minute=minute), CODE, feed_of(engine, CODE, source))

        assert (take(1).outcome, take(2).outcome) == (Outcome.OK, Outcome.NOTHING_TO_DO)
        assert source.news(None, 10).size == 2
        later = meta(5) | {"versionId": "9"}
        server.held["Appointment"][0] = APPOINTMENT | {"status": "cancelled", "meta": later}
        assert (take(3).counts.updated, take(4).counts.updated) == (1, 0)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT external_id, status FROM appointment")).all()
        assert [tuple(row) for row in found] == [("example", "cancelled")]
        assert connection.scalar(sa.text("SELECT max(sequence) FROM event_inbox")) == 2


@pytest.mark.parametrize("most", [1000, 2])
def test_news_of_one_moment_are_read_on_in_the_middle_of_it(most: int) -> None:
    """Five versions of one instant, two at a time: a search can only begin at a moment, not after it. The server may
    give fewer at once than are known of it already."""
    with served() as (server, source):
        server.most = most
        server.held["Appointment"] = [APPOINTMENT | {"id": f"A{n}"} for n in range(5)]
        token, seen = None, []
        for _ in range(4):
            news = source.news(token, 2)
            seen += [event.entity.id for event in news.events]
            token = news.token
    assert seen == [f"A{n}" for n in range(5)]


@pytest.mark.parametrize("wrong", [{"participant": [7]}, {"serviceType": "52"}])
def test_an_appointment_that_is_none_is_set_aside_and_the_rest_goes_on(
    engine: sa.Engine, wrong: dict[str, Any]
) -> None:
    records(engine)
    with served() as (server, source):
        server.held["Slot"] = [SLOT]
        server.held["Appointment"] = [APPOINTMENT | {"id": "wrong"} | wrong, APPOINTMENT | {"meta": meta(3)}]
        found = intake.sync(engine, NOW, CODE, feed_of(engine, CODE, source))
    assert (found.counts.waiting, found.counts.updated) == (1, 1)
