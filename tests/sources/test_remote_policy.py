from __future__ import annotations

import asyncio
import gzip
import json
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx
import pytest
import zstandard
from starlette.requests import Request

from polydesk_dagster import answers, remote
from polydesk_dagster.answers import UncertainError
from polydesk_dagster.demo.simulators.faults import Reply
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, Handler, Simulator, in_thread
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Policy, Remote
from polydesk_dagster.wire import storable

FAST = Policy(connect=60, read=60, write=60, request=60, attempts=3, total=300, wait_first=0.01, wait_longest=5)
"""Asks again at once, and gives a system on a busy machine all the time that it needs to answer."""
IMPATIENT = replace(FAST, read=1, request=2, attempts=30)
"""For what says nothing or not enough."""
ITEMS = [{"id": str(n), "name": f"Forlì {n}"} for n in range(50)]


async def _list(_: Request) -> Reply:
    return Reply({"items": ITEMS}, etag=True)


async def _take_one(_: Request) -> Reply:
    return Reply({"taken": True})


class Echo(Simulator):
    name = "echo"

    def handlers(self) -> dict[tuple[str, str], Handler]:
        return {("GET", "/list"): _list, ("POST", "/take"): _take_one}


@pytest.fixture
def echo() -> Iterator[tuple[Echo, Remote]]:
    simulator = Echo()
    with in_thread(simulator) as url, Remote("Prova", url, DEMO_TOKEN, FAST) as client:
        yield simulator, client


def asked(simulator: Simulator) -> int:
    return len(simulator.requests)


def test_a_good_answer_and_its_etag(echo: tuple[Echo, Remote]) -> None:
    _, client = echo
    answer = client.get("/list")
    assert answer.body == {"items": ITEMS}
    again = client.get("/list", etag=answer.etag)
    assert again.not_modified
    assert again.body is None


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_transient_status_is_asked_again(echo: tuple[Echo, Remote], status: int) -> None:
    simulator, client = echo
    simulator.fail("status", status=status, html=status == 502, times=2)
    assert client.get("/list").body == {"items": ITEMS}
    assert asked(simulator) == 3


def test_a_transient_status_is_given_up_in_the_end(echo: tuple[Echo, Remote]) -> None:
    simulator, client = echo
    simulator.fail("status", status=500, times=None)
    with pytest.raises(TransientError, match="500"):
        client.get("/list")
    assert asked(simulator) == FAST.attempts


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 410, 422])
def test_a_permanent_status_is_asked_once(echo: tuple[Echo, Remote], status: int) -> None:
    simulator, client = echo
    simulator.fail("status", status=status, times=None)
    with pytest.raises(PermanentError, match=str(status)):
        client.get("/list")
    assert asked(simulator) == 1


def test_an_expected_status_is_an_answer(echo: tuple[Echo, Remote]) -> None:
    simulator, client = echo
    simulator.fail("status", status=410)
    answer = client.get("/list", expected=frozenset({410}))
    assert (answer.status, answer.body["status"]) == (410, 410)
    simulator.fail("status", status=410, html=True)
    assert client.get("/list", expected=frozenset({410})).body is None


def test_a_wrong_token_is_permanent(echo: tuple[Echo, Remote]) -> None:
    simulator, client = echo
    with Remote("Prova", client.url, "another", FAST) as stranger, pytest.raises(PermanentError, match="remote_token"):
        stranger.get("/list")
    assert asked(simulator) == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_out(echo: tuple[Echo, Remote], as_date: bool) -> None:
    simulator, client = echo
    simulator.fail("status", status=429, retry_after=1, retry_date=as_date)
    client.get("/list")
    first, second = (request["at"] for request in simulator.requests)
    assert as_date or second - first >= 1  # a date has whole seconds, so it can mean up to one second less


@pytest.mark.parametrize(("asked_for", "told"), [(600, 600.0), (9_999_999, 3600.0)])
def test_a_long_retry_after_is_left_to_the_caller(echo: tuple[Echo, Remote], asked_for: int, told: float) -> None:
    simulator, client = echo
    simulator.fail("status", status=429, retry_after=asked_for)
    with pytest.raises(TransientError) as caught:
        client.get("/list")
    assert caught.value.retry_after == told
    assert asked(simulator) == 1


@pytest.mark.parametrize("value", ["", "soon", "-3", "Wed, 99 Foo 2026", "١٢"])
def test_a_meaningless_retry_after_is_none(value: str) -> None:
    import httpx

    assert answers.retry_after(httpx.Response(429, headers={"Retry-After": value.encode()})) is None


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "html"},
        {"kind": "cut", "share": 0.4},
        {"kind": "cut", "share": 0},
        {"kind": "cut_encoding", "encoding": "gzip"},
        {"kind": "cut_encoding", "encoding": "zstd"},
        {"kind": "timeout", "seconds": 30},
        {"kind": "trickle", "seconds": 8},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
def test_an_answer_that_is_not_whole_is_never_taken_for_one(echo: tuple[Echo, Remote], fault: dict[str, Any]) -> None:
    simulator, patient = echo
    policy = IMPATIENT if "seconds" in fault else FAST
    with Remote("Prova", patient.url, DEMO_TOKEN, policy) as client:
        simulator.faults.append(_fault(fault))
        assert client.get("/list").body == {"items": ITEMS}
        assert asked(simulator) >= 2
        simulator.faults.append(_fault(fault | {"times": None}))
        with pytest.raises(UncertainError):
            client.post("/take", {}, headers={})


def _fault(fault: dict[str, Any]) -> Any:
    from polydesk_dagster.demo.simulators.faults import Fault

    return Fault.model_validate(fault)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_bodies(echo: tuple[Echo, Remote], encoding: str) -> None:
    simulator, client = echo
    simulator.fail("encoding", encoding=encoding)
    assert client.get("/list").body == {"items": ITEMS}
    assert asked(simulator) == 1


def test_a_byte_order_mark_is_no_matter_and_another_encoding_is_refused(echo: tuple[Echo, Remote]) -> None:
    simulator, client = echo
    simulator.fail("bom")
    assert client.get("/list").body == {"items": ITEMS}
    simulator.fail("not_utf8")
    with pytest.raises(PermanentError, match="remote_encoding"):
        client.get("/list")


@pytest.mark.parametrize("encoding", [None, "gzip", "zstd"])
def test_a_body_beyond_the_bound_is_refused(echo: tuple[Echo, Remote], encoding: str | None) -> None:
    simulator, client = echo
    if encoding:
        simulator.fail("encoding", encoding=encoding)
    with (
        Remote("Prova", client.url, DEMO_TOKEN, replace(FAST, largest_body=500)) as small,
        pytest.raises(PermanentError, match="remote_too_large"),
    ):
        small.get("/list")
    assert asked(simulator) == 1


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no number": (b'{"a": NaN}', "remote_unreadable"),
    "a number without end": (b"[" + b"9" * 5_000 + b"]", "remote_unreadable"),
    "a negative one": (b"[-" + b"9" * 100_000 + b"]", "remote_unreadable"),
    "NUL": (b'["\0"]', "remote_unreadable"),
    "nothing": (b"", "remote_unreadable"),
    "garbage": (b"null garbage", "remote_unreadable"),
    "cut short": (b'{"a": 1', "remote_unreadable"),
    "a proxy's page": (b"<html>", "remote_html"),
    "half a letter": ('{"a": "è'.encode()[:-1], "remote_truncated"),
    "another encoding": ('{"a": 1}'.encode("utf-16"), "remote_encoding"),
    "arrays without end": (b"[" * 200_000, "remote_nested"),
    "an exponent without end": (b'{"a": 1e9999999999999999999999}', "remote_unreadable"),
    "objects without end": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "remote_nested"),
}
"""What is no answer, whatever it costs to say so, and how it is called."""


@pytest.mark.parametrize(("body", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_json_is_refused_by_name(body: bytes, code: str) -> None:
    with pytest.raises((TransientError, PermanentError), match=code):
        answers.decode("Prova", body)


@pytest.mark.parametrize("number", ["33.300000000000004", "0.10", "-5e-1", "1E2", "12345678901234567.89", "1e400"])
@pytest.mark.parametrize("around", ["%s", "[1, %s]", '{"of": {"a": %s}}', '{"text": "1,5", "a" :\n%s}'])
def test_a_number_is_what_is_written_never_a_float(number: str, around: str) -> None:
    read = answers.decode("Prova", (around % number).encode())
    while not isinstance(read, Decimal):
        read = list(read.values() if isinstance(read, dict) else read)[-1]
    assert read == Decimal(number)
    written = json.loads(json.dumps(storable(read)), parse_float=Decimal)
    assert written == read or written == str(read), "what is kept of it in a table is the same"


@pytest.mark.parametrize(
    ("encoding", "pack", "code"),
    [
        ("zstd", zstandard.compress, "remote_too_large"),
        ("gzip", gzip.compress, "remote_too_large"),
        ("zstd, zstd", lambda data: zstandard.compress(zstandard.compress(data)), "remote_encodings"),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data)), "remote_encodings"),
        ("br", bytes, "remote_encodings"),
    ],
)
def test_an_answer_that_unpacks_without_end_is_refused_in_a_bounded_memory(
    encoding: str, pack: Callable[[bytes], bytes], code: str
) -> None:
    packed = pack(bytes(64 * 1024**2))
    response = httpx.Response(200, headers={"Content-Encoding": encoding}, stream=httpx.ByteStream(b""))
    body = answers.Body("Prova", 1024**2, 60.0)
    body.data += packed[: 1024**2]
    tracemalloc.start()
    try:
        with pytest.raises(PermanentError, match=code):
            body.unpacked(response)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_server_that_is_not_there(echo: tuple[Echo, Remote]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Remote("Prova", url, DEMO_TOKEN, FAST) as client, pytest.raises(TransientError) as caught:
        client.post("/take", {}, headers={})
    assert not isinstance(caught.value, UncertainError)


def test_a_post_is_asked_once(echo: tuple[Echo, Remote]) -> None:
    simulator, client = echo
    simulator.fail("status", status=503, times=None)
    with pytest.raises(UncertainError):
        client.post("/take", {}, headers={})
    assert asked(simulator) == 1
    simulator.faults.clear()
    simulator.fail("status", status=429, retry_after=7)
    with pytest.raises(TransientError) as caught:
        client.post("/take", {}, headers={})
    assert caught.value.retry_after == 7
    assert not isinstance(caught.value, UncertainError)


class Together(Simulator):
    """Answers nobody before twenty have asked."""

    name = "together"

    def handlers(self) -> dict[tuple[str, str], Handler]:
        return {("GET", "/list"): self._list}

    def __init__(self) -> None:
        super().__init__()
        self._asked = asyncio.Event()

    async def _list(self, request: Request) -> Reply:
        if asked(self) == 20:
            self._asked.set()
        await self._asked.wait()
        return await _list(request)


def test_looks_go_side_by_side() -> None:
    async def all_of_them(url: str) -> list[int]:
        async with remote.looking(FAST, 20) as pool:
            looks = [
                remote.look(pool, "Prova", url, "/list", token=DEMO_TOKEN, query={}, policy=FAST) for _ in range(20)
            ]
            return [answer.status for answer in await asyncio.gather(*looks)]

    with in_thread(Together()) as url:
        assert asyncio.run(all_of_them(url)) == [200] * 20


def test_an_address_without_a_path_means_the_contract() -> None:
    assert remote.base_url("http://127.0.0.1:8081/") == "http://127.0.0.1:8081/api/v1"
    assert remote.base_url("https://lab.example/bo/api/v1/") == "https://lab.example/bo/api/v1"
