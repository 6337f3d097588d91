"""The booking API where a request comes twice, too often, without its database, or is wrong."""

from __future__ import annotations

import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from os import getpid, kill
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from polydesk_dagster.clinic.bookings import holds
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.front import tokens
from polydesk_dagster.front.booking.access import Asked, Front
from polydesk_dagster.front.booking.once import Attempt, once
from polydesk_dagster.front.booking.schema import Done
from polydesk_dagster.front.tokens import Caller
from polydesk_dagster.pace import Buckets
from tests import world
from tests.front.desk import EVERY, MARIA, Desk, at_its_hour, desk, open_desk, serving
from tests.web.test_guard import raw
from tests.web.world import free_port
from tests.world import AS_OF

__all__ = ["at_its_hour", "desk"]  # fixtures


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
