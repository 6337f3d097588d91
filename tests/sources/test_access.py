"""What a clinic's integration may name, and what an answer may be packed with: a row and a reply are data."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
import sqlalchemy as sa
import zstandard

from polydesk_dagster.errors import ConfigurationError, PermanentError, TransientError
from polydesk_dagster.remote import Policy, Remote
from polydesk_dagster.sources.access import check_address, check_token
from polydesk_dagster.wire import clean
from tests import world


@pytest.mark.parametrize(
    "name",
    ["POLYDESK_SMTP_URL", "PATH", "POLYDESK_STUDIOLAB_TOKEN_", "POLYDESK_STUDIOLAB_TOKEN_a", "studiolab", ""],
)
def test_no_other_secret_of_the_house_can_be_named(name: str, connection: sa.Connection) -> None:
    with pytest.raises(ConfigurationError, match="token_name"):
        check_token(name)
    with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
        world.integration(connection, world.clinic(connection), "https://s.example", token_env=name)
    check_token("POLYDESK_STUDIOLAB_TOKEN_BO01")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://studiolab.example/api/v1", "not_https"),
        ("ftp://studiolab.example", "not_https"),
        ("file:///etc/passwd", "no_host"),
        ("https://user:secret@studiolab.example", "userinfo"),
        ("https://studiolab.example/api?to=1", "query"),
        ("https://studiolab.example/api#x", "query"),
        ("https://169.254.169.254/latest", "forbidden"),
        ("http://[fe80::1%25eth0]/", "forbidden"),
        ("https://[::ffff:169.254.169.254]/", "forbidden"),
        ("https://metadata.google.internal/", "forbidden"),
        ("https://2852039166/", "forbidden"),
        ("https://0.0.0.0/", "forbidden"),
        ("https://stu dio.example/", "no_host"),
        ("https://studiolab.example:port/", "no_host"),
    ],
)
def test_an_address_that_is_no_source(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'term': '{why}'"):
        check_address(url)


@pytest.mark.parametrize("url", ["https://studiolab.example/api/v1", "http://127.0.0.1:8081", "http://localhost:1"])
def test_an_address_out_there_or_on_this_machine_is_one(url: str) -> None:
    check_address(url)


class Packed(BaseHTTPRequestHandler):
    """Answers each path with the body and the encodings that it names."""

    bodies: ClassVar[dict[str, tuple[str, bytes]]] = {}

    def do_GET(self) -> None:
        encoding, body = self.bodies[self.path]
        self.send_response(200)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _zstd(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = zstandard.ZstdCompressor(level=19).compress(data)
    return data


Packed.bodies = {
    "/api/v1/once": ("gzip", gzip.compress(b'{"a": 1}')),
    "/api/v1/members": ("gzip", gzip.compress(b'{"a": ') + gzip.compress(b"1}")),
    "/api/v1/zstd": ("zstd", _zstd(b'{"a": 1}')),
    "/api/v1/stacked": ("zstd, zstd, zstd", _zstd(b" " * 1_000_000, 3)),
    "/api/v1/other": ("br", b"?"),
    "/api/v1/bomb": ("zstd", _zstd(b" " * 50_000_000)),
    "/api/v1/gzip-bomb": ("gzip", gzip.compress(b" " * 50_000_000)),
    "/api/v1/cut": ("gzip", gzip.compress(b'{"a": 1}')[:-9]),
    "/api/v1/no-gzip": ("gzip", b'{"a": 1}'),
}


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Packed)
    Thread(target=server.serve_forever, daemon=True).start()
    policy = Policy(attempts=1, largest_body=1_000_000)
    with Remote("Prova", f"http://127.0.0.1:{server.server_port}", "t", policy) as client:
        yield client
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/once", "/members", "/zstd"])
def test_one_encoding_is_unpacked(remote: Remote, path: str) -> None:
    assert remote.get(path).body == {"a": 1}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/stacked", "remote_encodings"),
        ("/other", "remote_encodings"),
        ("/bomb", "remote_too_large"),
        ("/gzip-bomb", "remote_too_large"),
    ],
)
def test_more_than_one_encoding_and_more_than_the_bound_are_refused(remote: Remote, path: str, code: str) -> None:
    with pytest.raises(PermanentError, match=code):
        remote.get(path)


@pytest.mark.parametrize("path", ["/cut", "/no-gzip"])
def test_what_cannot_be_unpacked_is_no_answer(remote: Remote, path: str) -> None:
    with pytest.raises(TransientError, match="remote_truncated"):
        remote.get(path)


def test_what_steers_a_screen_is_dropped_at_the_wire() -> None:
    assert clean("Visita\x1b[31m\u202e gnp\u2066\x07\u200b") == "Visita[31m gnp"
    assert clean("riga\nuno\ttab") == "riga\nuno\ttab"
    assert clean("Ã\x80") == "Ã\ufffd", "what was read in the wrong encoding still shows"
