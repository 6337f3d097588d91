"""``polydesk ask``: what the assistant would be given for a question."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from polydesk_dagster import nearby
from polydesk_dagster import settings as configuration
from polydesk_dagster.commands import show
from polydesk_dagster.commands.show import say
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.resources.meaning import search
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Instant, Reason, Share

PATIENCE = 20.0
"""Seconds that the running installation has to answer; then the command looks by itself."""


class Role(StrEnum):
    patient = "patient"
    desk = "desk"
    specialist = "specialist"
    manager = "manager"
    superuser = "superuser"


def ask(
    question: Annotated[str, typer.Argument()],
    clinic: Annotated[str | None, typer.Option()] = None,
    role: Annotated[Role | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=50)] = 5,
    as_of: Annotated[str | None, typer.Option()] = None,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Mostra i passaggi che l'assistente riceverebbe: documento, pagina, punteggio, perché."""
    if not question.strip():
        raise typer.BadParameter(say("command.ask.empty"))
    settings, at = configuration.load(), _instant(as_of)
    asked = {"question": question, "clinic": clinic, "role": role, "limit": limit}
    answer = _of_the_running(settings, {**asked, "as_of": at and at.isoformat()}) or _by_ourselves(asked, at)
    if json:
        show.as_json(answer)
        return
    console, t = show.out(), show.told()
    for wrong, right in answer["corrected"].items():
        console.print(t.text("command.ask.corrected", wrong=wrong, right=right), style="dim")
    for note in answer["notes"]:
        console.print(t.reason(Reason.from_dict(note)), style="yellow")
    for number, found in enumerate(answer["passages"], 1):
        console.print(f"\n{number}. {_citation(found)}", style="bold")
        console.print(f"   {_why(found)}", style="dim")
        console.print(found["text"])


def _of_the_running(settings: Settings, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the installation answers that runs here and has the search loaded; None where none does."""
    if not settings.home.is_dir():
        return None
    try:
        path = nearby.sockets(settings.home) / "ask"
        told = nearby.ask(path, {**asked, "search": search(settings)}, PATIENCE)
    except (OSError, ValueError, PolydeskError):
        return None
    answer: Mapping[str, Any] | None = told["answer"]
    return answer


def _by_ourselves(asked: Mapping[str, Any], at: datetime | None) -> Mapping[str, Any]:
    from polydesk_dagster.commands.installation import opened
    from polydesk_dagster.knowledge import searching
    from polydesk_dagster.resources.knowledge import library

    with opened() as installation:
        as_of = at or datetime.now(UTC)
        return searching.ask(installation.engine, as_of, library(installation.settings), **asked).as_dict()


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise typer.BadParameter(say("command.ask.instant", text=text))
    return instant.astimezone(UTC)


def _citation(found: Mapping[str, Any]) -> str:
    source = found["sources"][0]
    place = [source["title"] if source["title"] == source["path"] else f"{source['title']} ({source['path']})"]
    place += [heading for heading in found["headings"] if heading != source["title"]]
    if found["page"] is not None:
        place.append(say("command.ask.page", page=found["page"]))
    if found["copies"] > 1:
        place.append(say("command.ask.copies", count=found["copies"] - 1))
    if source["stale_since"] is not None:
        place.append(say("command.ask.stale", since=Instant(datetime.fromisoformat(str(source["stale_since"])))))
    return " › ".join(place)


def _why(found: Mapping[str, Any]) -> str:
    parts = [say("command.ask.score", score=round(found["score"], 3), coverage=Share(found["coverage"]))]
    parts += [
        f"{show.told().term('channel', channel)} {show.told().value(round(value, 2))}"
        for channel, value in found["why"].items()
    ]
    return ", ".join(parts)
