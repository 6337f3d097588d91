"""``polydesk users``: a person added at the terminal comes in by the link that it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.commands.users import app
from polydesk_dagster.database.engine import plain_url
from tests import world
from tests.web.world import PASSWORD, Served


def test_a_person_is_added_chooses_a_password_and_is_disabled(
    door: Served, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with door.door.engine.begin() as connection:
        world.clinic(connection, "BO01")

    def users(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    said = users("add", "anna@example.org", "manager", "--name", "Anna Bruni", "--clinic", "BO01")
    found = re.search(r"/attiva\?codice=(\S+)", said)
    assert found
    client = door.client()
    data = {"codice": found[1], "password": PASSWORD, "again": PASSWORD}
    assert client.post("/attiva", data=data).status_code == 303
    assert "Anna Bruni" in client.get("/", headers={"accept": "text/html"}).text
    (anna,) = json.loads(users("list", "--json"))
    assert (anna["role"], anna["clinics"], anna["state"], anna["ways"]) == ("manager", ["BO01"], "active", ["password"])
    assert "tutte" not in users("list")
    assert "attivo" in users("list")
    users("role", "anna@example.org", "manager")
    assert client.get("/").status_code == 303  # what she did as before is over
    (anna,) = json.loads(users("list", "--json"))
    assert anna["clinics"] == []
    users("disable", "anna@example.org")
    with door.door.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT state FROM app_user")) == "disabled"
    assert "disabilitato" in users("list")
