"""``polydesk authority``: the one source of what belongs to the whole chain."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.commands import show
from polydesk_dagster.commands.clinics import read_settings
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.errors import ConfigurationError, PermanentError
from polydesk_dagster.settings import person
from polydesk_dagster.sources import authority as authorities
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.port import Link
from polydesk_dagster.values import Term


def authority(
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    vendor: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    settings: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    reason: Annotated[str | None, typer.Option(metavar="REASON")] = None,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Quale fonte fa fede per ciò che vale in tutta la catena (i comuni); con --clinic o --vendor la sceglie."""
    chosen = _chosen(clinic, vendor, settings)
    if chosen is not None and not is_reason(reason):
        raise typer.BadParameter(say("reason.reason_missing", least=LEAST_REASON))
    with opened() as installation, installation.engine.begin() as connection:
        if chosen is not None:
            as_of, why = datetime.now(UTC), (reason or "").strip()
            try:
                for name in authorities.LISTS:
                    authorities.choose(connection, name, chosen, actor=person(), reason=why, as_of=as_of)
            except PermanentError as error:
                raise typer.BadParameter(show.told().reason(error.reason)) from None
        found = {name: authorities.pinned(connection, name) for name in sorted(authorities.LISTS)}
    if json:
        show.as_json([_as_object(name, to) for name, to in found.items()])
        return
    t = show.told()
    for name, to in found.items():
        of = say("command.authority.none") if to is None else to if isinstance(to, str) else to.vendor
        show.out().print(f"{t.value(Term('list', name))}: {of}")


def _chosen(clinic: str | None, vendor: str | None, settings: Path | None) -> str | Link | None:
    """What was named on the command line, its settings looked through."""
    if clinic is not None and vendor is not None:
        raise typer.BadParameter(say("command.authority.one"))
    if vendor is None:
        return clinic
    link = Link("", vendor, {} if settings is None else read_settings(settings))
    try:
        vendors.settings(link)
    except ConfigurationError as error:
        raise typer.BadParameter(show.told().reason(error.reason)) from None
    return link


def _as_object(name: str, to: str | Link | None) -> dict[str, object]:
    link = to if isinstance(to, Link) else None
    return {"list": name, "clinic": to if isinstance(to, str) else None, "vendor": link and link.vendor}
