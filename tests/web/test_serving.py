"""The door is served, and ends when it is told to."""

from __future__ import annotations

import signal
import threading

import httpx
import uvicorn
from starlette.responses import PlainTextResponse

from polydesk_dagster.web.serving import Server
from tests.waiting import PATIENCE, until
from tests.web.world import free_port


def test_it_answers_with_a_date_and_a_signal_ends_it() -> None:
    port = free_port()
    server = Server(uvicorn.Config(PlainTextResponse("here"), port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    answer = httpx.get(f"http://127.0.0.1:{port}/")
    assert (answer.text, "date" in answer.headers) == ("here", True)
    server.handle_exit(signal.SIGTERM, None)
    thread.join(PATIENCE)
    assert not thread.is_alive()
