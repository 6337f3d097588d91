"""``polydesk demo``: the demonstration chain and its whole night, once, in the foreground."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import night, show, simulators
from polydesk_dagster.commands.installation import Installation, is_demo, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.demo import chain, documents, told
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.runtime import supervisor
from polydesk_dagster.values import Count, Duration


def demo(
    size: Annotated[str, typer.Option()] = "chain",
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Carica la catena dimostrativa se il database è vuoto, esegue la notte intera e ne mostra gli esiti."""
    if size not in chain.SIZES:
        raise typer.BadParameter(f"--size {size}: {', '.join(chain.SIZES)}")
    if not configuration.load().embedded:
        raise ConfigurationError("demo_only_embedded")
    with opened(create=True) as installation:
        loaded = load_if_empty(installation, size, quiet=json)
        settings = installation.settings
        up = supervisor.running(settings.home) is not None
        played, environment = ([], {}) if up else simulators.unconfigured(settings)
        with simulators.playing(played, environment):
            if is_demo(installation.engine) and not up:
                simulators.point_studiolab(installation.engine, played)
            pointed = Installation(configuration.load(), installation.engine)
            results = night.run(pointed)
    well = night.went_well(results)
    if json:
        show.as_json({"size": size, "loaded": loaded, "well": well, "services": results})
    else:
        night.tell(results)
        if not well:
            show.out().print(say("command.demo.not_well"))
    raise typer.Exit(0 if well else 1)


def load_if_empty(installation: Installation, size: str, *, quiet: bool) -> bool:
    """Load the demo chain into an empty database. Returns whether it was loaded now."""
    with installation.engine.connect() as connection:
        if not chain.is_empty(connection):
            return False
    console = show.err()
    if not quiet:
        console.print(say("command.demo.loading", size=size))
    as_of = datetime.now(UTC)
    summary = chain.load(installation.engine, size, as_of=as_of)
    told.before(installation.engine, as_of)
    simulators.mark_demo(installation.engine, installation.settings.home)
    documents.write(installation.settings.documents_folder)
    if not quiet:
        rows = sum(summary.rows.values())
        console.print(say("command.demo.loaded", rows=Count("rows", rows), lasting=Duration(summary.seconds)))
    return True
