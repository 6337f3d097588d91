"""What is refused before anybody asks who is there, by raw requests: what a page elsewhere can make a browser send."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.pace import Buckets
from polydesk_dagster.settings import Settings
from polydesk_dagster.web import guard
from polydesk_dagster.web.guard import Address
from tests.waiting import PATIENCE
from tests.web.world import Served, served


def raw(door: Served, text: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are (``HOST`` and ``ORIGIN`` are ours); the status, headers and body that come back."""
    port = door.door.settings.web_port
    host = f"127.0.0.1:{port}"
    lines = text.strip().replace("ORIGIN", f"http://{host}").replace("HOST", host).splitlines()
    last = "Connection: Upgrade" if "Upgrade: websocket" in text else "Connection: close"
    head = "\r\n".join([*(line.strip() for line in lines), last, "", ""])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    top, _, rest = answer.partition(b"\r\n\r\n")
    status, *headers = top.decode().split("\r\n")
    named = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
    return int(status.split()[1]), named, rest


HERE = "GET /entra HTTP/1.1\nHost: HOST\n"
THERE = "POST /entra HTTP/1.1\nHost: HOST\nContent-Length: 0\n"
SOCKET = (
    "GET /dagster/graphql HTTP/1.1\nHost: HOST\nUpgrade: websocket\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n"
)

REQUESTS = {
    "a page of ours": ("GET /entra HTTP/1.1\nHost: HOST", 200),
    "another name of the loopback": ("GET /entra HTTP/1.1\nHost: localhost:PORT", 200),
    "a rebound name": ("GET /entra HTTP/1.1\nHost: evil.example:PORT", 421),
    "our name on another port": ("GET /entra HTTP/1.1\nHost: 127.0.0.1:1", 421),
    "two hosts": ("GET /entra HTTP/1.1\nHost: HOST\nHost: evil.example", 421),
    "a name in front of the path": ("GET http://evil.example/entra HTTP/1.1\nHost: evil.example", 421),
    "a link from elsewhere, in a tab": (
        HERE + "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: document",
        200,
    ),
    "a picture elsewhere": (
        HERE + "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors\nSec-Fetch-Dest: image",
        403,
    ),
    "a frame elsewhere": (
        HERE + "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: iframe",
        403,
    ),
    "a script on another port of this machine": (
        HERE + "Sec-Fetch-Site: same-site\nSec-Fetch-Mode: cors\nSec-Fetch-Dest: empty",
        403,
    ),
    "a form of ours": (THERE + "Origin: ORIGIN", 401),
    "a form elsewhere": (THERE + "Origin: https://evil.example", 403),
    "a form without an origin": (THERE, 403),
    "a sandboxed form": (THERE + "Origin: null", 403),
    "an origin on another port": (
        THERE + "Origin: http://127.0.0.1:1",
        403,
    ),
    "two origins": (
        THERE + "Origin: ORIGIN\nOrigin: https://evil.example",
        403,
    ),
    "another name of ours as origin": (
        THERE + "Origin: http://localhost:PORT",
        403,
    ),
    "our origin, told to be elsewhere": (
        THERE + "Origin: ORIGIN\nSec-Fetch-Site: cross-site",
        403,
    ),
    "a method that nothing of ours takes": ("DELETE / HTTP/1.1\nHost: HOST\nOrigin: ORIGIN", 405),
    "a preflight": (
        "OPTIONS /entra HTTP/1.1\nHost: HOST\nOrigin: https://evil.example\nAccess-Control-Request-Method: POST",
        405,
    ),
    "a body that says it is too large": (
        "POST /entra HTTP/1.1\nHost: HOST\nOrigin: ORIGIN\nContent-Length: 1000001",
        413,
    ),
    "a websocket elsewhere": (SOCKET + "Origin: https://evil.example", 403),
    "a websocket without an origin": (SOCKET, 403),
    "a websocket of nobody": (SOCKET + "Origin: ORIGIN", 403),
}


@pytest.mark.parametrize(("text", "status"), REQUESTS.values(), ids=REQUESTS.keys())
def test_what_comes_from_elsewhere_is_refused(door: Served, text: str, status: int) -> None:
    text = text.replace("PORT", str(door.door.settings.web_port))
    assert raw(door, text)[0] == status


def test_a_body_without_a_length_is_counted_as_it_comes(door: Served) -> None:
    head = "POST /entra HTTP/1.1\nHost: HOST\nOrigin: ORIGIN\nTransfer-Encoding: chunked"
    chunk = b"%x\r\n" % 100_000 + b"x" * 100_000 + b"\r\n"
    assert raw(door, head, chunk * 11 + b"0\r\n\r\n")[0] == 413


def test_every_answer_forbids_frames_and_inline_scripts(door: Served) -> None:
    for path in ("/entra", "/nowhere", "/static/polydesk.css", "/health/live", "/dagster/graphql"):
        _, headers, _ = raw(door, f"GET {path} HTTP/1.1\nHost: HOST")
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        wanted = {"x-frame-options": "DENY", "x-content-type-options": "nosniff"}
        assert wanted.items() <= headers.items()
        assert headers["cache-control"] in {"no-store", "private, no-cache"}
        assert "strict-transport-security" not in headers


def test_our_pages_hold_no_inline_script_or_style() -> None:
    for template in (Path(guard.__file__).parent / "templates").glob("*.html"):
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script>", template.read_text()), template.name


def test_behind_tls_the_address_is_one_and_kept(engine: sa.Engine, tmp_path: Path) -> None:
    with served(engine, tmp_path, public_url="https://polydesk.example") as door:
        ours = "GET /entra HTTP/1.1\nHost: polydesk.example"
        status, headers, _ = raw(door, ours)
        assert (status, headers["strict-transport-security"]) == (200, "max-age=31536000")
        assert door.door.cookie == "__Host-polydesk"
        assert raw(door, "GET /entra HTTP/1.1\nHost: polydesk.example:443")[0] == 200
        assert raw(door, "GET /health/live HTTP/1.1\nHost: HOST")[0] == 200
        post = "POST /entra HTTP/1.1\nHost: {}\nOrigin: {}\nContent-Length: 0"
        assert raw(door, post.format("polydesk.example", "https://polydesk.example"))[0] == 401
        assert raw(door, post.format("polydesk.example", "http://polydesk.example"))[0] == 403
        assert raw(door, post.format("HOST", "ORIGIN"))[0] == 403


def test_one_address_has_so_many_requests_and_then_waits() -> None:
    buckets = Buckets(per_second=0.001, at_once=3)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b")


def test_whoever_knocks_without_end_is_told_to_wait(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard.Guard.__init__, "__kwdefaults__", {"per_second": 0.001, "at_once": 2.0})
    with served(engine, tmp_path) as door:
        answers = [raw(door, "GET /health/live HTTP/1.1\nHost: HOST") for _ in range(3)]
    assert [status for status, *_ in answers] == [200, 200, 429]
    assert answers[-1][1]["retry-after"] == "5"


LOCAL = {"127.0.0.1:3000", "localhost:3000", "[::1]:3000"}


@pytest.mark.parametrize(
    ("settings", "public", "hosts"),
    [
        ({}, "http://127.0.0.1:3000", LOCAL),
        ({"web_host": "0.0.0.0"}, "http://127.0.0.1:3000", LOCAL),
        ({"public_url": "https://A.example"}, "https://a.example", {"a.example", *LOCAL}),
    ],
)
def test_the_hosts_that_are_ours(settings: dict[str, str], public: str, hosts: set[str], tmp_path: Path) -> None:
    address = Address.of(Settings(home=tmp_path, **settings))  # type: ignore[arg-type]
    assert (address.public, address.hosts) == (public, hosts)


@pytest.mark.parametrize(
    ("language", "said"), [("it", "Richiesta rifiutata"), ("en", "Request refused"), ("de", "Anfrage abgelehnt")]
)
@pytest.mark.parametrize(
    ("request_", "status", "todo"),
    [
        (THERE + "Origin: https://evil.example\n", 403, {"it": "preferiti", "en": "bookmarks", "de": "Lesezeichen"}),
        ("PUT /entra HTTP/1.1\nHost: HOST\nContent-Length: 0\n", 405, {"it": "usa", "en": "use", "de": "Verwenden"}),
        (HERE + "Content-Length: 99999999\n", 413, {"it": "accorcia", "en": "shorten", "de": "kürzen"}),
        ("GET /entra HTTP/1.1\nHost: evil.example\n", 421, {"it": "usa", "en": "use", "de": "verwenden"}),
    ],
)
def test_a_refusal_is_a_page_in_the_readers_language_that_says_what_to_do(
    door: Served, request_: str, status: int, todo: dict[str, str], language: str, said: str
) -> None:
    asked = f"{request_}Accept: text/html\nAccept-Language: {language}"
    answered, headers, body = raw(door, asked)
    page = body.decode()
    assert answered == status
    assert headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert f'<html lang="{language}">' in page
    assert said in page
    assert todo[language].lower() in page.lower()
    answered, headers, body = raw(door, f"{request_}Accept: application/json\nAccept-Language: {language}")
    assert (answered, headers["content-type"].split(";")[0]) == (status, "text/plain")
    assert "<" not in body.decode()
