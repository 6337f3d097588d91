"""A server that is frozen is given up, one that takes its time never: a real server, stopped by signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import engine as engines
from polydesk_dagster.database import patience, refusals
from polydesk_dagster.database.engine import ask, create_engine, plain_url
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime.dagster_inside import storage
from tests import postgres
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def own() -> Iterator[URL]:
    """A server that may be frozen."""
    with postgres.started() as url:
        yield url.set(database="postgres")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "QUIET", 0.2)
    monkeypatch.setattr(patience, "RUN", 0.4)


@contextmanager
def frozen(url: URL) -> Iterator[Callable[[], None]]:
    """None of its processes does anything, until the end or the call; the kernel goes on listening for them."""
    first = psutil.Process(int((Path(str(url.query["host"])) / "postmaster.pid").read_text().split()[0]))
    stopped = [first, *first.children(recursive=True)]

    def go_on() -> None:
        for each in stopped:
            each.send_signal(signal.SIGCONT)

    for each in stopped:
        each.send_signal(signal.SIGSTOP)
    try:
        yield go_on
    finally:
        go_on()


@contextmanager
def given_up(url: URL) -> Iterator[sa.Connection]:
    """A connection to a server that is frozen, given up by what is done with it; who comes later is answered."""
    engine = create_engine(url, pool_size=1, waits=0.4)
    try:
        connection = engine.connect()
        connection.execute(sa.text("CREATE TEMPORARY TABLE many (word text)"))
        with frozen(url):
            with pytest.raises((sa.exc.OperationalError, psycopg.OperationalError)) as refused:
                yield connection
            assert _told(refused.value, url) == "database_unreachable"
            connection.invalidate()
        with engine.connect() as another:
            assert another.scalar(sa.text("SELECT 1")) == 1
    finally:
        engine.dispose()


def _told(error: BaseException, url: URL) -> str | None:
    """By whoever works with the database."""
    with pytest.raises(PermanentError) as told, refusals.told(url):
        raise error
    return told.value.reason.code


def test_a_statement_is_not_waited_for(own: URL) -> None:
    with given_up(own) as connection:
        connection.execute(sa.text("SELECT 1"))


def test_a_statement_of_the_driver_is_not_waited_for(own: URL) -> None:
    with given_up(own) as connection:
        ask(connection, "SELECT %s", [1])


def test_the_end_of_a_transaction_is_not_waited_for(own: URL) -> None:
    with given_up(own) as connection:
        connection.commit()


def test_rows_that_nobody_takes_are_not_waited_for(own: URL) -> None:
    """More of them than any buffer on the way."""
    with given_up(own) as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY many FROM STDIN") as copying:
            for _ in range(100_000):
                copying.write_row(["x" * 100])


def test_a_connection_that_rests_in_the_pool_is_not_waited_for(own: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is another asked for, which would have its own time."""
    monkeypatch.setattr(engines, "_REST", 0)
    engine = create_engine(own, pool_size=1, waits=0.4)
    connected = []
    sa.event.listen(engine, "connect", lambda *_: connected.append(1))
    engine.connect().close()
    with frozen(own), pytest.raises(sa.exc.OperationalError) as refused:
        engine.connect()
    assert _told(refused.value, own) == "database_unreachable"
    assert refusals.of_the_server(refused.value)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    assert len(connected) == 2
    engine.dispose()


def test_who_only_takes_its_time_is_waited_for(own: URL) -> None:
    """However often it has to be asked."""
    engine = create_engine(own, pool_size=1, waits=0.4)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1 FROM pg_sleep(1.5)")) == 1
        assert connection.scalar(sa.text("SELECT count(pg_sleep(0.001)) FROM generate_series(1, 1000)")) == 1000
    engine.dispose()


def test_who_lets_nobody_in_any_more_still_answers(own: URL) -> None:
    """It is full, and says so."""
    postgres.do(own, "CREATE ROLE alone LOGIN CONNECTION LIMIT 1")
    engine = create_engine(own.set(username="alone"), pool_size=1, waits=0.4)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1 FROM pg_sleep(1)")) == 1
    engine.dispose()


def test_who_is_moved_to_another_machine_meanwhile_is_waited_for(own: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has time: once the server goes on, so does the statement."""
    engine = create_engine(own, pool_size=1, waits=PATIENCE)
    asked, look = [], patience.asked
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        with frozen(own) as go_on:

            def twice(*of: Any) -> tuple[bool, str | None]:
                asked.append(look(*of))
                if len(asked) == 2:
                    go_on()
                return asked[-1]

            monkeypatch.setattr(patience, "asked", twice)
            assert connection.scalar(sa.text("SELECT 1 FROM pg_sleep(0.1)")) == 1
    assert asked[:2] == [(False, None)] * 2
    engine.dispose()


def test_who_does_something_else_meanwhile_gives_it_up_too(own: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PERSON", 0.4)

    async def asks() -> None:
        async with await patience.AsyncConnection.connect(plain_url(own), autocommit=True) as connection:
            slow = await connection.execute("SELECT 1 FROM pg_sleep(0.5)")
            assert await slow.fetchone() == (1,)
            with frozen(own):
                await connection.execute("SELECT 1")

    with pytest.raises(psycopg.errors.ConnectionTimeout):
        asyncio.run(asks())


def test_what_dagster_keeps_is_not_waited_for_either(own: URL) -> None:
    pool = storage._pool(own.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False))
    with pool.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1 FROM pg_sleep(0.5)")) == 1
        with frozen(own), pytest.raises(sa.exc.OperationalError) as refused:
            connection.execute(sa.text("SELECT 1"))
        assert refused.value.connection_invalidated
        assert "mute" in str(refused.value)
    with pool.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    pool.dispose()
