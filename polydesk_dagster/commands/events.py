"""``polydesk events``: the events of studiolab that wait, and what a person decides about them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.values import Instant

app = typer.Typer(no_args_is_help=True, add_completion=False)

Clinic = Annotated[str, typer.Option(metavar="CODE")]
Event = Annotated[str, typer.Argument()]


@app.command()
def parked(
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elenca gli eventi che aspettano: un nuovo tentativo, un altro evento, o una persona."""
    from polydesk_dagster.sources.events.inbox import unsettled

    with opened() as installation, installation.engine.connect() as connection:
        waiting = unsettled(connection, clinic)
    if json:
        show.as_json([{**asdict(event), "reason": event.reason and event.reason.as_dict()} for event in waiting])
        return
    if not waiting:
        show.out().print(say("command.events.none"))
        return
    t = show.told()
    rows = [
        (
            event.clinic,
            event.event_id,
            event.sequence,
            t.value(event.type),
            t.value(event.entity),
            t.term("event_state", event.state),
            event.attempts,
            t.value(Instant(event.next_try_at)) if event.next_try_at else "",
            t.value(event.reason),
        )
        for event in waiting
    ]
    titles = ("clinic", "event", "number", "type", "entity", "state", "attempts", "next_try", "why")
    show.table(None, show.columns(*titles), rows)


@app.command()
def retry(event: Event, clinic: Clinic) -> None:
    """Fa riprovare un evento in sospeso al prossimo giro, con tutti i suoi tentativi davanti."""
    from polydesk_dagster.sources.events import inbox

    with opened() as installation, installation.engine.begin() as connection:
        inbox.retry(connection, clinic, event, datetime.now(UTC))
    show.out().print(say("command.events.retried"))


@app.command()
def skip(
    event: Event,
    clinic: Clinic,
    reason: Annotated[str, typer.Option(metavar="TEXT")],
) -> None:
    """Rinuncia a un evento, con il suo perché; quelli che lo aspettavano proseguono."""
    from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
    from polydesk_dagster.sources.events import inbox

    if not is_reason(reason):
        raise typer.BadParameter(say("reason.reason_missing", least=LEAST_REASON))
    with opened() as installation, installation.engine.begin() as connection:
        inbox.skip(connection, clinic, event, reason.strip(), datetime.now(UTC))
    show.out().print(say("command.events.skipped"))


@app.command()
def types(json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Elenca i tipi di evento che non conosciamo: una domanda per tipo."""
    from polydesk_dagster.sources.events.types import questions

    with opened() as installation, installation.engine.connect() as connection:
        found = questions(connection)
    if json:
        show.as_json([{**asdict(each), "asked_at": each.asked_at.isoformat()} for each in found])
        return
    if not found:
        show.out().print(say("command.events.no_types"))
        return
    t = show.told()
    rows = [(each.type, t.value(Instant(each.asked_at)), each.events, each.ignored_by or "") for each in found]
    show.table(None, show.columns("type", "since", "how_many", "ignored_by"), rows)


@app.command()
def ignore(
    type_: Annotated[str, typer.Argument(metavar="NAME")],
    reason: Annotated[str, typer.Option(metavar="TEXT")],
    again: Annotated[bool, typer.Option("--ask-again")] = False,
) -> None:
    """Decide una volta per tutti gli eventi di un tipo: non hanno effetto; con --ask-again si torna a chiedere."""
    from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
    from polydesk_dagster.errors import PermanentError
    from polydesk_dagster.settings import person
    from polydesk_dagster.sources.events import types as kinds

    if not is_reason(reason):
        raise typer.BadParameter(say("reason.reason_missing", least=LEAST_REASON))
    rule = kinds.ask_again if again else kinds.ignore
    with opened() as installation, installation.engine.begin() as connection:
        try:
            rule(connection, type_, actor=person(), reason=reason.strip(), as_of=datetime.now(UTC))
        except PermanentError as error:
            raise typer.BadParameter(show.told().reason(error.reason)) from None
    show.out().print(say("command.events.decided"))
