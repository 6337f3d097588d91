"""Where names lead: a fake resolver, real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from polydesk_dagster import network, remote
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Policy, Remote

QUICK = Policy(attempts=1, connect=2.0, total=5.0)


class Server:
    """Answers one line of JSON to whoever connects, and keeps what it was asked."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.asked: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(65536))
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
                connection.sendall(head + b"Connection: close\r\n\r\n{}")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.socket.close()


@pytest.fixture
def leads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What each name is resolved to, one answer after the other."""
    answers: dict[str, list[list[str]]] = {}

    def resolve(host: str, _port: int) -> list[str]:
        if not answers.get(host):
            raise socket.gaierror(-2, "Name or service not known")
        return answers[host].pop(0)

    monkeypatch.setattr(network, "resolve", resolve)
    return answers


def ask(url: str) -> object:
    with Remote("prova", url, "token", QUICK) as system:
        return system.get("/x").body


def look(url: str) -> object:
    async def once() -> object:
        async with remote.looking(QUICK, 2) as client:
            return (await remote.look(client, "prova", url, "/x", token="token", query={}, policy=QUICK)).body

    return asyncio.run(once())


WAYS = pytest.mark.parametrize("way", [ask, look])


@WAYS
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["fe80::1%eth0"],
        ["100.100.100.200"],
        ["fd00:ec2::254"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
    ],
)
def test_a_name_that_leads_inside_is_not_connected_to(
    server: Server, leads: dict[str, list[list[str]]], way: type, addresses: list[str]
) -> None:
    leads["studio.example"] = [addresses]
    with pytest.raises(PermanentError) as refused:
        way(f"http://studio.example:{server.port}")
    assert refused.value.reason.code == "address_leads_inside"
    assert not server.asked


@WAYS
def test_what_was_looked_at_is_what_is_connected_to(
    server: Server, leads: dict[str, list[list[str]]], way: type
) -> None:
    """A name is asked for once: what it would be a moment later nobody hears."""
    leads["localhost"] = [["127.0.0.1"], ["169.254.169.254"]]
    assert way(f"http://localhost:{server.port}") == {}
    assert leads["localhost"] == [["169.254.169.254"]]
    assert f"host: localhost:{server.port}".encode() in server.asked[0].lower(), "the name is still what is asked"


@WAYS
def test_the_next_address_is_tried_where_one_does_not_answer(
    server: Server, leads: dict[str, list[list[str]]], way: type
) -> None:
    leads["localhost"] = [["::1", "127.0.0.1"]]
    assert way(f"http://localhost:{server.port}") == {}


@WAYS
def test_a_name_without_an_address_may_have_one_later(leads: dict[str, list[list[str]]], way: type) -> None:
    assert not leads
    with pytest.raises(TransientError):
        way("http://nowhere.example:1")


@WAYS
def test_an_address_that_is_written_out_is_taken_at_its_word(server: Server, way: type) -> None:
    assert way(f"http://127.0.0.1:{server.port}") == {}


def test_a_clinics_own_network_may_hold_its_practice_system(leads: dict[str, list[list[str]]]) -> None:
    leads["studio.lan"] = [["192.168.1.20", "fd12::20"]]
    assert network.checked("studio.lan", 443) == ["192.168.1.20", "fd12::20"]
