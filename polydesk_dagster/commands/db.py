"""``polydesk db``: the database's address, its schema, a prompt on it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import migrated, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import Role, business_url, plain_url, psql_path
from polydesk_dagster.database.migrate import head
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import checking, upgrading
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import person

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _reachable() -> configuration.Settings:
    """The settings, with the embedded server running and migrated; it is left running, so that its address works.

    Raises:
        PermanentError: if there is none: only ``migrate`` builds it.
    """
    settings = configuration.load()
    if settings.embedded:
        if not embedded.exists(settings.home):
            raise PermanentError("no_installation", home=str(settings.home))
        embedded.start(settings.home)
        migrated(settings)
    return settings


@app.command()
def url() -> None:
    """Scrive l'indirizzo del database; quello incorporato resta avviato (si ferma con «polydesk db stop»)."""
    typer.echo(plain_url(business_url(_reachable())))


@app.command()
def migrate() -> None:
    """Porta lo schema all'ultima versione; due processi insieme non si disturbano."""
    settings = configuration.load()
    if settings.embedded:
        embedded.start(settings.home)
    before, after = migrated(settings)
    if after > head():
        show.out().print(say("command.db.newer", version=after, program=head()))
    elif before == after:
        show.out().print(say("command.db.current", version=after))
    else:
        show.out().print(say("command.db.migrated", before=before, after=after))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Apre psql sul database; ciò che segue passa a psql (per esempio: -c 'SELECT 1')."""
    settings = _reachable()
    address = plain_url(business_url(settings, Role.OWNER))
    program = psql_path()
    os.execv(program, [str(program), address, *context.args])  # noqa: S606 - replaces this process, no shell


@app.command()
def upgrade() -> None:
    """Porta i dati del database incorporato alla versione di PostgreSQL di questo programma."""
    settings = configuration.load()
    if not settings.embedded:
        show.out().print(say("command.db.not_ours"))
        return
    if not embedded.exists(settings.home):
        raise PermanentError("no_installation", home=str(settings.home))
    try:
        before, after = upgrading.upgrade(settings)
    finally:
        embedded.stop(settings.home)
    if before == after:
        show.out().print(say("command.db.upgraded_already", version=str(after)))
    else:
        where = str(upgrading.kept(settings.home, before))
        show.out().print(say("command.db.upgraded", before=str(before), after=str(after), folder=where), soft_wrap=True)


@app.command()
def check() -> None:
    """Guarda i due database, una cosa alla volta; dove qualcosa non va, dice l'SQL per chi gestisce il server."""
    settings = configuration.load()
    if settings.embedded and embedded.exists(settings.home):
        embedded.start(settings.home)
    well = True
    for checked in checking.look(settings):
        what = show.told().term("database_check", checked.what)
        said = say("doctor.well") if checked.why is None else show.told().reason(checked.why)
        show.out().print(
            Text.assemble((f"{what}: ", "bold"), (said, "green" if checked.why is None else "red")), soft_wrap=True
        )
        well = well and checked.why is None
    raise typer.Exit(0 if well else 1)


@app.command()
def accept(
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT")],
) -> None:
    """Dopo un ripristino: una persona ha guardato, si può di nuovo inviare e allineare."""
    with opened() as installation:
        held = restored.accept(
            installation.engine, installation.settings.home, actor=person(), reason=reason, as_of=datetime.now(UTC)
        )
    show.out().print(say("command.db.accepted" if held else "command.db.not_restored"))


@app.command()
def stop(
    wait: Annotated[float, typer.Option()] = 2.0,
) -> None:
    """Ferma il database incorporato, se nessun altro processo lo sta usando."""
    settings = configuration.load()
    if not settings.embedded:
        show.out().print(say("command.db.not_ours"))
    elif embedded.stop(settings.home, patience=wait):
        show.out().print(say("command.db.stopped"))
    else:
        show.out().print(say("command.db.in_use"))
        raise typer.Exit(1)
