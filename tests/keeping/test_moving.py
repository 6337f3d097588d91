"""From the embedded server to another one: everything arrives, and nobody goes on in the old place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands.installation import migrated
from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import Role, business_url, create_engine, plain_url
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import backup, moving, restoring
from polydesk_dagster.settings import Settings
from tests.keeping import debian, world
from tests.world import AS_OF


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """An installation with the embedded server, with a clinic and a plan's rows in it."""
    monkeypatch.delenv("POLYDESK_DATABASE_URL", raising=False)
    with world.home() as home:
        monkeypatch.setenv("POLYDESK_HOME", str(home))
        settings = Settings(home=home)
        embedded.start(home)
        migrated(settings)
        engine = create_engine(business_url(settings))
        with engine.begin() as connection:
            connection.execute(sa.text(CLINIC))
            connection.execute(sa.text("CREATE TABLE plan_rows.p1 AS SELECT generate_series(1, 50) AS ordinal"))
        engine.dispose()
        yield settings


CLINIC = """
    INSERT INTO clinic (code, name, time_zone, region, municipality_code)
    VALUES ('MI01', 'Milano', 'Europe/Rome', 'Lombardia', 'F205')"""


@pytest.mark.slow
def test_everything_arrives_and_the_old_place_is_closed(settings: Settings, server: URL) -> None:
    before = [world.rows(url) for url in backup.whole_urls(settings)]
    with world.nowhere(server) as elsewhere:
        with psycopg.connect(plain_url(business_url(settings))), pytest.raises(PermanentError, match="embedded_in_use"):
            moving.move(settings, plain_url(elsewhere))
        with psycopg.connect(plain_url(business_url(settings))) as connection:  # it is open again
            connection.execute("SELECT FROM clinic")
        counts = moving.move(settings, plain_url(elsewhere))
        assert (counts["public.clinic"], counts["plan_rows.p1"]) == (1, 50)
        moved = configuration.load()
        assert not moved.embedded
        assert [world.rows(url) for url in backup.whole_urls(moved)] == before
        assert (Path(settings.home) / ".env").stat().st_mode & 0o077 == 0
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(plain_url(business_url(settings, Role.APP)))
        with pytest.raises(PermanentError, match="moved_already"):
            moving.move(moved, plain_url(elsewhere))


def test_nothing_is_moved_onto_what_lives(settings: Settings, engine: sa.Engine) -> None:
    with world.of_dagster(engine.url), pytest.raises(PermanentError, match="restore_over"):
        moving.move(settings, plain_url(engine.url))
    assert configuration.load().embedded


@pytest.mark.slow
@pytest.mark.skipif(debian.why_not() is not None, reason=debian.why_not() or "")
def test_an_older_server_takes_it_and_a_newer_one_takes_it_back(
    settings: Settings, server: URL, tmp_path: Path
) -> None:
    """From PostgreSQL 18 to Debian's 15 by a move, and from there into 18 by a copy."""
    before = [world.rows(url) for url in backup.whole_urls(settings)]
    with debian.cluster() as older, world.nowhere(server) as newer:
        moving.move(settings, older.url("polydesk"))
        moved = configuration.load()
        assert [world.rows(url) for url in backup.whole_urls(moved)] == before
        copy, found = backup.take(moved, tmp_path / "copies", AS_OF)
        assert found.postgres == 15
        back = world.configured(tmp_path / "back", newer)
        restoring.restore(back, copy)
        assert [world.rows(url) for url in backup.whole_urls(back)] == before
