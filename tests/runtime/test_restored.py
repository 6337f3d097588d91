"""A database that is brought back from a copy is noticed, sends nothing until a person has looked, and even then
nothing goes out twice."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.assets.notifications import ASSETS
from polydesk_dagster.clinic.messages import service
from polydesk_dagster.database import programs
from polydesk_dagster.database.engine import create_engine, plain_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.schedules.standing import why_standing
from polydesk_dagster.settings import load
from tests import world
from tests.messages.relay import Relay
from tests.messages.test_assets import Frozen
from tests.messages.world import AS_OF, booked, gateway
from tests.postgres import dropped

WHY = "confrontati gli SMS con il gestore"
LATER = AS_OF + timedelta(minutes=5)
REMINDERS = [asset for asset in ASSETS if asset.key.path[-1] == "appointment_reminders"]


@contextmanager
def restored_from(dump: Path, server: URL) -> Iterator[sa.Engine]:
    """A dump as a database of its own."""
    url = server.set(drivername="postgresql+psycopg", database=f"restored_{uuid.uuid4().hex[:8]}")
    create_database(url)
    with dropped(url):
        _program("pg_restore", "--no-owner", "--exit-on-error", "-d", plain_url(url), str(dump))
        engine = create_engine(url)
        yield engine
        engine.dispose()


def _program(name: str, *words: str) -> None:
    subprocess.run([str(programs.folder() / name), *words], check=True, capture_output=True)


@pytest.mark.slow
def test_a_restored_dump_holds_all_sending_and_then_sends_nothing_twice(
    engine: sa.Engine, server: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for at in ("09:00", "10:00", "11:00"):
            booked(connection, practice, at)
        by_mail = world.patient(connection, mobile=None, email="anna@example.org")
        booked(connection, practice, "12:00", patient_id=by_mail)
    simulator, relay = SmsSimulator(), Relay()
    with in_thread(simulator) as sms, relay.listening() as smtp:
        given = {"HOME": str(tmp_path), "SMS_URL": sms, "SMS_TOKEN": DEMO_TOKEN, "SMS_SENDER": "Polydesk"}
        given |= {"SMTP_URL": f"{smtp}&key=Resend-Idempotency-Key", "MAIL_FROM": "no-reply@clinica.example"}
        for name, value in given.items():
            monkeypatch.setenv(f"POLYDESK_{name}", value)
        assert restored.go_out(engine, tmp_path, AS_OF) is None
        _program("pg_dump", "-Fc", "-f", str(tmp_path / "dump"), plain_url(engine.url))
        assert _send(engine, monkeypatch)
        assert len(simulator.sent) == 3
        with restored_from(tmp_path / "dump", server) as old:
            assert not _send(old, monkeypatch)
            with old.connect() as connection:
                standing = why_standing(connection, load(), "send_reminders", LATER)
                assert standing is not None
                assert "copia ripristinata (i dati stanno in un altro database di prima)" in standing
                assert why_standing(connection, load(), "generate_slots", LATER) != standing
            with pytest.raises(PermanentError, match="reason_missing"):
                restored.accept(old, tmp_path, actor="tests", reason="", as_of=LATER)
            assert restored.accept(old, tmp_path, actor="tests", reason=WHY, as_of=LATER)
            assert not restored.accept(old, tmp_path, actor="tests", reason=WHY, as_of=LATER)
            assert _send(old, monkeypatch)
            with old.connect() as connection:
                states = connection.scalars(sa.text("SELECT state FROM message")).all()
                said = connection.scalar(sa.text("SELECT actor FROM audit WHERE action = 'accept_restore'"))
            assert (list(states), said) == (["sent"] * 4, "tests")
        assert len(simulator.sent) == 3
    first, again = (message_from_bytes(text) for text in relay.got)
    assert (again["Message-ID"], again["To"]) == (first["Message-ID"], "anna@example.org")
    assert first["Message-ID"] == f"<{first['Resend-Idempotency-Key']}@clinica.example>"


def _send(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the service of the reminders succeeds on a database, as Dagster runs it."""
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(engine.url))
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            REMINDERS, resources={"polydesk": Frozen()}, instance=instance, raise_on_error=False
        ).success


def test_files_that_are_put_back_are_behind_what_the_home_has_counted(engine: sa.Engine, tmp_path: Path) -> None:
    for _ in range(3):
        assert restored.go_out(engine, tmp_path, AS_OF) is None
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE installation SET outings = 2"))
    held = restored.go_out(engine, tmp_path, AS_OF)
    assert held is not None
    assert held.values["why"] == restored.Term("restored", "behind")
    assert restored.go_out(engine, tmp_path / "elsewhere", LATER) == held, "it is held for everybody"
    assert restored.accept(engine, tmp_path, actor="tests", reason=WHY, as_of=LATER)
    assert restored.go_out(engine, tmp_path, LATER) is None


def test_a_copy_from_before_there_were_names_goes_on_under_the_home_s(engine: sa.Engine, tmp_path: Path) -> None:
    name = str(uuid.uuid4())
    restored.Known(name, 7, AS_OF.isoformat()).keep(tmp_path)
    with engine.begin() as connection:
        assert restored.noticed_restore(connection, tmp_path, AS_OF) is None, "there is nothing in it"
        world.clinic(connection)
        held = restored.noticed_restore(connection, tmp_path, AS_OF)
        assert held is not None
        assert held.values["why"] == restored.Term("restored", "another")
        assert str(connection.scalar(sa.text("SELECT id FROM installation"))) == name


def test_half_a_file_of_the_home_stops_nobody(engine: sa.Engine, tmp_path: Path) -> None:
    (tmp_path / restored.FILE).write_text('{"id": "a')
    assert restored.go_out(engine, tmp_path, AS_OF) is None
    assert restored.Known.of(tmp_path) is not None


def test_a_message_has_the_same_key_whenever_it_is_written(engine: sa.Engine) -> None:
    """Taken back to planned as a copy would, with another text by now: the gateway has it, and it went out."""
    with engine.begin() as connection:
        booked(connection, world.practice(connection))
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        with engine.begin() as connection:
            key = connection.scalar(sa.text("SELECT idempotency_key FROM message"))
            connection.execute(
                sa.text("""UPDATE message SET state = 'planned', idempotency_key = NULL, sent_at = NULL, subject = NULL,
                           body = NULL, attempts = 0, ask_after = NULL""")
            )
            connection.execute(sa.text("UPDATE clinic SET phone = '+39 051 999'"))
        service.send(engine, LATER, "reminder", providers)
        with engine.connect() as connection:
            row = connection.execute(sa.text("SELECT state, idempotency_key FROM message")).one()
        assert tuple(row) == ("sent", key)
        assert len(simulator.sent) == 1


def test_who_goes_out_at_the_same_moment_makes_no_copy_of_what_is_here(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = restored.Known.of
    others = iter([True])

    def meanwhile(home: Path) -> restored.Known | None:
        if next(others, False):
            assert restored.go_out(engine, tmp_path, AS_OF) is None
        return read(home)

    assert restored.go_out(engine, tmp_path, AS_OF) is None
    monkeypatch.setattr(restored.Known, "of", meanwhile)
    assert restored.go_out(engine, tmp_path, LATER) is None
    known = read(tmp_path)
    assert known is not None
    assert known.outings == 3


def test_a_home_that_takes_no_file_any_more_keeps_nobody_in(engine: sa.Engine, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.touch()  # nothing can be made under it, as on a disk that is full
    for _ in range(2):
        assert restored.go_out(engine, home, AS_OF) is None
    home.unlink()
    assert restored.go_out(engine, home, AS_OF) is None
    assert restored.Known.of(home) == restored.Known(_installation(engine), 3, AS_OF.isoformat())


def _installation(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT id FROM installation")))
