"""The link in a letter: signed, good for one thing, pressed by mail programs from nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import links, service
from polydesk_dagster.clinic.messages.links import Reach
from polydesk_dagster.providers.smtp import MailRelay
from tests import world
from tests.messages.relay import Relay
from tests.messages.world import AS_OF, booked, states
from tests.waiting import PATIENCE
from tests.web.world import served


@pytest.fixture
def path(engine: sa.Engine) -> str:
    """The link of a letter that has gone out, as a path of the door."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        patient = world.patient(connection, mobile=None, email="Anna@Example.org")
        booked(connection, practice, "12:00", patient_id=patient)
        booked(connection, practice, "12:00", day="2026-03-12", patient_id=patient)
    relay = Relay()
    with relay.listening() as url:
        carriers = {"email": MailRelay(url, "no-reply@clinica.example", patience=PATIENCE)}
        service.send(engine, AS_OF, "reminder", carriers, reach=Reach("https://polydesk.example"))  # type: ignore[arg-type]
    raw = b"".join(relay.got[0].splitlines(keepends=True)).decode()
    found = re.search(r"List-Unsubscribe: <(https://polydesk\.example/basta/[\w-]+)>, <mailto:", raw)
    assert found
    assert "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in raw
    return urlsplit(found[1]).path


def blocked(engine: sa.Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        return [(row[0], row[1]) for row in connection.execute(sa.text("SELECT address, cause FROM message_block"))]


def test_looking_shows_and_pressing_acts(engine: sa.Engine, path: str, tmp_path: Path) -> None:
    with served(engine, tmp_path) as door:
        shown = httpx.get(door.origin + path, trust_env=False)
        assert (shown.status_code, blocked(engine)) == (200, [])
        assert "A…@E…" in shown.text
        assert "nna" not in shown.text
        pressed = httpx.post(door.origin + path, data={"List-Unsubscribe": "One-Click"}, trust_env=False)
        assert (pressed.status_code, blocked(engine)) == (200, [("anna@example.org", "stop")])
        assert httpx.post(door.origin + path, trust_env=False).status_code == 200
        assert httpx.post(door.origin + "/lingua", trust_env=False).status_code == 403
    relay = Relay()
    with relay.listening() as url:
        carriers = {"email": MailRelay(url, "no-reply@clinica.example", patience=PATIENCE)}
        service.send(engine, world.rome("2026-03-11", "10:00"), "reminder", carriers)  # type: ignore[arg-type]
    assert (relay.got, states(engine)[-1]) == ([], ("withheld", "opted_out"))


def test_a_link_that_was_never_signed_does_nothing(engine: sa.Engine, path: str, tmp_path: Path) -> None:
    with engine.connect() as connection:
        for forged in (
            path.rpartition("/")[2][::-1],
            links.token(b"x" * 32, 1, links.STOP),
            links.token(links.secret(connection), 1, links.SHOW),
            "a",
            "à",
            "",
        ):
            assert links.look(connection, forged) is None
    with served(engine, tmp_path) as door:
        assert httpx.post(door.origin + links.PATH + "nessuno", trust_env=False).status_code == 404
    assert blocked(engine) == []


def test_without_tls_there_is_no_such_link(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert links.ways(connection, Reach()).stop is None
        assert links.ways(connection, Reach("http://127.0.0.1:3000")).visit is None
