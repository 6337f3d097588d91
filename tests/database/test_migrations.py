"""Whether a program and a schema suit each other: what is told when they do not, and that the program of the release
before works beside the schema of this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.database.migrate import (
    MIGRATIONS,
    SERVES,
    SchemaError,
    _config,
    create_database,
    current,
    head,
    migrate,
    serving,
)
from polydesk_dagster.settings import Settings
from tests.postgres import dagster_storage, dropped

ROOT = MIGRATIONS.parents[2]


def test_the_newest_is_the_one_that_alembic_means() -> None:
    assert head() == ScriptDirectory.from_config(_config()).get_current_head()


def _becomes(engine: sa.Engine, version: str, serves: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})
        connection.execute(sa.text(f"COMMENT ON TABLE alembic_version IS 'serves {serves}'"))


def _connect(url: URL) -> None:
    engine = serving(url)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("version", "serves", "code"),
    [("0001", "0001", "schema_behind"), ("9999", "9998", "schema_newer"), ("9999", "0001", None)],
)
def test_nobody_works_on_a_schema_that_does_not_suit(
    engine: sa.Engine, version: str, serves: str, code: str | None
) -> None:
    _becomes(engine, version, serves)
    if code is None:
        _connect(engine.url)
        assert migrate(engine) == (version, version)
        return
    with pytest.raises(SchemaError) as refused:
        _connect(engine.url)
    assert refused.value.reason.code == code
    if code == "schema_newer":
        with pytest.raises(SchemaError, match="schema_newer"):
            migrate(engine)


def test_a_database_without_a_schema_is_called_so(server: URL) -> None:
    with pytest.raises(SchemaError, match="schema_missing"):
        _connect(server.set(database="template1"))


_SHAPE = sa.text("""
    SELECT table_name || '.' || column_name,
           format('%s %s %s', data_type, udt_name, character_maximum_length), is_nullable = 'NO',
           column_default IS NOT NULL OR is_identity = 'YES' OR is_generated = 'ALWAYS'
    FROM information_schema.columns WHERE table_schema = 'public'""")


def test_what_the_program_before_knows_is_still_there_and_nothing_more_is_asked_of_it(server: URL) -> None:
    """Expand, then contract: a migration that takes something away moves ``SERVES``."""
    url = server.set(drivername="postgresql+psycopg", database=f"before_{uuid.uuid4().hex[:8]}")
    create_database(url)
    engine = create_engine(url)
    with dropped(url):
        migrate(engine, to=SERVES)
        before = _shape(engine)
        migrate(engine)
        after = _shape(engine)
        engine.dispose()
    tables = {name.partition(".")[0] for name in before}
    gone = {name for name, (kind, *_) in before.items() if name not in after or after[name][0] != kind}
    asked = {
        name
        for name, (_, needed, given) in after.items()
        if needed and not given and name.partition(".")[0] in tables and not before.get(name, ("", False))[1]
    }
    assert (gone, asked) == (set(), set())


def _shape(engine: sa.Engine) -> dict[str, tuple[str, bool, bool]]:
    with engine.connect() as connection:
        return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(_SHAPE)}


NIGHT_OF_BEFORE = """
import json, sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import night, simulators
from polydesk_dagster.commands.installation import Installation
from polydesk_dagster.database import engine as engines, migrate
from polydesk_dagster.demo import chain, documents
settings = configuration.load()
assert migrate.__file__.startswith(sys.argv[1]) and migrate.head() == sys.argv[2]
engine = engines.create_engine(engines.business_url(settings))
noon = (datetime.now(UTC) - timedelta(hours=11)).replace(hour=11)  # by night a message may rightly come too late
chain.load(engine, "small", as_of=noon)
run_service = night.run_service
night.run_service = lambda *given: run_service(*given[:-1], {"as_of": noon.isoformat()})
simulators.mark_demo(engine, settings.home)
documents.write(settings.documents_folder)
# It may look for free ports while another test has chosen some and does not yet listen there.
simulators.SYSTEMS = tuple(replace(each, port=each.port + 2000) for each in simulators.SYSTEMS)
played, environment = simulators.unconfigured(settings)
with simulators.playing(played, environment):
    simulators.point_studiolab(engine, played)
    print(json.dumps(night.run(Installation(configuration.load(), engine))))
"""
"""The demo's night by the program of before: every scheduled service once."""


@pytest.mark.slow
def test_the_program_of_before_runs_every_service_on_the_schema_of_now(engine: sa.Engine, tmp_path: Path) -> None:
    """The package as it stood before the first migration that it does not know fills this schema with a chain, and
    every scheduled service works on it."""
    newer = sorted(path for path in (MIGRATIONS / "versions").glob("[0-9]*.py") if path.name[:4] > SERVES)
    added = _git("log", "--diff-filter=A", "--format=%H", "--", str(newer[0])) if newer else ""
    if not added:
        pytest.skip("no history, or no migration since")
    packed = subprocess.run(
        ["git", "archive", f"{added.split()[-1]}~1", "polydesk_dagster"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    url = engine.url.render_as_string(hide_password=False)
    given = {"POLYDESK_HOME": str(tmp_path / "home"), "POLYDESK_DATABASE_URL": url, "PYTHONPATH": str(tmp_path)}
    storage = dagster_url(Settings(home=tmp_path / "home", database_url=SecretStr(url)))
    dagster_storage(storage)
    with dropped(storage):
        told = subprocess.run(
            [sys.executable, "-c", NIGHT_OF_BEFORE, str(tmp_path), SERVES],
            env={**os.environ, **given},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert told.returncode == 0, told.stderr
    night = json.loads(told.stdout.splitlines()[-1])
    assert len(night) > 10
    assert {row["service"]: row["reasons"] for row in night if row["outcome"] in {"failed", "refused"}} == {}
    with serving(engine.url).connect() as connection:
        assert current(connection) == head()
        assert connection.scalar(sa.text("SELECT count(*) FROM service_run WHERE outcome = 'ok'"))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""
