"""What the command prints of what it holds and of what goes wrong, on an installation with a configured database."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import cli
from polydesk_dagster.database.engine import plain_url


@pytest.fixture(autouse=True)
def configured(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))


def _status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["polydesk", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_error_of_the_database_is_told_by_its_type_and_constraint_alone(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE message_block ADD CONSTRAINT never CHECK (cause <> 'stop')"))
    assert _status(monkeypatch, "messages", "stop", "segretissima@example.org") == 4
    told = " ".join(capsys.readouterr().err.split())
    assert "IntegrityError, SQLSTATE 23514, vincolo never" in told
    assert "riprova" in told
    for never in ("segretissima", "Traceback", "INSERT"):
        assert never not in told
