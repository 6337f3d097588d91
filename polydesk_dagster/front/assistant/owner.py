"""The same for whoever owns the home: a socket in it, where a process that has loaded the search answers the command.

Whoever can open the socket owns the home, and so is given what the command would find by itself: everything, or what a
clinic and a role may read.
"""

from __future__ import annotations

import json
import os
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.inert import as_json
from polydesk_dagster.knowledge import searching
from polydesk_dagster.knowledge.library import Library

NAME = "ask"
"""Of the socket, in the folder of the home's sockets."""

_LONGEST = 65_536
"""Bytes of a request."""
_PATIENCE = 10.0
"""Seconds that a request may take to be written."""
_PEER = struct.Struct("3i")
"""Process, account and group of who is at the other end."""


@contextmanager
def answering(path: Path, engine: sa.Engine, library: Callable[[], Library], search: str) -> Iterator[None]:
    """Questions are answered at ``path`` while it is held. Who asks says for which ``search`` (a digest of all that
    decides how a question is answered), and is refused if it is another. Where no socket can be made, nobody answers,
    and the command does it by itself."""

    def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
        if asked["search"] != search:
            return {"answer": None}
        as_of = datetime.fromisoformat(asked["as_of"]) if asked["as_of"] else datetime.now(UTC)
        terms = {name: asked[name] for name in ("clinic", "role", "limit")}
        return {"answer": searching.ask(engine, as_of, library(), asked["question"], **terms).as_dict()}

    try:
        path.unlink(missing_ok=True)
        server = _Server(str(path), answer)
        path.chmod(0o600)
    except OSError:
        yield
        return
    held, end = socket.socketpair()
    thread = threading.Thread(target=server.serve_until, args=(end,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        held.close()
        thread.join()
        end.close()
        server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    timeout = 0

    def __init__(self, path: str, answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.answer = answer
        super().__init__(path, _Asked)

    def serve_until(self, end: socket.socket) -> None:
        """Until the other side of ``end`` is closed; ``serve_forever`` looks whether it is to end, again and again."""
        while end not in select.select([self.socket, end], [], [])[0]:
            self.handle_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks finds no answer and looks by itself, and so says what is wrong; here it could quote the question."""


class _Asked(socketserver.StreamRequestHandler):
    server: _Server  # pyrefly: ignore[bad-override-mutable-attribute] - whose requests these are
    timeout = _PATIENCE

    def handle(self) -> None:
        _, account, _ = _PEER.unpack(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if account not in {os.geteuid(), 0}:
            return
        line = self.rfile.readline(_LONGEST)
        if line.endswith(b"\n"):
            self.wfile.write(as_json(self.server.answer(json.loads(line))).encode() + b"\n")
