"""The booking API over a socket: from a time that is found to a visit that is moved or cancelled."""

from __future__ import annotations

import logging
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from multiprocessing import get_context
from os import getpid, kill
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from polydesk_dagster.clinic.bookings import answers, appointments, holds, unverified
from polydesk_dagster.clinic.patients import visitors
from polydesk_dagster.clinic.patients.visitors import Visitor
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.front import api, tokens
from polydesk_dagster.front.booking.access import Asked, Front
from polydesk_dagster.front.booking.once import Attempt, once
from polydesk_dagster.front.booking.schema import Done
from polydesk_dagster.front.tokens import Caller, Scope
from polydesk_dagster.pace import Buckets
from polydesk_dagster.told import LANGUAGES, teller
from tests import postgres, world
from tests.front.desk import CODE, EVERY, MARIA, Desk, open_desk, serving, wanted
from tests.web.test_guard import raw
from tests.web.world import free_port
from tests.world import AS_OF


@pytest.fixture(scope="module")
def desk(server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One for the module: every test has its own visitors and times."""
    with postgres.copied(server, postgres.EMPTY) as url:
        engine = create_engine(url)
        with open_desk(engine, tmp_path_factory.mktemp("home")) as opened:
            yield opened
        engine.dispose()


@pytest.fixture(autouse=True)
def _now(request: pytest.FixtureRequest) -> None:
    if "desk" in request.fixturenames:
        request.getfixturevalue("desk").clock.at = AS_OF


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


def test_a_request_sent_again_is_answered_again_and_another_under_its_key_is_refused(desk: Desk) -> None:
    site = desk.caller()
    time, other, *_ = desk.free(site)
    first = site.hold(time, "una-sola-volta")
    again = site.hold(time, "una-sola-volta")
    assert (again.status_code, again.content) == (200, first.content)
    assert (first.headers.get("idempotent-replay"), again.headers["idempotent-replay"]) == (None, "true")
    refused = site.hold(other, "una-sola-volta")
    assert (refused.status_code, refused.json()["code"]) == (422, "front_key_used")
    full = desk.caller(site.token).hold(time, "gia-preso-12")
    assert full.json()["code"] == "full"
    site.do("release", {"key": first.json()["key"]})
    assert desk.caller(site.token).hold(time, "gia-preso-12").json()["code"] == "full", "an answer stays what it was"
    # Another front end's keys are its own.
    assert desk.caller(desk.token(name="altro")).hold(other, "una-sola-volta").status_code == 200


def test_many_who_send_one_request_at_once_get_one_answer(desk: Desk) -> None:
    site = desk.caller()
    time = desk.free(site)[0]
    with ThreadPoolExecutor(8) as pool:
        answers_ = list(pool.map(lambda _: site.hold(time, "tutti-insieme"), range(8)))
    assert {each.status_code for each in answers_} == {200}
    assert len({each.json()["key"] for each in answers_}) == 1


def test_the_kept_answers_show_nobody_a_key_or_a_patient(desk: Desk) -> None:
    site = desk.caller()
    key = site.hold(desk.free(site)[0]).json()["key"]
    site.do("book", {"key": key, "telecom": [{"system": "email", "value": "segreta@example.org"}]})
    secret = site.do("challenge", {"key": key, "channel": "email"}).json()["secret"]
    with desk.engine.connect() as connection:
        kept = b"".join(bytes(row[0]) for row in connection.execute(sa.text("SELECT sealed FROM front_answer")))
    for word in (key, secret, "segreta"):
        assert word.encode() not in kept


def _asked(engine: sa.Engine, token_id: int) -> Asked:
    return Asked(Front(engine), Caller(token_id, "sito", frozenset(EVERY), None, None), "pdf_uno", "una", AS_OF)


def _book_and_die(url: sa.URL, token_id: int, slot: int, service: int, when: str) -> None:
    engine = create_engine(url)

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        done = _place(connection, slot, service)
        if when == "before":
            kill(getpid(), signal.SIGKILL)
        return done

    once(_asked(engine, token_id), Attempt("chiave-unica", b"r" * 32), act)
    kill(getpid(), signal.SIGKILL)


def _place(connection: sa.Connection, slot: int, service: int) -> tuple[int, BaseModel]:
    given = {"slot_id": slot, "service_id": service, "token": "uno", "visitor": "una", "as_of": AS_OF}
    return 200, Done(code=holds.place(connection, **given).answer, text="")


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_before_or_after_the_commit_the_same_request_is_done_once(engine: sa.Engine, when: str) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        slot = world.slot(connection, practice.agenda, world.rome("2026-03-12"))
        given: dict[str, Any] = {"who": "desk:anna", "why": "prova di integrazione", "as_of": AS_OF}
        tokens.issue(connection, name="sito", scopes=EVERY, clinics=[], **given)
        token_id = tokens.listed(connection)[0].id
    arguments = (engine.url, token_id, slot, practice.service, when)
    process = get_context("fork").Process(target=_book_and_die, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    ran = []

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        ran.append(1)
        return _place(connection, slot, practice.service)

    answer = once(_asked(engine, token_id), Attempt("chiave-unica", b"r" * 32), act)
    assert (answer.status_code, b"placed" in answer.body, len(ran)) == (200, True, 1 if when == "before" else 0)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hold")) == 1


# Measure and faults


def test_a_visitor_who_asks_too_often_waits_and_the_others_do_not(
    engine: sa.Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    few = {"visitors": Buckets(0.001, 3), "front_ends": Buckets(0.001, 5)}
    with open_desk(engine, tmp_path_factory.mktemp("home"), **few) as desk:
        site = desk.caller()
        assert [site.find().status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = site.find()
        assert (refused.json()["code"], int(refused.headers["retry-after"]) > 0) == ("front_too_many", True)
        another = desk.caller(site.token)
        assert another.find().status_code == 429, "the front end as a whole has its measure"
        assert desk.caller(desk.token(name="altro"), visitor=site.visitor).find().status_code == 200


def test_without_the_database_it_says_when_to_come_back(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = create_engine(sa.make_url(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"))
    with serving(desk.engine, tmp_path_factory.mktemp("home"), Front(away, desk.clock)) as (door, front):
        program = Desk(desk.engine, front, desk.clock, door, desk.practice, desk.other).caller(desk.token())
        for answer in (program.find(), program.do("renew", {"key": "x" * 43})):
            assert (answer.status_code, answer.json()["code"]) == (503, "front_database_away")
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0


def test_connections_that_the_server_has_closed_are_made_anew(desk: Desk) -> None:
    site = desk.caller()
    assert site.find().status_code == 200
    with desk.engine.begin() as connection:
        connection.execute(
            sa.text("""SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()""")
        )
    assert site.find().status_code == 200


def test_who_waits_too_long_for_a_lock_is_asked_to_come_back_and_nothing_is_done(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hasty = create_engine(desk.engine.url)
    sa.event.listen(hasty, "begin", lambda each: each.exec_driver_sql("SET LOCAL lock_timeout = '100ms'"))
    with (
        serving(desk.engine, tmp_path_factory.mktemp("home"), Front(hasty, desk.clock)) as (door, front),
        desk.engine.begin() as holder,
    ):
        site = Desk(desk.engine, front, desk.clock, door, desk.practice, desk.other).caller(desk.token())
        time = desk.free(site)[0]
        slot = int(time["slot"]["reference"].partition("/")[2])
        holder.execute(sa.text("SELECT FROM slot WHERE id = :id FOR UPDATE"), {"id": slot})
        assert site.hold(time, "una-chiave-buona").status_code == 503
        holder.rollback()
        assert site.hold(time, "una-chiave-buona").status_code == 200
    hasty.dispose()


WRONG: list[tuple[str, object, int]] = [
    ("hold", {"slot": {"reference": "Slot/abc"}, "service": {"reference": "HealthcareService/1"}}, 422),
    ("hold", {"slot": {"reference": "Slot/1"}}, 422),
    ("hold", [], 422),
    ("book", {"key": "x" * 43, "telecom": [{"system": "email", "value": "RSSMRA"}, {}]}, 422),
    ("book", {"key": "x" * 43, "segreto": "RSSMRA"}, 422),
    ("verify", {"token": "x" * 43, "patient": {**MARIA, "family": "RSSMRA\n"}}, 422),
    ("verify", {"token": "x" * 43, "patient": {**MARIA, "fiscalCode": "RSSMRA85T10A562S"}}, 422),
    ("verify", {"token": "x" * 43, "patient": {**MARIA, "birthDate": "2126-01-01"}}, 422),
    ("verify", {"patient": MARIA}, 422),
    ("renew", {"key": "x" * 43}, 404),
    ("cancel", {"key": "x" * 43}, 404),
    ("nothing", {}, 404),
]


@pytest.mark.parametrize(("deed", "body", "status"), WRONG)
def test_what_is_wrong_is_told_by_its_place_and_never_quoted(
    desk: Desk, caplog: pytest.LogCaptureFixture, deed: str, body: object, status: int
) -> None:
    with caplog.at_level(logging.DEBUG, "polydesk"):
        answer = desk.caller().do(deed, body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"] == f"urn:polydesk:problem:{answer.json()['code']}"
    assert "RSSMRA" not in answer.text + caplog.text


def test_bodies_that_are_too_long_no_json_or_cut_short_are_refused(desk: Desk) -> None:
    site = desk.caller()
    url = f"{site.base}/Appointment/$renew"
    headers = site.headers(**{"Idempotency-Key": "chiave-12345"})
    long = httpx.post(
        url, content=b'{"key": "' + b"x" * 20_000 + b'"}', headers={**headers, "Content-Type": "application/json"}
    )
    assert (long.status_code, long.json()["code"]) == (413, "front_too_large")
    pieces = httpx.post(url, content=iter([b" " * 9_000] * 2), headers={**headers, "Content-Type": "application/json"})
    assert (pieces.status_code, pieces.json()["code"]) == (413, "front_too_large")
    text = httpx.post(url, content=b"key=x", headers={**headers, "Content-Type": "text/plain"})
    assert (text.status_code, text.json()["code"]) == (415, "front_no_json")
    broken = httpx.post(url, content=b'{"key": ', headers={**headers, "Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["code"]) == (422, "front_request_wrong")
    with socket.create_connection(("127.0.0.1", desk.door.door.settings.web_port)) as connection:
        head = (
            f"POST /api/booking/Appointment/$renew HTTP/1.1\r\nHost: 127.0.0.1:{desk.door.door.settings.web_port}\r\n"
        )
        connection.sendall(f'{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"key":'.encode())
    assert desk.caller(site.token).find().status_code == 200
    missing = httpx.post(url, json={"key": "x" * 43}, headers=site.headers())
    assert (missing.status_code, missing.json()["errors"][0]["at"]) == (422, "header.Idempotency-Key")


def test_the_wrong_method_and_too_many_days_are_refused_as_problems(desk: Desk) -> None:
    site = desk.caller()
    wrong = httpx.get(f"{site.base}/Appointment/$hold", headers=site.headers())
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["allow"]) == (405, "front_method_wrong", "POST")
    late = site.find(end=(AS_OF + timedelta(days=200)).isoformat())
    assert (late.status_code, late.json()["code"]) == (422, "front_days_wrong")
    assert site.find(start="2026-03-11T09:00:00").status_code == 422, "an instant needs its offset"
    assert raw(desk.door, "DELETE /api/booking/Appointment/$hold HTTP/1.1\nHost: HOST\n")[0] == 405


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
