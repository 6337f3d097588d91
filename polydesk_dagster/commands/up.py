"""``polydesk up``: the whole installation in the foreground, until Ctrl-C.

This process stays for as long as the installation is up, so it imports little: what is done once, before and after
everything answers, is done in processes that end with it (``preparing``, ``welcome``).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Annotated

import typer

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import show
from polydesk_dagster.commands.prepared import FRESH, Playing, Prepared
from polydesk_dagster.database import embedded
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import guardian, processes, pythons, supervisor
from polydesk_dagster.runtime.apart import apart
from polydesk_dagster.runtime.child import Child
from polydesk_dagster.settings import Settings


def up(
    empty: Annotated[bool, typer.Option("--empty")] = False,
    size: Annotated[str, typer.Option()] = "chain",
) -> None:
    """Avvia tutto: database, simulatori di ciò che non è configurato, interfaccia web, avvii automatici.
    Ctrl-C ferma tutto."""
    settings = configuration.load()
    holder = supervisor.running(settings.home)
    if holder is not None:
        raise PermanentError("up_already", home=str(settings.home), process=holder)
    if (taken := supervisor.taken("web", settings.web_host, settings.web_port)) is not None:
        raise taken
    if settings.embedded:
        embedded.start(settings.home)
    try:
        reason = _up(settings, empty, size)
    finally:
        if settings.embedded:
            embedded.stop(settings.home, patience=5)
    if reason is not None:
        show.err().print(reason, style="red")
        raise typer.Exit(4)


def _up(settings: Settings, empty: bool, size: str) -> str | None:
    settings = settings.model_copy(update={"instance": None})  # its processes are its own, and so is their instance

    def prepare() -> Prepared:
        from polydesk_dagster.commands.preparing import prepared

        return prepared(settings, size, empty=empty)

    start = apart(prepare)
    children = [
        *(_simulator(each, start.environment) for each in start.played),
        *processes.dagster_children(settings, start.environment),
    ]
    structured = settings.log_format == "json"
    running = supervisor.Supervisor(
        settings.home, children, database=settings.embedded, structured=structured, say=_say
    )
    return running.run(lambda: _welcome(start, running.token))


def _simulator(playing: Playing, environment: Mapping[str, str]) -> Child:
    where = ("127.0.0.1", playing.port)
    return Child(playing.name, playing.command, environment, ready=processes.listening(playing.port), listens=where)


def _say(text: str) -> None:
    show.out().print(text)


def _welcome(start: Prepared, token: str) -> None:
    """Say what there is to say, until it is said; when everything is stopped meanwhile it is ended with the rest."""
    words = (show.told().language, FRESH if start.fresh else "", *start.told)
    status = subprocess.run(
        pythons.module("polydesk_dagster.commands.welcome", *words),
        check=False,
        env={**start.environment, guardian.MARK: token},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    ).returncode
    if status > 0:
        raise PermanentError("up_not_welcomed")
