"""One source for what belongs to the whole chain, and the commands by which a person says which, and which system it
is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.errors import ConfigurationError, PolydeskError
from polydesk_dagster.resources.polydesk import PolydeskResource
from tests import world
from tests.sources.lab import Statements

TOKEN = "POLYDESK_STUDIOLAB_TOKEN_ALL"


class Chain(Statements):
    """Two clinics, each with its studiolab."""

    def __init__(self, engine: sa.Engine, url: str) -> None:
        self.engine, self.url = engine, url
        self.passed: list[str] = []

    def asked(self) -> str:
        """Which source gave the municipalities."""
        self.passed.clear()
        return PolydeskResource().chains_source(
            "municipalities", lambda source: source.epoch, lambda clinic, _: self.passed.append(clinic)
        )

    def say(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, " ".join(done.output.replace("│", " ").split())


@pytest.fixture
def chain(engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv(TOKEN, DEMO_TOKEN)
    with in_thread(StudiolabSimulator()) as url, engine.begin() as connection:
        for code in ("BO01", "BZ01"):
            address = url.replace("/api/v1", f"/{code}/api/v1")
            world.integration(connection, world.clinic(connection, code), address, token_env=TOKEN)
        connection.commit()
        yield Chain(engine, url)


def test_who_gave_the_list_first_goes_on_giving_it(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.write("UPDATE integration SET active = false WHERE base_url LIKE '%BO01%'")
    assert "BZ01" in chain.asked()
    chain.write("UPDATE integration SET active = true")
    assert "BZ01" in chain.asked()
    # Where it fails nobody else is believed instead.
    chain.write("UPDATE integration SET active = false WHERE base_url LIKE '%BZ01%'")
    with pytest.raises(ConfigurationError, match="integration_off"):
        chain.asked()
    assert not chain.passed
    assert chain.say("authority", "--clinic", "BO01")[0] == 2  # not without a reason
    assert chain.say("authority", "--clinic", "XX99", "--reason", "ha l'elenco più nuovo")[0] == 2
    status, said = chain.say("authority", "--clinic", "BO01", "--reason", "ha l'elenco più nuovo")
    assert (status, said) == (0, "comuni: BO01")
    assert "BO01" in chain.asked()
    assert chain.rows("SELECT action, detail ->> 'clinic' FROM audit") == [("authority", "BO01")]


def test_a_file_may_be_the_authority(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_FILES_TOKEN_COMUNI", str(tmp_path))
    settings = tmp_path / "comuni.toml"
    settings.write_text('token = "POLYDESK_FILES_TOKEN_COMUNI"\n[lists]\n')
    word = ("--vendor", "files", "--settings", str(settings), "--reason", "l'elenco dell'ISTAT")
    assert chain.say("authority", "--clinic", "BO01", *word)[0] == 2
    assert chain.say("authority", *word) == (0, "comuni: files")
    with pytest.raises(PolydeskError, match="authority_without_list"):
        chain.asked()
    columns = "".join(f'{name} = "{name}"\n' for name in ("cadastral_code", "istat_code", "name", "province", "region"))
    table = f'[lists.municipalities]\nfile = "comuni.csv"\n[lists.municipalities.columns]\n{columns}'
    settings.write_text(f'token = "POLYDESK_FILES_TOKEN_COMUNI"\n{table}')
    assert chain.say("authority", *word)[0] == 0
    assert chain.asked() == "files POLYDESK_FILES_TOKEN_COMUNI"
    status, said = chain.say("authority", "--json")
    assert (status, json.loads(said)) == (0, [{"list": "municipalities", "clinic": None, "vendor": "files"}])


@pytest.mark.parametrize("same", [True, False], ids=["same", "new"])
def test_a_person_says_whether_a_changed_address_is_the_same_system(chain: Chain, same: bool) -> None:
    with PolydeskResource().engine().begin() as connection:
        world.service(connection, world_clinic(connection), external_id="S1")
    PolydeskResource().source("BO01").close()
    moved = chain.url.replace("/api/v1", "/BO01/nuovo/api/v1")
    assert chain.say("integration", "BO01", "--url", moved)[0] == 0
    with pytest.raises(PolydeskError, match="source_changed"):
        PolydeskResource().source("BO01")
    flag = "--same-system" if same else "--new-system"
    assert chain.say("integration", "BO01", flag)[0] == 2  # not without a reason
    assert chain.say("integration", "BO01", flag, "--reason", "l'ha detto il fornitore")[0] == 0
    PolydeskResource().source("BO01").close()
    assert chain.rows("SELECT external_id FROM service") == [("S1" if same else None,)]
    action = "source_same" if same else "source_replaced"
    assert chain.rows("SELECT action, detail ->> 'reason' FROM audit") == [(action, "l'ha detto il fornitore")]


def world_clinic(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'BO01'")) or 0)
