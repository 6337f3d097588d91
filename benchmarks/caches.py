"""Refreshing unchanged caches beside building them all; the endpoint's 304 beside a bare Starlette route."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import URL

from benchmarks.harness import Bench, Figure, cpu, peak_mb
from polydesk_dagster.clinic.caches import documents as caches

AS_OF = datetime(2026, 1, 12, 10, 0, tzinfo=UTC)
CLINICS = 100
SPECIALISTS = 200
CONNECTIONS = 16
SECONDS = 3.0
ROUNDS = 3

Server = tuple[tuple[str, int], psutil.Process]
"""Where it listens, and its process."""

CHAIN = """
    INSERT INTO clinic (id, code, name, region, municipality_code)
    SELECT n, 'C' || n, 'Clinica ' || n, 'Lazio', 'H501' FROM generate_series(1, :clinics) n;
    INSERT INTO location (clinic_id, id, name)
    SELECT c.id, c.id * 10 + n, 'Sede ' || n FROM clinic c, generate_series(1, 4) n;
    INSERT INTO service (id, clinic_id, code, name, duration_minutes)
    SELECT c.id * 100 + n, c.id, 'S' || n, 'Visita ' || n, 20 FROM clinic c, generate_series(0, 29) n;
    INSERT INTO specialist (id, clinic_id, title, last_name, first_name, specialties)
    SELECT c.id * 1000 + n, c.id, 'Dott.ssa', 'De Cognome' || md5(CAST(n AS text)), 'Nome ' || n, '{Cardiologia}'
    FROM clinic c, generate_series(1, :specialists) n;
    INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, slot_minutes, online)
    SELECT id, clinic_id, clinic_id * 10 + 1 + id % 4, id, last_name, 20, id % 2 = 0 FROM specialist;
    INSERT INTO agenda_service (clinic_id, agenda_id, service_id)
    SELECT clinic_id, id, clinic_id * 100 + (id + n) % 30 FROM agenda, generate_series(1, 3) n
"""


# All that the documents tell of specialists and places, written by one statement each.
PLAIN = """
    CREATE TABLE plain_specialists AS
    SELECT s.clinic_id, json_agg(json_build_object(
               'id', s.id, 'title', s.title, 'last_name', s.last_name, 'first_name', s.first_name,
               'specialties', s.specialties,
               'agendas', (SELECT json_agg(json_build_object(
                                      'id', a.id, 'location', a.location_id, 'online', a.online,
                                      'services', (SELECT json_agg(v.code ORDER BY v.code) FROM agenda_service x
                                                   JOIN service v ON v.id = x.service_id WHERE x.agenda_id = a.id)))
                           FROM agenda a WHERE a.specialist_id = s.id)) ORDER BY s.last_name) AS document
    FROM specialist s GROUP BY s.clinic_id;
    CREATE TABLE plain_locations AS
    SELECT clinic_id, json_agg(json_build_object('id', id, 'name', name) ORDER BY name) AS document
    FROM location GROUP BY clinic_id
"""


def _plainly(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for statement in PLAIN.split(";"):
            connection.execute(sa.text(statement))


def figures(bench: Bench) -> Iterator[Figure]:
    """A refresh with nothing to do, one after one specialist changed; requests per second of the endpoint."""
    with bench.engine() as engine:
        sizes = {"clinics": bench.size(CLINICS), "specialists": SPECIALISTS}
        with engine.begin() as connection:
            for statement in CHAIN.split(";"):
                connection.execute(sa.text(statement), sizes)
            connection.execute(sa.text("ANALYZE"))
        caches.refresh(engine, AS_OF)
        whole = min(cpu(engine, lambda: caches.clear(engine, AS_OF)) for _ in range(ROUNDS))
        nothing = min(cpu(engine, lambda: caches.refresh(engine, AS_OF)) for _ in range(ROUNDS))
        plain = cpu(engine, lambda: _plainly(engine))
        yield Figure("caches", "building all, beside one SELECT a kind", whole, plain, "CPU s", 3.0, peak_mb=peak_mb())
        yield Figure("caches", "nothing changed, beside building all", nothing, whole, "CPU s", 0.1, peak_mb=peak_mb())
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE specialist SET first_name = 'Altro' WHERE id = 1001"))
        one = cpu(engine, lambda: caches.refresh(engine, AS_OF))
        yield Figure(
            "caches", "one specialist changed, beside building all", one, whole, "CPU s", 0.1, peak_mb=peak_mb()
        )
        yield from _endpoint(engine)


def _endpoint(engine: sa.Engine) -> Iterator[Figure]:
    with engine.connect() as connection:
        etag = connection.scalar(
            sa.text("""
                SELECT etag FROM cache_current JOIN cache_version USING (clinic_id, kind, version)
                WHERE clinic_id = 1 AND kind = 'specialists'""")
        )
    not_modified = f'GET /clinics/C1/specialists HTTP/1.1\r\nHost: x\r\nIf-None-Match: W/"{etag}"\r\n\r\n'.encode()
    constant = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    url = engine.url
    with (
        _serving(_serve_caches, url, not_modified, b" 304 ") as ours,
        _serving(_serve_constant, url, constant, b" 200 ") as bare,
    ):
        pairs = [(_rate(ours, not_modified, b"\r\n\r\n"), _rate(bare, constant, b"ok")) for _ in range(ROUNDS)]
    fastest, reference = max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
    yield Figure("caches", "304 beside a bare route", fastest, reference, "requests/CPU s", 0.7, True, peak_mb())


def _serve_caches(url: URL, listener: socket.socket) -> None:
    from pathlib import Path

    from polydesk_dagster.front.application import application
    from polydesk_dagster.knowledge.library import Library

    _serve(application(url, url, lambda: Library(Path(), ""), "http://127.0.0.1"), listener)


def _serve_constant(_: URL, listener: socket.socket) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def constant(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    _serve(Starlette(routes=[Route("/", constant)]), listener)


def _serve(app: object, listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(app, access_log=False, log_level="error", server_header=False)  # pyrefly: ignore[bad-argument-type]
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _serving(serve: Callable[[URL, socket.socket], None], url: URL, request: bytes, status: bytes) -> Iterator[Server]:
    """A process of its own that serves; yields where and which once it answers ``request`` with ``status``."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvicorn's own has it, and who is accepted on it
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(url, listener))
    process.start()
    address = listener.getsockname()
    listener.close()  # who connects to a listener that nobody accepts from waits, and is not told that the server ended
    try:
        while not _answers(address, request, status):
            if not process.is_alive():
                raise RuntimeError(f"the server ended with {process.exitcode}")
            time.sleep(0.1)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


def _answers(address: tuple[str, int], request: bytes, status: bytes) -> bool:
    """Whether the server answers with ``status``; the client below then only counts answers."""
    try:
        with socket.create_connection(address, timeout=60) as client:
            client.sendall(request)
            return status in client.recv(4096)
    except OSError:
        return False


def _rate(server: Server, request: bytes, end: bytes) -> float:
    """Answers, each with this ``end``, per second of the server's processor, over some kept connections, one request at
    a time on each."""
    import selectors

    address, process = server
    with selectors.DefaultSelector() as selector:
        clients = [socket.create_connection(address) for _ in range(CONNECTIONS)]
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(client, selectors.EVENT_READ)
            client.sendall(request)
        answers, start, before = 0, time.perf_counter(), _busy(process)
        while time.perf_counter() - start < SECONDS:
            for key, _ in selector.select(timeout=1):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                said = connection.recv(65536)
                if not said:
                    raise ConnectionError("the server has closed a connection that was in use")
                if said.endswith(end):
                    answers += 1
                    connection.sendall(request)
        used = _busy(process) - before
        for client in clients:
            client.close()
    return answers / used


def _busy(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)
