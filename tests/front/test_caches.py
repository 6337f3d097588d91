from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.caches import documents as caches
from tests.front.desk import programs
from tests.statistics import world
from tests.waiting import PATIENCE, until
from tests.web.test_guard import raw
from tests.web.world import Served, served

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)


@pytest.fixture
def front(engine: sa.Engine, tmp_path: Path) -> Iterator[Served]:
    """The door with the front in it, over a chain whose caches are made."""
    with engine.begin() as connection:
        world.chain(connection)
    caches.refresh(engine, AS_OF)
    with served(engine, tmp_path, front=programs(engine.url, tmp_path)) as door:
        yield door


@pytest.fixture
def client(front: Served) -> Iterator[httpx.Client]:
    """A program that asks the front."""
    with httpx.Client(base_url=f"{front.origin}/api", timeout=PATIENCE) as client:
        _until(lambda: client.get("/health").status_code == 200)
        yield client


def _until(condition: Callable[[], bool]) -> None:
    def met() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return condition()
        return False

    until(met)


def test_answers_the_document_packed_or_not_and_304_to_who_has_it(client: httpx.Client) -> None:
    packed = client.get("/clinics/BO01/specialists")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "accept-encoding"
    assert "stale-while-revalidate" in packed.headers["cache-control"]
    plain = client.get("/clinics/BO01/specialists", headers={"accept-encoding": "gzip;q=0"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == packed.json()
    assert plain.json()["clinic"] == "BO01"
    etag = packed.headers["etag"]
    for held in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        answer = client.get("/clinics/BO01/specialists", headers={"if-none-match": held})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get("/clinics/BO01/specialists", headers={"if-none-match": '"other"'}).status_code == 200
    head = client.head("/clinics/BO01/specialists")
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        packed.headers["content-length"],
    )


def test_says_what_it_does_not_have(client: httpx.Client) -> None:
    assert client.get("/clinics/XX99/specialists").status_code == 404
    assert client.get("/clinics/BO01/patients").status_code == 404
    refused = client.post("/clinics/BO01/specialists")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.usefixtures("client")
def test_whoever_asks_the_front_is_nobody_and_keeps_to_the_guards_limits(front: Served) -> None:
    path = "/api/clinics/BO01/specialists"
    requests = {
        f"GET {path} HTTP/1.1\nHost: HOST\nSec-Fetch-Site: cross-site\nSec-Fetch-Mode: cors": 200,
        f"POST {path} HTTP/1.1\nHost: HOST\nOrigin: https://evil.example\nContent-Length: 0": 405,
        f"GET {path} HTTP/1.1\nHost: evil.example": 421,
        f"GET /{path} HTTP/1.1\nHost: HOST\nSec-Fetch-Site: cross-site\nSec-Fetch-Mode: cors": 403,
        f"POST {path}/../../entra HTTP/1.1\nHost: HOST\nOrigin: https://evil.example\nContent-Length: 0": 404,
        f"POST {path} HTTP/1.1\nHost: HOST\nContent-Length: 1000001": 413,
        f"OPTIONS {path} HTTP/1.1\nHost: HOST\nOrigin: https://evil.example": 405,
    }
    for text, status in requests.items():
        got, headers, _ = raw(front, text)
        assert got == status, text
        assert "access-control-allow-origin" not in headers, text
    assert front.signed_in("superuser").get("/api/").status_code == 404, "no page of ours stands there"


def test_follows_switches_and_outlives_the_database_connection(client: httpx.Client, engine: sa.Engine) -> None:
    path = "/clinics/BO01/specialists"
    etag = client.get(path).headers["etag"]
    caches.clear(engine, AS_OF, "BO01")
    _until(lambda: client.get(path).headers["etag"] != etag)
    cleared = client.get(path, headers={"if-none-match": etag})
    assert cleared.status_code == 200
    with engine.begin() as connection:
        ours = "application_name = 'polydesk cache'"
        gone = connection.scalar(sa.text(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {ours}"))
        assert gone
    assert client.get(path).status_code == 200
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE specialist SET first_name = 'Nuova' WHERE id = 1"))
        connection.execute(sa.text("UPDATE clinic SET active = false WHERE id = 3"))
    caches.refresh(engine, AS_OF)
    _until(lambda: b"Nuova" in client.get(path).content)
    assert client.get("/clinics/VUO1/locations").status_code == 404
