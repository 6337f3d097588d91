"""``polydesk up``: the whole installation in the foreground, until Ctrl-C."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
import typer

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import demo, night, show, simulators
from polydesk_dagster.commands.installation import Installation, migrated
from polydesk_dagster.commands.show import say
from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import business_url
from polydesk_dagster.database.migrate import serving
from polydesk_dagster.demo import house
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.front.application import PATH as FRONT
from polydesk_dagster.front.booking.application import PATH as BOOKING
from polydesk_dagster.runtime import instance, processes, supervisor
from polydesk_dagster.runtime.child import Child
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Term
from polydesk_dagster.web import users


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
    migrated(settings)
    engine = serving(business_url(settings))
    installation = Installation(settings, engine)
    fresh = settings.embedded and not empty and demo.load_if_empty(installation, size, quiet=False)
    # Nobody's real patients are ever served by a simulator: it plays only beside the embedded database.
    played, environment = simulators.unconfigured(settings) if settings.embedded else ([], {})
    if simulators.is_demo(engine):
        simulators.point_studiolab(engine, played)
    settings = settings.model_copy(update={"instance": None})  # its processes are its own, and so is their instance
    instance.prepare(settings)
    everything = instance.environment(settings, environment)
    children = [
        *(Child(p.name, p.command, everything, ready=p.answers, listens=("127.0.0.1", p.port)) for p in played),
        *processes.dagster_children(settings, everything),
    ]
    structured = settings.log_format == "json"
    running = supervisor.Supervisor(
        settings.home, children, database=settings.embedded, structured=structured, say=_say
    )
    reason = running.run(lambda: _ready(installation, played, fresh))
    engine.dispose()
    return reason


def _say(text: str) -> None:
    show.out().print(text)


def _ready(installation: Installation, played: list[simulators.Played], fresh: bool) -> None:
    settings = installation.settings
    console = show.out()
    for system in played:
        console.print("  " + say("command.up.simulated", what=Term("played", system.name), where=system.where))
    if simulators.is_demo(installation.engine):
        _welcome(installation)
    else:
        with installation.engine.connect() as connection:
            if not users.listed(connection):
                console.print(say("command.up.nobody"), style="yellow")
            if not connection.scalar(sa.text("SELECT count(*) FROM clinic")):
                console.print(say("command.up.no_clinic"), style="yellow")
    console.print(say("command.up.booking", where=f"{settings.address}{FRONT}{BOOKING}"), soft_wrap=True)
    console.print(
        f'  polydesk tokens issue prova --reason "{say("command.up.booking_why")}"', style="bold", soft_wrap=True
    )
    if fresh:
        console.print(say("command.up.night"))
        night.tell(night.run(installation))
    console.print(say("command.up.ready", address=settings.address), style="bold green")


def _welcome(installation: Installation) -> None:
    """Let the demo's owner in by one link, and say who else is there."""
    now = datetime.now(UTC)
    with installation.engine.begin() as connection:
        token = house.welcome(connection, now)
        people, password = house.others(connection, now)
    console = show.out()
    console.print(say("command.up.enter"))
    console.print(f"  {installation.settings.address}/ingresso?gettone={token}", style="bold", soft_wrap=True)
    console.print(say("command.up.others", password=password))
    for role, email in people:
        console.print(f"  {role:<12}{email}")
