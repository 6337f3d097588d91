"""How a connection failed is told by what it arose from, never by the name of a class."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiosmtplib
import httpx
import pytest

from polydesk_dagster import answers, network
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.failure import failure
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.values import Term
from tests.waiting import PATIENCE

Behaviour = Callable[[socket.socket], object]


@contextmanager
def _answering(behaviour: Behaviour) -> Iterator[int]:
    """A port whose listener does ``behaviour`` with whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(4096)
                    behaviour(client)

        serving = threading.Thread(target=serve)
        serving.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        serving.join(PATIENCE)


def _asked(url: str, timeout: float = PATIENCE) -> httpx.HTTPError:
    """The error of an address asked as ours are, side by side as one by one."""

    async def side_by_side() -> None:
        async with httpx.AsyncClient(transport=network.async_transport(), timeout=timeout) as client:
            await client.get(url)

    with (
        pytest.raises(httpx.HTTPError) as alone,
        httpx.Client(transport=network.transport(), timeout=timeout) as client,
    ):
        client.get(url)
    with pytest.raises(httpx.HTTPError) as beside:
        asyncio.run(side_by_side())
    assert failure(alone.value, "unknown") == failure(beside.value, "unknown")
    return alone.value


def _told(error: httpx.HTTPError) -> str:
    told = answers.sort_error("Reno", error)
    assert isinstance(told, TransientError | PermanentError)
    return teller("it").reason(told.reason)


def test_what_nobody_answers_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    where = "controlla l'indirizzo e che il server sia acceso"
    nobody = f"Reno: collegamento non riuscito (a quell'indirizzo non risponde nessun programma), {where}"
    assert _told(_asked(f"http://127.0.0.1:{port}/")) == nobody

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", unknown)
    unknown_name = f"Reno: collegamento non riuscito (il nome del server non si trova), {where}"
    assert _told(_asked("http://studiolab.example/")) == unknown_name


def _greets(client: socket.socket) -> None:
    client.sendall(b"hallo\r\n\r\n")


@pytest.mark.parametrize(
    ("scheme", "behaviour", "told"),
    [
        ("http", lambda _: None, "nessuna risposta intera (la risposta non è intera o non è quella di un server web)"),
        ("http", _greets, "nessuna risposta intera (la risposta non è intera o non è quella di un server web)"),
        ("https", _greets, "collegamento non riuscito (il collegamento cifrato non riesce)"),
    ],
)
def test_an_answer_that_is_none_is_told_as_what_it_is(scheme: str, behaviour: Behaviour, told: str) -> None:
    with _answering(behaviour) as port:
        assert _told(_asked(f"{scheme}://127.0.0.1:{port}/")).startswith(f"Reno: {told}, ")


@pytest.mark.parametrize(
    ("error", "term"),
    [
        (TimeoutError(), Term("failure", "timed_out")),
        (OSError(113, "No route to host"), Term("failure", "no_way")),
        (PermissionError(13, "Permission denied"), Term("errno", "EACCES")),
        (ConnectionResetError(104, "reset"), Term("failure", "cut")),
        (ssl.SSLCertVerificationError(1, "expired"), Term("failure", "certificate")),
        (aiosmtplib.SMTPConnectTimeoutError("late"), Term("failure", "timed_out")),
        (RuntimeError("odd"), Term("failure", "unknown")),
    ],
)
def test_the_cause_counts_however_deep_it_lies(error: Exception, term: Term) -> None:
    deep = httpx.ConnectError("all attempts failed")
    deep.__cause__ = OSError("one of them")
    deep.__cause__.__context__ = error
    assert failure(error, "unknown") == failure(deep, "unknown") == term
    for language in LANGUAGES:
        assert teller(language).value(term) != term.code
