from __future__ import annotations

import subprocess
import sys
import traceback
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import engine as engines
from polydesk_dagster.database import migrate, refusals
from polydesk_dagster.database.engine import ask, create_engine
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.values import Reason
from tests.waiting import PATIENCE


@pytest.mark.slow
def test_two_processes_migrate_one_empty_database(server: URL) -> None:
    url = server.set(database="twice")
    code = (
        "import sys; from sqlalchemy.engine import make_url; from polydesk_dagster.database import engine, migrate\n"
        "url = make_url(sys.argv[1]); migrate.create_database(url); migrate.migrate(engine.create_engine(url))"
    )
    command = [sys.executable, "-c", code, url.render_as_string(hide_password=False)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
    engine = create_engine(url)
    with engine.connect() as connection:
        assert migrate.current(connection) == migrate.head()
    engine.dispose()


def test_a_database_that_somebody_makes_meanwhile_is_there(server: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    url, known = server.set(database="made_meanwhile"), refusals.known

    def late(*given: Any, **named: Any) -> Reason | None:
        assert migrate._made(url)
        return known(*given, **named)

    monkeypatch.setattr(refusals, "known", late)
    assert not migrate.create_database(url)
    engine = create_engine(server)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("DROP DATABASE made_meanwhile WITH (FORCE)")
    engine.dispose()


def test_the_lock_has_one_holder(engine: sa.Engine) -> None:
    with exclusive(engine, "generate_slots", None) as first:
        assert first
        with exclusive(engine, "generate_slots", None) as second:
            assert not second
        with exclusive(engine, "generate_slots", "BO01") as other:
            assert other
    with exclusive(engine, "generate_slots", None) as again:
        assert again


def _slot(connection: sa.Connection, start: str, end: str, state: str = "free") -> None:
    connection.execute(
        sa.text(
            "INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity, state)"
            " SELECT 1, s, e, s::date, 1, :state"
            " FROM (SELECT CAST(CAST(:start AS text) AS timestamptz) s, CAST(CAST(:end AS text) AS timestamptz) e) t"
        ),
        {"start": start, "end": end, "state": state},
    )


@pytest.fixture
def agenda(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
        INSERT INTO clinic (id, code, name, region, municipality_code)
        VALUES (1, 'BO', 'Bologna', 'Emilia-Romagna', 'A944');
        INSERT INTO location (id, clinic_id, name) VALUES (1, 1, 'Centro');
        INSERT INTO resource (id, clinic_id, location_id, kind, name) VALUES (1, 1, 1, 'room', 'Sala 1');
        INSERT INTO agenda (id, clinic_id, location_id, resource_id, name, slot_minutes)
        VALUES (1, 1, 1, 1, 'Sala 1', 20);
        """)
    )


def test_letters_are_folded_and_ordered_alike_on_every_machine(connection: sa.Connection) -> None:
    found = connection.execute(
        sa.text("SELECT datlocprovider, upper('città'), 'Z' < 'a' FROM pg_database WHERE datname = current_database()")
    )
    assert found.one() == ("b", "CITTÀ", True)


@pytest.mark.usefixtures("agenda")
def test_slots_of_one_agenda_cannot_overlap(connection: sa.Connection) -> None:
    _slot(connection, "2026-03-02 09:00Z", "2026-03-02 09:20Z")
    _slot(connection, "2026-03-02 09:20Z", "2026-03-02 09:40Z")
    _slot(connection, "2026-03-02 09:30Z", "2026-03-02 09:50Z", "retired")
    with pytest.raises(sa.exc.IntegrityError, match="overlap"), connection.begin_nested():
        _slot(connection, "2026-03-02 09:10Z", "2026-03-02 09:15Z")
    with pytest.raises(sa.exc.IntegrityError, match="overlap"), connection.begin_nested():
        connection.execute(sa.text("UPDATE slot SET state = 'free'"))


@pytest.mark.usefixtures("agenda")
def test_a_seat_beyond_capacity_is_impossible(connection: sa.Connection) -> None:
    _slot(connection, "2026-03-02 09:00Z", "2026-03-02 09:20Z")
    slot = connection.scalar(sa.text("SELECT id FROM slot"))
    hold = sa.text("""
        INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, created_at, expires_at, last_activity_at)
        VALUES (1, :slot, sha256(:token), '\\x00', now(), now() + interval '10 minutes', now()) RETURNING id""")
    seat = sa.text("INSERT INTO seat (slot_id, unit, hold_id, held_until) VALUES (:slot, :unit, :hold, now())")
    first = connection.scalar(hold, {"slot": slot, "token": b"a"})
    second = connection.scalar(hold, {"slot": slot, "token": b"b"})
    connection.execute(seat, {"slot": slot, "unit": 1, "hold": first})
    for unit in (1, 2):
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(seat, {"slot": slot, "unit": unit, "hold": second})


def test_an_error_of_the_database_quotes_none_of_the_values_that_it_was_given(connection: sa.Connection) -> None:
    with pytest.raises(sa.exc.DBAPIError) as failed:
        connection.execute(sa.text("SELECT CAST(:n AS integer) / 0, :who"), {"n": 1, "who": "Rossi Mario"})
    assert "Rossi" not in str(failed.value)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT CAST(upper('rossi') AS integer)",
        "INSERT INTO location (clinic_id, name) VALUES (12345, upper('rossi'))",
        "INSERT INTO clinic (name) VALUES (upper('rossi'))",
    ],
)
@pytest.mark.parametrize("driver", [False, True])
def test_an_error_of_the_database_quotes_no_row(connection: sa.Connection, statement: str, driver: bool) -> None:
    """PostgreSQL's own detail quotes whole rows; what is left says which rule was broken."""
    with pytest.raises(sa.exc.DBAPIError) as failed, connection.begin_nested():
        ask(connection, statement, ()) if driver else connection.execute(sa.text(statement))
    told = "".join(traceback.format_exception(failed.value))
    assert "ROSSI" not in told
    assert "12345" not in told.replace(statement, "")
    assert failed.value.orig.diag.sqlstate  # type: ignore[union-attr]


def test_what_the_driver_is_asked_begins_a_transaction_like_all_else(unwritten: sa.Engine) -> None:
    with unwritten.connect() as connection:
        assert ask(connection, "SELECT %s + 1", (1,)) == (2,)
        assert connection.in_transaction()


def test_a_connection_that_is_lost_under_the_driver_is_replaced(unwritten: sa.Engine) -> None:
    with pytest.raises(sa.exc.OperationalError) as failed, unwritten.begin() as connection:
        ask(connection, "SELECT pg_terminate_backend(pg_backend_pid())", ())
    assert failed.value.connection_invalidated
    with unwritten.connect() as connection:
        assert ask(connection, "SELECT 1", ()) == (1,)


@pytest.mark.parametrize("rest", [0.0, PATIENCE], ids=["asked", "just worked"])
def test_connections_that_ended_while_they_rested_are_nobodys_error(
    unwritten: sa.Engine, rest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_REST", rest)
    ending = sa.text("SELECT count(pg_terminate_backend(CAST(pid AS int), 10000)) FROM unnest(:resting) pid")
    with unwritten.connect() as one, unwritten.connect() as other:
        resting = [connection.scalar(sa.text("SELECT pg_backend_pid()")) for connection in (one, other)]
        with unwritten.connect() as third:
            one.close()
            other.close()
            assert third.scalar(ending, {"resting": resting}) == 2
    with unwritten.connect() as one, unwritten.connect() as other, unwritten.connect() as third:
        for connection in (one, other, third):
            assert connection.scalar(sa.text("SELECT 1")) == 1


def test_only_who_rested_is_asked_whether_it_works(unwritten: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(unwritten.dialect, "do_ping", asked.append)
    for rest, pings in ((PATIENCE, 0), (0.0, 2)):
        monkeypatch.setattr(engines, "_REST", rest)
        unwritten.connect().close()
        asked.clear()
        for _ in range(2):
            unwritten.connect().close()
        assert len(asked) == pings
