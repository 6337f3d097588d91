"""What the desk notes from the command line about addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.clinic.messages import hours, planning, service
from polydesk_dagster.database.engine import plain_url
from tests import world
from tests.messages.world import AS_OF, booked, gateway, states


@pytest.fixture(autouse=True)
def home(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))


WHO = ("--who", "Ada", "--why", "lo chiede la paziente")


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["messages", *arguments])
    return done.exit_code, done.output


def test_a_stop_told_at_the_desk_holds_a_message_that_was_planned_already(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        both = world.patient(connection, mobile="+393471234567", email="Anna@Example.org")
        booked(connection, practice, "12:00", patient_id=both)
        planning.plan(connection, "reminder", AS_OF, hours.load(connection, AS_OF))
    assert said("stop", "347 123 45 67")[0] == 0
    assert said("stop", "anna@example.ORG")[0] == 0
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert simulator.sent == []
        assert states(engine) == [("withheld", "opted_out")]
        assert "Annotato" in said("start", "+39 347 1234567", *WHO)[1]
        assert "Non era bloccato" in said("start", "+39 347 1234567", *WHO)[1]
        with engine.begin() as connection:
            booked(connection, practice, "13:00", patient_id=both)
        service.send(engine, AS_OF, "reminder", providers)
        assert [message.to for message in simulator.sent] == ["+393471234567"]


def test_what_is_no_address_is_refused() -> None:
    assert said("stop", "Anna")[0] == 2
