"""What a source sent and nobody could read: kept until it is mended, list by list, and shown to who asks."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from polydesk_dagster.changes import quarantine
from polydesk_dagster.changes.stage import Unreadable
from polydesk_dagster.cli import app
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.values import Reason
from tests import world


def keep(engine: sa.Engine, clinic: int, kind: str, *records: Unreadable) -> None:
    with engine.begin() as connection:
        quarantine.keep(connection, "sync_prices", kind, clinic, records)


def waiting(engine: sa.Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        return [(each.kind, each.key) for each in quarantine.set_aside(connection, limit=100)]


def bad(key: str, amount: str) -> Unreadable:
    return Unreadable(
        key,
        "invalid",
        Reason("field_wrong", {"field": "amount", "what": Reason("wire_not_money")}),
        {"service_id": key, "amount": amount},
    )


def test_each_list_of_a_service_settles_its_own_records(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        clinic = world.clinic(connection)
    keep(engine, clinic, "agreement", Unreadable("C1", "invalid", Reason("wire_not_foreseen"), {"id": "C1"}))
    keep(engine, clinic, "price", bad("S1", "x"), bad("S1", "y"), bad("S1", "y"))
    assert waiting(engine) == [("agreement", "C1"), ("price", "S1"), ("price", "S1")]
    keep(engine, clinic, "price", bad("S1", "y"))
    assert waiting(engine) == [("agreement", "C1"), ("price", "S1")]
    keep(engine, clinic, "agreement")
    assert waiting(engine) == [("price", "S1")]


def test_a_record_without_anything_in_it_is_listed_once(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        clinic = world.clinic(connection)
    for _ in range(2):
        keep(engine, clinic, "price", Unreadable(None, "invalid", Reason("not_an_object"), None))
    assert waiting(engine) == [("price", "?")]


def test_the_command_says_which_and_why(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(engine.url))
    with engine.begin() as connection:
        clinic = world.clinic(connection)
    nothing = CliRunner().invoke(app, ["plan", "quarantine"])
    assert "Nessun record in quarantena" in nothing.output
    keep(engine, clinic, "price", bad("S1", "x"))
    (line,) = json.loads(CliRunner().invoke(app, ["plan", "quarantine", "--clinic", "BO01", "--json"]).stdout)
    assert (line["service"], line["kind"], line["clinic"], line["key"]) == ("sync_prices", "price", "BO01", "S1")
    told = " ".join(CliRunner().invoke(app, ["plan", "quarantine"]).output.split())
    assert "prezzi" in told
    assert "amount non è un importo" in told


def test_a_record_is_left_out_and_put_back_by_the_command(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(engine.url))
    with engine.begin() as connection:
        clinic = world.clinic(connection)
    keep(engine, clinic, "price", bad("S1", "x"))
    with engine.connect() as connection:
        number = str(quarantine.set_aside(connection, limit=1)[0].number)
    settle = ["plan", "settle", number, "--reason", "parlato con la fonte"]
    assert CliRunner().invoke(app, settle).exit_code == 0
    assert waiting(engine) == []
    keep(engine, clinic, "price", bad("S1", "x"))
    assert waiting(engine) == []
    assert "S1" in CliRunner().invoke(app, ["plan", "quarantine", "--all"]).output
    assert "record_left_out" in str(CliRunner().invoke(app, settle).exception)
    assert json.loads(CliRunner().invoke(app, [*settle, "--undo", "--json"]).stdout)["left_out"] is False
    assert waiting(engine) == [("price", "S1")]
