"""``polydesk ask``: what the assistant would be given for a question."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say


class Role(StrEnum):
    patient = "patient"
    desk = "desk"
    specialist = "specialist"
    manager = "manager"
    superuser = "superuser"


def ask(
    question: Annotated[str, typer.Argument(help="La domanda, come la scriverebbe una persona.")],
    clinic: Annotated[str | None, typer.Option(help="Solo i documenti di questa clinica e della catena.")] = None,
    role: Annotated[Role | None, typer.Option(help="Solo ciò che questo ruolo può leggere.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=50, help="Quanti passaggi.")] = 5,
    as_of: Annotated[str | None, typer.Option(help="Istante della domanda, RFC 3339; di regola adesso.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Un oggetto JSON.")] = False,
) -> None:
    """Mostra i passaggi che l'assistente riceverebbe: documento, pagina, punteggio, perché."""
    from polydesk_dagster.knowledge import searching
    from polydesk_dagster.resources.knowledge import library

    if not question.strip():
        raise typer.BadParameter(say("la domanda è vuota", "the question is empty"))
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
    console = show.out()
    for wrong, right in answer.corrected.items():
        console.print(
            say(f"«{wrong}» non c'è: cercato «{right}».", f"No “{wrong}”: looked for “{right}”."), style="dim"
        )
    if answer.note:
        console.print(answer.note, style="yellow")
    for number, found in enumerate(answer.passages, 1):
        console.print(f"\n{number}. {_citation(found)}", style="bold")
        console.print(f"   {_why(found)}", style="dim")
        console.print(found.text)


def as_dict(answer: Any) -> dict[str, Any]:
    """The answer with stable English keys."""
    return {**asdict(answer), "relevant": bool(answer.passages)}


def _instant(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"as_of «{text}» non è un istante RFC 3339") from None
    if instant.tzinfo is None:
        raise typer.BadParameter(f"as_of «{text}» non ha il fuso: scrivi per esempio {text}+01:00")
    return instant.astimezone(UTC)


def _citation(found: Any) -> str:
    source = found.sources[0]
    place = [source.title if source.title == source.path else f"{source.title} ({source.path})"]
    place += [heading for heading in found.headings if heading != source.title]
    if found.page is not None:
        place.append(say(f"pagina {found.page}", f"page {found.page}"))
    if found.copies > 1:
        place.append(say(f"e altre {found.copies - 1} copie", f"and {found.copies - 1} more copies"))
    return " › ".join(place)


def _why(found: Any) -> str:
    names = {"words": say("parole", "words"), "grams": say("simili", "alike"), "vector": say("senso", "meaning")}
    parts = [say(f"punteggio {found.score:.3f}", f"score {found.score:.3f}")]
    parts.append(say(f"copre il {found.coverage:.0%} della domanda", f"covers {found.coverage:.0%} of the question"))
    parts += [f"{names[channel]} {value:.2f}" for channel, value in found.why.items()]
    return ", ".join(parts)
