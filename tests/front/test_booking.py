"""The booking API over a socket: from a time that is found to a visit that is moved or cancelled."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import answers, appointments, unverified
from polydesk_dagster.clinic.patients import visitors
from polydesk_dagster.clinic.patients.visitors import Visitor
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.front import api, tokens
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.told import LANGUAGES, teller
from tests import world
from tests.front.desk import CODE, EVERY, MARIA, Desk, at_its_hour, desk, wanted
from tests.world import AS_OF

__all__ = ["at_its_hour", "desk"]  # fixtures


def test_a_visitor_goes_from_a_free_time_to_a_booking_that_she_moves_and_cancels(desk: Desk) -> None:
    site = desk.caller(language="en")
    neri = {**MARIA, "family": "Neri"}
    time, other, *_ = desk.free(site, location=desk.practice.location)
    assert datetime.fromisoformat(time["start"]).utcoffset() == timedelta(hours=1)
    assert time["serviceType"] == {"code": CODE, "text": "Prima visita cardiologica"}
    assert [each["actor"]["reference"].partition("/")[0] for each in time["participant"]] == [
        "HealthcareService", "Location", "Practitioner",
    ]  # fmt: skip
    assert time["price"] == {"value": "120.00", "currency": "EUR"}

    held = site.hold(time).json()
    assert (held["status"], held["start"], held["slot"]) == ("pending", time["start"], time["slot"])
    key = {"key": held["key"]}
    assert time not in desk.free(site, location=desk.practice.location)
    desk.clock.wait(minutes=5)
    renewed = site.do("renew", key).json()
    assert datetime.fromisoformat(renewed["expires"]) == desk.clock.at + timedelta(minutes=10)
    assert renewed["expires"].endswith("+01:00")
    phone = {"system": "phone", "value": "+393470000001"}
    booked = site.do("book", {**key, "telecom": [phone]}).json()
    assert (booked["status"], booked["key"]) == ("pending", held["key"])
    assert datetime.fromisoformat(booked["expires"]) == desk.clock.at + timedelta(hours=2)

    sent = site.do("challenge", {**key, "channel": "phone"}).json()
    assert (sent["value"], len(sent["secret"])) == (phone["value"], 6)
    wrong = f"{(int(sent['secret']) + 1) % 1_000_000:06d}"
    refused = site.do("verify", {**key, "code": wrong, "patient": neri})
    assert (refused.status_code, refused.json()["code"]) == (422, "wrong_code")
    assert "4 more times" in refused.json()["title"]
    assert desk.scalar("SELECT count(*) FROM patient WHERE last_name = 'Neri'") == 0, "nothing is proved yet"
    stands = site.do("verify", {**key, "code": sent["secret"], "patient": neri}).json()
    assert (stands["status"], "expires" in stands) == ("booked", False)

    moved = site.do("move", {**key, "slot": other["slot"]}).json()
    assert (moved["status"], moved["start"]) == ("booked", other["start"])
    cancelled = site.do("cancel", key).json()
    assert cancelled["status"] == "cancelled"
    assert {time["start"], other["start"]} <= {
        each["start"] for each in desk.free(site, location=desk.practice.location)
    }
    again = site.do("move", {**key, "slot": time["slot"]})
    assert (again.status_code, again.json()["code"]) == (410, "no_longer_booked")


def test_a_link_by_mail_proves_the_address_once(desk: Desk) -> None:
    site = desk.caller()
    key = {"key": site.hold(desk.free(site)[0]).json()["key"]}
    site.do("book", {**key, "telecom": [{"system": "email", "value": "maria@example.org"}]})
    link = site.do("challenge", {**key, "channel": "email"}).json()["secret"]
    assert site.do("verify", {"token": link, "patient": MARIA}).json()["status"] == "booked"
    nothing = site.do("verify", {"token": "x" * 43, "patient": MARIA})
    assert (nothing.status_code, nothing.json()["code"]) == (404, "unknown")


def test_a_payment_keeps_the_time_and_what_is_paid_is_booked(desk: Desk) -> None:
    site = desk.caller()
    key = {"key": site.hold(desk.free(site)[0]).json()["key"]}
    begun = site.do("pay", {**key, "paymentReference": "pi_1"}).json()
    assert datetime.fromisoformat(begun["expires"]) == AS_OF + timedelta(minutes=20)
    desk.clock.wait(minutes=25)
    booked = site.do("book", {**key, "paid": True})
    assert (booked.status_code, booked.json()["status"]) == (200, "booked")


def test_what_is_given_back_is_free_at_once(desk: Desk) -> None:
    site = desk.caller()
    time = desk.free(site)[0]
    key = {"key": site.hold(time).json()["key"]}
    assert site.do("release", key).json()["code"] == "released"
    assert desk.free(site)[0] == time
    gone = site.do("book", {**key, "telecom": [{"system": "email", "value": "a@example.org"}]})
    assert (gone.status_code, gone.json()["code"]) == (410, "released")


def test_a_search_is_narrowed_by_place_city_doctor_and_number(desk: Desk) -> None:
    site = desk.caller()

    def places(**narrower: object) -> set[str]:
        return {each["participant"][1]["actor"]["reference"] for each in desk.free(site, **narrower)}

    here, there = f"Location/{desk.practice.location}", f"Location/{desk.other.location}"
    assert places() == {here, there}
    assert places(location=desk.other.location) == {there}
    assert places(municipality="H223") == {there}
    assert places(practitioner=desk.practice.specialist) == {here}
    assert len(desk.free(site, _count=3)) == 3
    assert desk.free(site, **{"service-type": "nessuna"}) == []


def test_an_agreement_narrows_the_search_and_its_price_is_what_is_quoted(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        fund = {"clinic_id": desk.other.clinic, "name": "Fondo", "kind": "fund", "valid_from": date(2026, 1, 1)}
        (agreement,) = world.insert(connection, "agreement", [fund])
        price = {"clinic_id": desk.other.clinic, "service_id": desk.other.service, "agreement_id": agreement}
        price |= {"amount": "90.00", "patient_share": "33.60", "valid_from": date(2026, 1, 1)}
        world.insert(connection, "price", [price])
    site = desk.caller(desk.token(EVERY))
    time = desk.free(site, agreement=agreement)[0]
    assert time["price"]["value"] == "33.60"
    key = site.hold(time).json()["key"]
    under = {"key": key, "patient": MARIA, "agreement": {"reference": f"InsurancePlan/{agreement}"}}
    wrong = site.do("book", {**under, "agreement": {"reference": "InsurancePlan/999999"}})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "front_no_price")
    booked = site.do("book", under).json()
    assert (booked["status"], booked["price"]["value"]) == ("booked", "33.60")


# Tokens


def test_whoever_has_no_good_token_or_not_the_scope_gets_nothing(desk: Desk) -> None:
    finder = desk.caller(desk.token([Scope.FIND]))
    time = desk.free(finder)[0]
    lacking = finder.hold(time)
    assert (lacking.status_code, lacking.json()["code"]) == (403, "front_scope_lacking")
    unknown = desk.caller("pdf_nessuno").find()
    assert (unknown.status_code, unknown.headers["www-authenticate"]) == (401, "Bearer")
    assert httpx.get(f"{finder.base}/Appointment/$find").status_code in {401, 422}
    with desk.engine.begin() as connection:
        number = tokens.listed(connection)[0].id
        tokens.revoke(connection, number, who="desk:anna", why="non serve più a nessuno", as_of=AS_OF)
    assert finder.find().status_code == 401
    site = desk.caller()
    desk.clock.wait(days=366)
    assert site.find().status_code == 401


def test_a_front_end_reaches_its_clinics_only(desk: Desk) -> None:
    everywhere = desk.caller()
    narrow = desk.caller(desk.token(clinics=["RE01"]))
    assert {each["participant"][1]["actor"]["reference"] for each in desk.free(narrow)} == {
        f"Location/{desk.other.location}"
    }
    here = desk.free(everywhere, location=desk.practice.location)[0]
    assert narrow.hold(here).json()["code"] == "not_offered"


def test_who_a_visitor_is_only_a_front_end_that_may_vouch_can_say(desk: Desk) -> None:
    site, trusted = desk.caller(), desk.caller(desk.token(EVERY))
    key = site.hold(desk.free(site)[0]).json()["key"]
    refused = site.do("book", {"key": key, "patient": MARIA})
    assert (refused.status_code, refused.json()["code"]) == (403, "front_may_not_vouch")
    assert trusted.do("book", {"key": key, "patient": MARIA}).json()["status"] == "booked"


def test_tokens_are_issued_and_revoked_by_somebody_with_a_reason_and_stand_in_the_audit(
    connection: sa.Connection,
) -> None:
    world.clinic(connection)
    given: dict[str, Any] = {"name": "sito", "scopes": [Scope.FIND], "clinics": ["BO01"], "who": "desk:anna"}
    given |= {"why": "nuovo sito della catena", "as_of": AS_OF}
    token = tokens.issue(connection, **given)
    caller = tokens.look(connection, token, AS_OF)
    assert caller is not None
    assert caller.clinics is not None
    assert token not in str(connection.execute(sa.text("SELECT * FROM front_token")).all())
    (listed,) = tokens.listed(connection)
    assert (listed.clinics, listed.scopes, listed.reason) == (("BO01",), ("find",), given["why"])
    tokens.revoke(connection, listed.id, who="desk:anna", why="il sito è stato chiuso", as_of=AS_OF)
    assert tokens.look(connection, token, AS_OF) is None
    lines = connection.execute(sa.text("SELECT actor, action, service, detail FROM audit ORDER BY id")).all()
    assert [line[:3] for line in lines] == [("desk:anna", each, "front_token") for each in ("issue", "revoke")]
    for wrong in ({"name": "Sito!"}, {"scopes": []}, {"clinics": ["XX99"]}, {"why": "boh"}, {"who": " "},
                  {"life": timedelta(days=900)}):  # fmt: skip
        with pytest.raises(PermanentError):
            tokens.issue(connection, **{**given, **wrong})
    with pytest.raises(PermanentError):
        tokens.revoke(connection, listed.id, who="desk:anna", why="il sito è stato chiuso", as_of=AS_OF)


# Once


# Measure and faults


def test_a_visitor_reads_in_her_language(desk: Desk) -> None:
    site = desk.caller()
    time = desk.free(site)[0]
    site.hold(time)
    said = {
        language: desk.caller(site.token, language=language).hold(time).json()["title"]
        for language in ("it-IT,it;q=0.9", "de", "en", "fr")
    }
    assert said["de"].startswith("Dieser Termin")
    assert said["en"].startswith("This time")
    assert said["it-IT,it;q=0.9"] == said["fr"]


def test_every_answer_of_the_rules_has_its_sentence() -> None:
    for language in LANGUAGES:
        for kind, domain in (
            (answers.Answer, "hold"), (appointments.Answer, "appointment"), (unverified.Answer, "booking"),
        ):  # fmt: skip
            assert [each for each in kind if not teller(language).knows(f"answer.{domain}.{each.value}")] == []


# Patients


def test_whom_we_know_without_doubt_is_found_and_anybody_else_is_added(connection: sa.Connection) -> None:
    code = "RSSMRA80E45A944H"
    known = world.patient(
        connection,
        last_name="Rossi",
        first_name="Maria",
        sex="F",
        birth_date=date(1980, 5, 5),
        fiscal_code=code,
        fiscal_code_canonical=code,
        fiscal_code_kind="CF",
    )
    maria = Visitor("ROSSI", "Maria", date(1980, 5, 5), code, "m@example.org", "347 0000001")
    assert visitors.wrong(maria, AS_OF) is None
    assert visitors.found_or_added(connection, maria, AS_OF) == visitors.Known(known, added=False)
    nameless = Visitor("Rossi", "Maria", date(1980, 5, 5))
    first = visitors.found_or_added(connection, nameless, AS_OF)
    assert len({known, first.id, visitors.found_or_added(connection, nameless, AS_OF).id}) == 3
    visitors.settle(connection, first)
    assert connection.scalar(sa.text("SELECT count(*) FROM patient WHERE id = :id"), {"id": first.id}) == 0
    assert visitors.wrong(Visitor("Verdi", "Maria", date(1980, 5, 5), code), AS_OF) == "fiscal_code"
    assert visitors.wrong(Visitor("Rossi", "Maria", date(1980, 5, 6), code), AS_OF) == "fiscal_code"
    assert visitors.wrong(Visitor("Rossi", "Maria", date(2026, 5, 6)), AS_OF) == "birth_date"


# Many at once


CROWD, SLOTS = 16, 12


@pytest.mark.slow
def test_sixteen_connections_take_no_seat_twice_and_lose_none(desk: Desk) -> None:
    """Everybody wants the same few times, each request is sent twice, and whoever is refused takes the next."""
    site = desk.caller()
    times = desk.free(site, location=desk.practice.location, _count=SLOTS)
    token = desk.token(EVERY)

    def visit(n: int) -> list[tuple[str, str]]:
        got = []
        for turn in range(6):
            me = desk.caller(token, visitor=f"folla-{n}-{turn}")
            time = times[(n + turn) % SLOTS]
            held = me.hold(time, f"blocca-{n}-{turn}")
            assert me.hold(time, f"blocca-{n}-{turn}").content == held.content
            if held.status_code != 200:
                assert held.json()["code"] == "full"
                continue
            person = {**MARIA, "given": f"Maria {n} {turn}"}
            booked = me.do("book", {"key": held.json()["key"], "patient": person}, f"prenota-{n}-{turn}")
            assert booked.status_code == 200, booked.text
            got.append((time["slot"]["reference"], held.json()["key"]))
        return got

    with ThreadPoolExecutor(CROWD) as pool:
        got = [each for visitor in pool.map(visit, range(CROWD)) for each in visitor]
    taken = Counter(slot for slot, _ in got)
    assert len(taken) == SLOTS
    assert max(taken.values()) == 1
    ids = [int(slot.partition("/")[2]) for slot in taken]
    booked = desk.scalar("SELECT count(*) FROM appointment WHERE status = 'booked' AND slot_id = ANY(:ids)", ids=ids)
    seats = desk.scalar("SELECT count(*) FROM seat WHERE slot_id = ANY(:ids) AND appointment_id IS NOT NULL", ids=ids)
    assert booked == seats == SLOTS
    assert wanted(times[0])["slot"]["reference"] in taken


def test_the_description_is_openapi_3_1_with_the_names_of_fhir(desk: Desk) -> None:
    told = httpx.get(f"{desk.door.origin}/api/booking/openapi.json").json()
    assert told["openapi"].startswith("3.1")
    assert set(told["paths"]) == {
        f"/Appointment/${deed}"
        for deed in ("find", "hold", "renew", "release", "pay", "book", "challenge", "verify", "cancel", "move")
    }
    for path in told["paths"].values():
        for operation in path.values():
            problems = {str(status) for status in api.REFUSALS}
            assert problems | {"200"} == set(operation["responses"])
            assert operation["security"] == [{"HTTPBearer": []}]
