"""What tests share: one embedded PostgreSQL a run, a database a test copied from a migrated template."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.database.migrate import create_database, migrate

DATA = Path(__file__).parent / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; order inside each half stays."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def server() -> Iterator[URL]:
    """A PostgreSQL server of this test process."""
    home = Path(tempfile.mkdtemp(prefix="polydesk-test-", dir="/tmp"))  # short: a socket's path has a limit
    home.chmod(0o755)
    url = make_url(embedded.start(home)).set(drivername="postgresql+psycopg")
    engine = create_engine(url.set(database="postgres"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            connection.execute(sa.text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield url
    embedded.stop(home, patience=5)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def template(server: URL) -> str:
    """The name of a migrated, empty database to copy."""
    url = server.set(database="template_polydesk")
    create_database(url)
    engine = create_engine(url)
    migrate(engine)
    engine.dispose()
    return "template_polydesk"


@pytest.fixture
def database(server: URL, template: str) -> Iterator[URL]:
    """A migrated, empty database of this test."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = create_engine(server.set(database="postgres"))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
        yield server.set(database=name)
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def engine(database: URL) -> Iterator[sa.Engine]:
    engine = create_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection in a transaction that is rolled back at the end."""
    with engine.connect() as connection:
        yield connection


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data; its README says where each file is from."""
    return DATA
