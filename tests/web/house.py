"""Dagster's page behind the door, as ``polydesk up`` starts it, over a small code location that stands for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import Place
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.runtime import instance
from polydesk_dagster.settings import Settings
from polydesk_dagster.web.door import Door
from tests.runtime.world import ROOT
from tests.waiting import PATIENCE
from tests.web.world import Served, free_port

LOCATIONS = tuple(instance.Location(place.value, "tests.web.jobs") for place in Place)


class House(Served):
    """The whole, listening."""

    def ask(self, client: httpx.Client, query: str, variables: dict[str, Any] | None = None) -> httpx.Response:
        """Send an operation as Dagster's page does."""
        name = query.split("(", maxsplit=1)[0].split("{", maxsplit=1)[0].split()[1]
        body = {"operationName": name, "query": query, "variables": variables or {}}
        return client.post("/dagster/graphql", json=body)


@contextmanager
def up(database: URL) -> Iterator[House]:
    """The door and the code servers of an installation over a migrated, empty database.

    Without its daemon: what is launched stays in the queue, where nothing that is asked of the page needs it to run.
    """
    home = Path(tempfile.mkdtemp(prefix="polydesk-door-", dir="/tmp"))
    url = database.set(drivername="postgresql").render_as_string(hide_password=False)
    settings = Settings(home=home, database_url=url, web_port=free_port())
    code = """
    from polydesk_dagster import settings as configuration
    from polydesk_dagster.database.engine import dagster_url
    from polydesk_dagster.database.migrate import create_database
    from polydesk_dagster.runtime import instance, processes, supervisor
    from tests.web.house import LOCATIONS
    settings = configuration.load()
    create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
    instance.prepare(settings, LOCATIONS)
    children = processes.dagster_children(settings, instance.environment(settings), LOCATIONS)
    asked = [child for child in children if child.name != "daemon"]
    supervisor.Supervisor(settings.home, asked).run(lambda: print("ready", flush=True))
    """
    environment = {
        "POLYDESK_HOME": str(home),
        "POLYDESK_DATABASE_URL": url,
        "POLYDESK_WEB_PORT": str(settings.web_port),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    engine = create_engine(database)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (home / "logs" / "web.log").read_text()
        yield House(Door(settings, engine), settings.address)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        engine.dispose()


def run_tags(house: House, run_id: str) -> dict[str, str]:
    """The tags of a run, as Dagster's storage has them."""
    url = house.door.engine.url
    engine = create_engine(url.set(database=f"{url.database}_dagster"))
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT key, value FROM run_tags WHERE run_id = :run"), {"run": run_id})
        tags = {row.key: row.value for row in rows}
    engine.dispose()
    return tags


def selector(location: str, job: str = "small") -> dict[str, str]:
    return {"repositoryLocationName": location, "repositoryName": "__repository__", "jobName": job}


def launch_params(location: str, **tags: str) -> dict[str, Any]:
    """What Dagster's page sends to launch the small job."""
    metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
    return {
        "selector": selector(location),
        "runConfigData": json.dumps({}),
        "mode": "default",
        "executionMetadata": metadata,
    }
