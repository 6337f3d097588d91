"""Somebody outside who takes alerts and waits for signs of life."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Outside(ThreadingHTTPServer):
    """Somebody who takes alerts and waits for signs of life; the next ``moods`` are answered first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.moods: list[int] = []
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def taken(self) -> list[Any]:
        """The bodies posted, those that were refused too."""
        return [body for method, _, _, body in self.asked if method == "POST"]


class Handler(BaseHTTPRequestHandler):
    server: Outside

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = json.loads(body) if body else None
        self.server.asked.append((self.command, self.path, dict(self.headers), told))
        mood = self.server.moods.pop(0) if self.server.moods else 204
        if not mood:  # hangs up without a word
            self.close_connection = True
            return
        self.send_response(mood)
        if mood == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def outside() -> Iterator[Outside]:
    with Outside() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
