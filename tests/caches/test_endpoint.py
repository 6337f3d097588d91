from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.runtime.cache_endpoint import create_app
from tests.statistics import world
from tests.waiting import PATIENCE, until

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)


@pytest.fixture
def client(engine: sa.Engine, database: URL) -> Iterator[httpx.Client]:
    """A client of the endpoint on a real socket."""
    with engine.begin() as connection:
        world.chain(connection)
    caches.refresh(engine, AS_OF)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(database), log_level="error", server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=PATIENCE) as client:
        _until(lambda: client.get("/health").status_code == 200)
        yield client
    server.should_exit = True
    thread.join()
    listener.close()


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
