"""``polydesk backup``, ``restore`` and ``move``: the installation as one thing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import migrated, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.database import embedded
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import backup as copying
from polydesk_dagster.keeping import moving, restoring
from polydesk_dagster.keeping.manifest import Manifest
from polydesk_dagster.runtime import supervisor
from polydesk_dagster.values import Count, Instant, Several, Term, Value

Folder = Annotated[Path, typer.Argument(file_okay=False)]
Json = Annotated[bool, typer.Option("--json")]


def backup(
    folder: Folder, keep: Annotated[int | None, typer.Option("--keep", min=1)] = None, json: Json = False
) -> None:
    """Copia tutta l'installazione, mentre lavora, in una cartella nuova."""
    with opened() as installation:
        made, found = copying.take(installation.settings, folder, datetime.now(UTC))
    gone = copying.thin_out(folder, keep) if keep is not None else []
    if json:
        show.as_json({"folder": str(made), **_as_object(found), "removed": [str(path) for path in gone]})
    else:
        show.out().print(say("command.backup.done", folder=str(made)), soft_wrap=True)
        _tell(found)


def restore(
    folder: Folder, into_embedded: Annotated[bool, typer.Option("--embedded")] = False, json: Json = False
) -> None:
    """Riporta un'installazione dalla sua copia, in una cartella o su un server dove non ce n'è."""
    settings = configuration.load()
    if (holder := supervisor.running(settings.home)) is not None:
        raise PermanentError("up_already", home=str(settings.home), process=holder)
    was_running = settings.embedded and embedded.running(settings.home)
    try:
        found = restoring.restore(settings, folder, into_embedded=into_embedded)
    finally:
        if settings.embedded and not was_running:
            embedded.stop(settings.home)
    unset = [name for name in found.secrets if configuration.secret(name) is None]
    if json:
        show.as_json({**_as_object(found), "unset": unset})
        return
    where = Term("database_kind", "embedded" if settings.embedded else "configured")
    show.out().print(say("command.restore.done", home=str(settings.home), database=where), soft_wrap=True)
    _tell(found)
    if unset:
        show.out().print(say("command.restore.unset", names=Several(tuple(unset))), style="yellow")


def move(
    to: Annotated[str | None, typer.Option("--to", metavar="URL", envvar="POLYDESK_MOVE_TO", show_envvar=False)] = None,
    json: Json = False,
) -> None:
    """Porta un'installazione dal database incorporato a un server configurato, una volta per tutte."""
    settings = configuration.load()
    if (holder := supervisor.running(settings.home)) is not None:
        raise PermanentError("up_already", home=str(settings.home), process=holder)
    if settings.embedded and not embedded.exists(settings.home):
        raise PermanentError("no_installation", home=str(settings.home))
    address = to or typer.prompt(say("command.move.to"), hide_input=True)
    target = configuration.of(settings.home, {configuration.variable("database_url"): address})
    assert target.database_url is not None
    try:
        if settings.embedded:
            embedded.start(settings.home)
            migrated(settings)
        moved = moving.move(settings, target.database_url.get_secret_value())
    finally:
        if settings.embedded:
            embedded.stop(settings.home)
    if json:
        show.as_json({"tables": len(moved), "rows": sum(moved.values())})
    else:
        values: dict[str, Value] = {"tables": len(moved), "rows": sum(moved.values())}
        show.out().print(say("command.move.done", file=str(settings.home / ".env"), **values), soft_wrap=True)


def _tell(found: Manifest) -> None:
    figures = Several(tuple(Count(noun, n) for noun, n in found.figures.items()))
    show.out().print(say("command.backup.holds", at=Instant(found.taken_at), figures=figures))
    show.out().print(say("command.backup.files", index=Term("backup_index", found.index), documents=found.documents))


def _as_object(found: Manifest) -> dict[str, object]:
    return found.model_dump(mode="json", exclude={"parts"})
