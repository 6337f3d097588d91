"""Dagster's instance under the home of an installation: its configuration, its code locations, its environment."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polydesk_dagster.catalog import Place
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.home import make
from polydesk_dagster.nearby import sockets
from polydesk_dagster.runtime.dagster_inside.names import pointer
from polydesk_dagster.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

TEMPLATE = Path(__file__).with_name("embedded.yaml")


@dataclass(frozen=True, slots=True)
class Location:
    """A code location: the name that the UI shows and the module that holds its definitions."""

    name: str
    module: str

    @property
    def pointer(self) -> str:
        """Dagster's serialized code pointer to its definitions, as its code server has it too."""
        return pointer(self.module)


LOCATIONS = (
    Location(Place.ORDINARY.value, "polydesk_dagster.definitions"),
    Location(Place.EMERGENCY.value, "polydesk_dagster.emergency"),
)


def dagster_home(home: Path) -> Path:
    return home / "dagster"


def workspace_file(home: Path) -> Path:
    """The workspace of `polydesk up`: its code servers, by their sockets."""
    return dagster_home(home) / "workspace.yaml"


def code_socket(home: Path, location: str) -> Path:
    """Where the code server of a location listens under `polydesk up`."""
    return sockets(dagster_home(home)) / f"{location}.code"


def runs_socket(dagster_home: Path, location: str) -> Path:
    """Where the fork server of a location listens."""
    return sockets(dagster_home) / f"{location}.runs"


def environment(settings: Settings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every Dagster process of this installation needs in its environment; the database must be reachable.

    It holds the database's password, so it goes to child processes and never to a log or a command line. What a
    deployment says of its own instance stays as it says it: its page looks for the logs there.
    """
    from polydesk_dagster.database.engine import dagster_url  # not for who only asks where something is

    ours = {
        "DAGSTER_POSTGRES_URL": dagster_url(settings).render_as_string(hide_password=False),
        "DAGSTER_COMPUTE_LOGS": str(dagster_home(settings.home) / "storage"),
    }
    said = {} if settings.instance is None else {name: os.environ[name] for name in ours if os.environ.get(name)}
    return {
        **os.environ,
        **(extra or {}),
        "POLYDESK_HOME": str(settings.home),
        "POLYDESK_INSTANCE": str(settings.instance or ""),
        "DAGSTER_HOME": str(settings.instance or dagster_home(settings.home)),
        **ours,
        **said,
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "POLYDESK_LOG_FORMAT": settings.log_format,
        "PYTHONUNBUFFERED": "1",
    }


def prepare(settings: Settings, locations: Iterable[Location] = LOCATIONS) -> Path:
    """Write the instance's configuration and its workspace under the home. Returns Dagster's home.

    Neither holds a secret; both are rewritten at each start, so they follow the program's version.
    """
    folder = dagster_home(make(settings.home))
    folder.mkdir(exist_ok=True)
    folder.chmod(stat.S_IRWXU)
    _write(folder / "dagster.yaml", TEMPLATE.read_text())
    servers = [
        {"grpc_server": {"socket": str(code_socket(settings.home, location.name)), "location_name": location.name}}
        for location in locations
    ]
    _write(workspace_file(settings.home), json.dumps({"load_from": servers}, indent=2))  # JSON is YAML
    return folder


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


def open_instance(settings: Settings) -> DagsterInstance:
    """This installation's Dagster instance, in this process; close it with ``with``. One that a deployment has written
    itself is taken as it is.

    Raises:
        ConfigurationError: the deployment's folder has no instance in it.
    """
    from dagster import DagsterInstance

    os.environ.update(environment(settings))
    if settings.instance is None:
        return DagsterInstance.from_config(str(prepare(settings)))
    if not (settings.instance / "dagster.yaml").exists():
        raise ConfigurationError("no_instance", folder=str(settings.instance))
    return DagsterInstance.from_config(str(settings.instance))


def workspace_of(settings: Settings) -> Path:
    """Where the door and the daemon read which code there is."""
    return workspace_file(settings.home) if settings.instance is None else settings.instance / "workspace.yaml"
