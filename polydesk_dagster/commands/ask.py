"""``polydesk ask``: what the assistant would be given for a question."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.values import Instant, Share

if TYPE_CHECKING:
    from polydesk_dagster.knowledge.searching import Answer, Found


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
    from polydesk_dagster.knowledge import searching
    from polydesk_dagster.resources.knowledge import library

    if not question.strip():
        raise typer.BadParameter(say("command.ask.empty"))
    with opened() as installation:
        answer = searching.ask(
            installation.engine,
            _instant(as_of),
            library(installation.settings),
            question,
            clinic=clinic,
            role=role,
            limit=limit,
        )
    if json:
        show.as_json(as_dict(answer))
        return
    console, t = show.out(), show.told()
    for wrong, right in answer.corrected.items():
        console.print(t.text("command.ask.corrected", wrong=wrong, right=right), style="dim")
    for note in answer.notes:
        console.print(t.reason(note), style="yellow")
    for number, found in enumerate(answer.passages, 1):
        console.print(f"\n{number}. {_citation(found)}", style="bold")
        console.print(f"   {_why(found)}", style="dim")
        console.print(found.text)


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer with stable English keys."""
    notes = [note.as_dict() for note in answer.notes]
    return {**asdict(answer), "notes": notes, "relevant": bool(answer.passages)}


def _instant(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise typer.BadParameter(say("command.ask.instant", text=text))
    return instant.astimezone(UTC)


def _citation(found: Found) -> str:
    source = found.sources[0]
    place = [source.title if source.title == source.path else f"{source.title} ({source.path})"]
    place += [heading for heading in found.headings if heading != source.title]
    if found.page is not None:
        place.append(say("command.ask.page", page=found.page))
    if found.copies > 1:
        place.append(say("command.ask.copies", count=found.copies - 1))
    if source.stale_since is not None:
        place.append(say("command.ask.stale", since=Instant(source.stale_since)))
    return " › ".join(place)


def _why(found: Found) -> str:
    parts = [say("command.ask.score", score=round(found.score, 3), coverage=Share(found.coverage))]
    parts += [f"{show.told().term('channel', channel)} {value:.2f}" for channel, value in found.why.items()]
    return ", ".join(parts)
