"""A copy of an installation, and what is made of it: the same rows, the same index, the same answers; or a refusal."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.database.engine import Role, business_url, create_engine, plain_url
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import backup, dumps, environment, manifest, restoring
from polydesk_dagster.knowledge import indexing, searching
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.resources.knowledge import library
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Term
from tests import postgres
from tests.keeping import world
from tests.knowledge.world import AS_OF


@dataclass(frozen=True)
class House:
    """An installation with a chain in it, and a copy of it."""

    settings: Settings
    url: URL
    copy: Path


@pytest.fixture(scope="module")
def house(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Nobody changes it."""
    folder = tmp_path_factory.mktemp("house")
    with postgres.copied(server, postgres.SMALL_CHAIN) as url, world.of_dagster(url):
        settings = Settings(
            home=folder / "home",
            database_url=plain_url(url),
            sms_url="https://sms.example",
            sms_token="geheim-7",
            sms_sender="Polydesk",
            operator_mail="it's@polydesk.example",
        )
        settings.documents_folder.mkdir(parents=True)
        (settings.documents_folder / "prelievo.md").write_text("# Prelievo\n\nSi viene a digiuno da otto ore.")
        engine = create_engine(url)
        assert indexing.refresh(engine, AS_OF, library(settings)).outcome is Outcome.OK
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE plan_rows.p1 (ordinal bigint)"))
            connection.execute(sa.text(INTEGRATED))
        engine.dispose()
        copy, _ = backup.take(settings, folder / "copies", AS_OF)
        yield House(settings, url, copy)


@pytest.fixture
def copy(house: House, tmp_path: Path) -> Path:
    """A copy of the copy, to be spoilt."""
    return Path(shutil.copytree(house.copy, tmp_path / "copy"))


INTEGRATED = """
    INSERT INTO integration (clinic_id, base_url, token_env)
    SELECT min(id), 'https://studiolab.example', 'POLYDESK_STUDIOLAB_TOKEN_MI01' FROM clinic"""


@pytest.mark.slow
def test_a_copy_becomes_the_same_installation_in_a_new_home_and_on_another_server(
    house: House, server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [world.rows(url) for url in backup.whole_urls(house.settings)]
    with world.nowhere(server) as elsewhere, world.home() as home:
        for settings in (world.configured(home.with_name("other"), elsewhere), Settings(home=home)):
            found = restoring.restore(settings, house.copy, into_embedded=settings.embedded)
            assert [world.rows(url) for url in backup.whole_urls(settings)] == before
            assert found.figures["clinics"] == before[0]["public.clinic"][0]
            engine = create_engine(business_url(settings))
            with engine.connect() as connection:
                held = restored.noticed_restore(connection, settings.home, AS_OF)
                assert held is not None
                assert held.values["why"] == Term("restored", "told")
            answer = searching.ask(engine, AS_OF, library(settings), "a digiuno per il prelievo?")
            assert [source.path for passage in answer.passages for source in passage.sources] == ["prelievo.md"]
            assert not indexing.refresh(engine, AS_OF, library(settings)).counts.created  # known by its contents
            engine.dispose()
        _has_its_roles(settings)
        monkeypatch.setenv("POLYDESK_HOME", str(settings.home))
        monkeypatch.delenv("POLYDESK_DATABASE_URL", raising=False)
        said = CliRunner().invoke(app, ["doctor", "--json"]).output  # before anything is up, which is when one looks
        assert [each["ok"] for each in json.loads(said)["findings"] if each["code"] == "restored"] == [False]


def _has_its_roles(settings: Settings) -> None:
    """Of an embedded server: the services write records and plans' rows, and nothing that is only added to."""
    with psycopg.connect(plain_url(business_url(settings, Role.APP)), autocommit=True) as connection:
        connection.execute("UPDATE clinic SET name = name")
        connection.execute("DROP TABLE plan_rows.p1")
        for forbidden in ("DELETE FROM audit", "CREATE TABLE of_mine ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)
    with psycopg.connect(plain_url(business_url(settings, Role.OWNER))) as connection:
        owners = connection.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
        assert owners == [(Role.OWNER.value,)]


def test_a_copy_is_private_and_holds_no_secret(house: House) -> None:
    for path in (house.copy, house.copy / manifest.SETTINGS):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    said = (house.copy / manifest.SETTINGS).read_text() + (house.copy / manifest.NAME).read_text()
    assert "geheim-7" not in said
    assert environment.read(house.copy / manifest.SETTINGS) == {
        "POLYDESK_SMS_URL": "https://sms.example",
        "POLYDESK_SMS_SENDER": "Polydesk",
        "POLYDESK_OPERATOR_MAIL": "it's@polydesk.example",
    }
    assert manifest.read(house.copy).secrets == ("POLYDESK_SMS_TOKEN", "POLYDESK_STUDIOLAB_TOKEN_MI01")


def test_nothing_is_restored_over_what_lives(house: House, server: URL, tmp_path: Path) -> None:
    before = world.rows(house.url)
    with pytest.raises(PermanentError, match="restore_over"):
        restoring.restore(house.settings.model_copy(update={"home": tmp_path / "new"}), house.copy)
    assert world.rows(house.url) == before
    with world.nowhere(server) as elsewhere:
        settings = world.configured(tmp_path / "other", elsewhere)
        settings.documents_folder.mkdir(parents=True)
        (settings.documents_folder / "altro.md").write_text("di qualcun altro")
        with pytest.raises(PermanentError, match="restore_over"):
            restoring.restore(settings, house.copy)
        assert [path.name for path in settings.documents_folder.iterdir()] == ["altro.md"]


@pytest.mark.parametrize("told", [{}, {"database": None}], ids=["configured", "unsaid"])
def test_a_configured_servers_copy_goes_into_no_embedded_one_unasked(
    copy: Path, tmp_path: Path, told: dict[str, object]
) -> None:
    """As where the ``.env`` with the address was forgotten: patients' data stay off this disk."""
    assert manifest.read(copy).database == "configured"
    _changed(copy, **told)
    home = tmp_path / "home"
    with pytest.raises(PermanentError, match="restore_embedded"):
        restoring.restore(Settings(home=home), copy)
    assert not home.exists()


def _damaged(copy: Path) -> None:
    with (copy / manifest.BUSINESS).open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\0" * 50)


def _shortened(copy: Path) -> None:
    with (copy / manifest.DAGSTER).open("r+b") as file:
        file.truncate(1000)


def _without(copy: Path) -> None:
    (copy / manifest.DOCUMENTS / "prelievo.md").unlink()


def _begun(copy: Path) -> None:
    (copy / manifest.NAME).unlink()


def _changed(copy: Path, **values: object) -> None:
    told = json.loads((copy / manifest.NAME).read_text())
    (copy / manifest.NAME).write_text(json.dumps(told | values))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_damaged, "backup_damaged"),
        (_shortened, "backup_damaged"),
        (_without, "backup_damaged"),
        (_begun, "no_backup"),
        (lambda copy: _changed(copy, revision="9999"), "backup_newer"),
        (lambda copy: _changed(copy, format=2), "backup_newer"),
        (lambda copy: _changed(copy, parts=None), "backup_damaged"),
    ],
    ids=["bytes", "end", "file", "unfinished", "schema", "format", "manifest"],
)
def test_a_copy_that_is_not_whole_or_too_new_is_refused_before_anything_is_made(
    copy: Path, server: URL, tmp_path: Path, spoil: Callable[[Path], None], code: str
) -> None:
    spoil(copy)
    with world.nowhere(server) as elsewhere:
        with pytest.raises(PermanentError, match=code):
            restoring.restore(world.configured(tmp_path / "other", elsewhere), copy)
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(plain_url(elsewhere))


@pytest.mark.slow
def test_a_restore_that_was_interrupted_is_done_again(
    house: House, server: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.nowhere(server) as elsewhere:
        settings = world.configured(tmp_path / "other", elsewhere)
        with monkeypatch.context() as patch:
            patch.setattr(restoring, "load_ours", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                restoring.restore(settings, house.copy)
        restoring.restore(settings, house.copy)
        assert world.rows(elsewhere) == world.rows(house.url)
        with pytest.raises(PermanentError, match="restore_over"):
            restoring.restore(settings, house.copy)


def _interrupted(*_arguments: object, **_named: object) -> None:
    raise KeyboardInterrupt


def test_half_a_dump_is_not_committed(copy: Path, server: URL) -> None:
    _shortened(copy)
    with world.nowhere(server) as elsewhere:
        engine = create_engine(server.set(database="postgres"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f"CREATE DATABASE {elsewhere.database}"))
            version = dumps.server_version(connection)
        engine.dispose()
        for source, then in ((copy / manifest.DAGSTER, []), (copy / manifest.BUSINESS, ["SELECT 1 / 0"])):
            with pytest.raises(PermanentError, match="load_failed") as refused:
                dumps.load(source, elsewhere, server=version, then=then)
            assert refused.value.reason.values["why"]
            assert world.rows(elsewhere) == {}


def test_an_index_that_is_being_written_is_left_out_and_built_again(house: House, tmp_path: Path) -> None:
    engine = create_engine(house.url)
    with exclusive(engine, indexing.LOCK):
        copy, found = backup.take(house.settings, tmp_path / "others", AS_OF, patience=0)
    engine.dispose()
    assert (found.index, (copy / manifest.INDEX).exists()) == ("busy", False)


def test_a_copy_that_fails_leaves_nothing(house: House, tmp_path: Path) -> None:
    gone = house.settings.model_copy(update={"database_url": None, "home": tmp_path / "nobody"})
    with pytest.raises(PermanentError):
        backup.take(gone, tmp_path / "others", AS_OF)
    assert list((tmp_path / "others").iterdir()) == []


def test_a_server_newer_than_every_program_here_is_named() -> None:
    with pytest.raises(PermanentError, match="dump_too_old"):
        dumps.program_for(99)
    assert dumps.program_for(15) == dumps.program_for(18)


def test_old_copies_go_and_nothing_else_does(tmp_path: Path) -> None:
    names = [f"polydesk-2026-03-{day:02d}T010000Z" for day in range(1, 6)]
    for name in (*names, "polydesk-mine", "others", "polydesk-2026-01-01T010000Z"):
        (tmp_path / name).mkdir()
    for name in (*names, "polydesk-mine", "others"):
        (tmp_path / name / manifest.NAME).write_text("{}")
    gone = backup.thin_out(tmp_path, 3)
    assert [path.name for path in gone] == names[:2]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*names[2:], "polydesk-mine", "others", "polydesk-2026-01-01T010000Z"])
    assert backup.thin_out(tmp_path, 3) == []
