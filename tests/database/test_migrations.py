"""Whether a program and a schema suit each other: what is told when they do not, and that the program of the release
before works beside the schema of this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import create_engine
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
from tests.postgres import dropped
from tests.world import AS_OF

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


@pytest.mark.slow
def test_the_program_of_before_works_on_the_schema_of_now(engine: sa.Engine, tmp_path: Path) -> None:
    """The package as it stood before the first migration that it does not know fills this schema with a chain."""
    newer = sorted(path for path in (MIGRATIONS / "versions").glob("[0-9]*.py") if path.name[:4] > SERVES)
    added = _git("log", "--diff-filter=A", "--format=%H", "--", str(newer[0])) if newer else ""
    if not added:
        pytest.skip("no history, or no migration since")
    packed = subprocess.run(
        ["git", "archive", f"{added.split()[-1]}~1", "polydesk_dagster"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    program = (
        "import datetime, sys; from sqlalchemy.engine import make_url\n"
        "from polydesk_dagster.database import engine, migrate; from polydesk_dagster.demo import chain\n"
        "assert migrate.__file__.startswith(sys.argv[2]) and migrate.head() == sys.argv[3]\n"
        "as_of = datetime.datetime.fromisoformat(sys.argv[4])\n"
        "chain.load(engine.create_engine(make_url(sys.argv[1])), 'small', as_of=as_of)\n"
    )
    url = engine.url.render_as_string(hide_password=False)
    told = subprocess.run(
        [sys.executable, "-c", program, url, str(tmp_path), SERVES, AS_OF.isoformat()],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    with serving(engine.url).connect() as connection:
        assert current(connection) == head()
        assert connection.scalar(sa.text("SELECT count(*) FROM appointment"))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""
