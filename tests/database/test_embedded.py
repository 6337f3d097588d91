"""The embedded server starts and stops whatever has befallen it: a real one, hit by real signals."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from polydesk_dagster.database import embedded, programs
from tests import postgres
from tests.waiting import PATIENCE, until


@pytest.fixture
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="polydesk-test-", dir=postgres.room()))
    made.chmod(0o755)
    embedded.start(made)
    yield made
    assert embedded.stop(made, patience=PATIENCE)
    shutil.rmtree(made)


def _tell(processes: list[Any], word: signal.Signals) -> None:
    for each in processes:
        each.send_signal(word)


def _answers(home: Path) -> bool:
    with psycopg.connect(f"{embedded.start(home)}&dbname=postgres") as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_is_frozen_is_stopped_and_starts_again(home: Path) -> None:
    server = embedded._processes(home)
    _tell(server, signal.SIGSTOP)
    assert embedded.stop(home)
    assert not embedded.running(home)
    assert embedded._processes(home) == []
    assert _answers(home)


def test_who_survives_a_server_that_was_killed_keeps_no_other_from_starting(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is at work, so does not look up; one is frozen, so never will."""
    monkeypatch.setattr(embedded, "_LAST_WORDS", 0.2)
    url = f"{embedded.url(home)}&dbname=postgres"
    busy, still = psycopg.connect(url), psycopg.connect(url)
    working = threading.Thread(target=_worked, args=(busy,), daemon=True)
    working.start()
    with psycopg.connect(url) as looking:
        state = "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s"
        until(lambda: looking.execute(state, [busy.info.backend_pid]).fetchone() == (True,))
    survivors = [psutil.Process(each.info.backend_pid) for each in (busy, still)]
    survivors[1].send_signal(signal.SIGSTOP)
    first = embedded._postmaster(home)
    assert first is not None
    first.kill()
    until(lambda: embedded._postmaster(home) is None)
    assert all(each in embedded._processes(home) for each in survivors)
    assert _answers(home)
    assert not any(each in embedded._processes(home) for each in survivors)
    working.join(PATIENCE)
    still.close()


def _worked(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT count(*) FROM generate_series(1, 1000000000000)")


def test_a_server_whose_starter_was_killed_is_waited_for(home: Path) -> None:
    embedded.stop(home)
    data = home / "postgres"
    programs.run("pg_ctl", "start", "-W", "-D", str(data), "-l", str(data / "log"), data=data)
    first = until(lambda: embedded._postmaster(home))
    first.send_signal(signal.SIGSTOP)
    waiting = threading.Timer(0.5, first.send_signal, [signal.SIGCONT])
    waiting.start()
    assert _answers(home)
    assert embedded._postmaster(home) == first
    waiting.join()
