"""What the embedded server writes into its log: that it lives and dies, never what is in the records."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import create_engine
from tests.waiting import PATIENCE, until

SECRET = "Segretissimi"

WRONG = (
    f"INSERT INTO person VALUES ('{SECRET}', 'X')",
    f"INSERT INTO person VALUES ('{SECRET}', 'F'), ('{SECRET}', 'F')",
    f"SELECT CAST('{SECRET}' AS date)",
    f"SELECT * FROM person WHERE {SECRET} =",
    f"DO $$ BEGIN RAISE WARNING 'nato {SECRET}'; PERFORM CAST('{SECRET}' AS integer); END $$",
)


@pytest.fixture
def home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="polydesk-log-", dir="/tmp"))
    home.chmod(0o755)
    yield home
    embedded.stop(home, patience=PATIENCE)
    shutil.rmtree(home, ignore_errors=True)


def _started(home: Path) -> sa.Engine:
    return create_engine(make_url(embedded.start(home)).set(drivername="postgresql+psycopg", database="postgres"))


def _until_it_answers(engine: sa.Engine) -> None:
    """It recovers by itself from a session that was killed."""

    def answers() -> bool:
        with contextlib.suppress(sa.exc.OperationalError), engine.connect():
            return True
        return False

    until(answers, "the server does not recover")


@pytest.mark.slow
def test_the_log_tells_of_the_server_and_never_of_a_row(home: Path) -> None:
    engine = _started(home)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE person (name text PRIMARY KEY, sex text CHECK (sex IN ('F', 'M')))"))
    for statement in WRONG:
        with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
            connection.execute(sa.text(statement))
    with engine.connect() as connection:
        os.kill(connection.scalar(sa.text("SELECT pg_backend_pid()")), signal.SIGKILL)
        with pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text(f"SELECT '{SECRET}'"))
    _until_it_answers(engine)
    engine.dispose()
    assert embedded.stop(home, patience=PATIENCE)
    log = (home / "postgres" / "log").read_text()
    for told in ("ready to accept connections", "was terminated by signal 9", "database system is shut down"):
        assert told in log
    for never in (SECRET, "ERROR:", "DETAIL:", "CONTEXT:", "STATEMENT:"):
        assert never not in log


@pytest.mark.slow
def test_a_start_brings_the_settings_of_this_version(home: Path) -> None:
    _started(home).dispose()
    assert embedded.stop(home, patience=PATIENCE)
    (home / "postgres" / "polydesk.conf").write_text("log_min_messages = warning\n")
    engine = _started(home)
    with engine.connect() as connection:
        shown = {name: connection.scalar(sa.text(f"SHOW {name}")) for name in ("log_min_messages", "jit")}
    engine.dispose()
    assert shown == {"log_min_messages": "log", "jit": "off"}
    assert (home / "postgres" / "postgresql.conf").read_text().count("polydesk.conf") == 1
