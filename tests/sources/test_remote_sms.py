from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from polydesk_dagster.answers import UncertainError
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.remote import Remote
from tests.sources.test_remote_policy import FAST, IMPATIENT
from tests.waiting import PATIENCE

BODY = {"to": "+393331234567", "from": "Polydesk", "text": "Promemoria"}


@pytest.fixture
def sms() -> Iterator[tuple[SmsSimulator, Remote]]:
    simulator = SmsSimulator()
    with in_thread(simulator) as url, Remote("SMS", url, DEMO_TOKEN, FAST) as client:
        yield simulator, client


def send(client: Remote, key: str, **change: str) -> dict[str, object]:
    body: dict[str, object] = client.post("/messages", BODY | change, headers={"Idempotency-Key": key}).body
    return body


def test_a_key_sends_once(sms: tuple[SmsSimulator, Remote]) -> None:
    simulator, client = sms
    assert send(client, "a")["id"] == send(client, "a")["id"]
    assert [(message.to, message.times) for message in simulator.sent] == [(BODY["to"], 2)]
    with pytest.raises(PermanentError, match="409"):
        send(client, "a", text="altro")
    assert client.get("/messages", {"idempotency_key": "a"}).body["status"] == "delivered"
    assert client.get("/messages", {"idempotency_key": "b"}, expected=frozenset({404})).status == 404


def test_numbers_that_end_badly(sms: tuple[SmsSimulator, Remote]) -> None:
    simulator, client = sms
    with pytest.raises(PermanentError, match="400"):
        send(client, "a", to="+393331230000")
    assert send(client, "b", to="+393331230001")["status"] == "undeliverable"
    with pytest.raises(PermanentError, match="400"):
        send(client, "c", to="333 1234567")
    with pytest.raises(PermanentError, match="400"):
        client.post("/messages", BODY, headers={})
    assert len(simulator.sent) == 1


def test_accepted_and_silent_differs_from_deaf_only_in_the_look_up(sms: tuple[SmsSimulator, Remote]) -> None:
    simulator, client = sms
    with Remote("SMS", client.url, DEMO_TOKEN, IMPATIENT) as impatient:
        simulator.fail("timeout")
        with pytest.raises(UncertainError):
            send(impatient, "accepted")
        simulator.fail("deaf")
        with pytest.raises(UncertainError):
            send(impatient, "lost")
    assert client.get("/messages", {"idempotency_key": "accepted"}).body["status"] == "delivered"
    assert client.get("/messages", {"idempotency_key": "lost"}, expected=frozenset({404})).status == 404


def test_as_a_process_it_keeps_its_keys_across_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polydesk_dagster.demo.simulators.sms", "--port", "0", "--state", str(tmp_path)]
    ids = set()
    for last in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with Remote("SMS", url, DEMO_TOKEN, FAST) as client:
                ids.add(send(client, "a")["id"])
            sent = httpx.get(url.replace("/api/v1", "/admin/messages"), trust_env=False).json()
        finally:
            process.send_signal(last)
            process.communicate(timeout=PATIENCE)
    assert len(ids) == len(sent) == 1
