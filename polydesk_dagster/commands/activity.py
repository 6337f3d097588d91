"""``polydesk go-live``, ``pause`` and ``resume``: whether services start by themselves, who said so and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
import typer

from polydesk_dagster.catalog import ROME
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.settings import person
from polydesk_dagster.values import Instant, ServiceKey, Several

Key = Annotated[str, typer.Argument(metavar="KEY")]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT")]
Clinic = Annotated[str | None, typer.Option("--clinic", metavar="CODE")]
Json = Annotated[bool, typer.Option("--json")]


def go_live(
    reason: Why,
    service: Annotated[str | None, typer.Argument(metavar="KEY")] = None,
    everything: Annotated[bool, typer.Option("--all")] = False,
    json: Json = False,
) -> None:
    """Attiva un servizio, o tutti: da adesso parte da solo, secondo la sua cadenza."""
    if (service is None) != everything:
        raise typer.BadParameter(say("command.go_live.one_or_all"))
    wanted = activity.STANDING if service is None else (service,)
    with _saying() as connection:
        let = activity.go_live(connection, wanted, actor=person(), reason=reason, as_of=datetime.now(UTC))
    if json:
        show.as_json({"live": list(let)})
    elif let:
        show.out().print(say("command.go_live.done", services=Several(tuple(map(ServiceKey, let)))))
    else:
        show.out().print(say("command.go_live.nothing"))


def pause(
    service: Key,
    until: Annotated[
        str,
        typer.Option("--until", metavar="WHEN"),
    ],
    reason: Why,
    clinic: Clinic = None,
    json: Json = False,
) -> None:
    """Mette in pausa un servizio: fino ad allora non parte da solo; poi riprende senza che nessuno faccia niente."""
    end = _instant(until)
    now = datetime.now(UTC)
    with _saying() as connection:
        activity.pause(connection, service, until=end, actor=person(), reason=reason, clinic=clinic, as_of=now)
    if json:
        show.as_json({"service": service, "clinic": clinic, "until": end.isoformat()})
        return
    where = clinic or say("all_clinics")
    show.out().print(say("command.pause.done", service=ServiceKey(service), until=Instant(end), where=where))


def resume(service: Key, reason: Why, clinic: Clinic = None, json: Json = False) -> None:
    """Fa riprendere subito un servizio in pausa."""
    now = datetime.now(UTC)
    with _saying() as connection:
        ended = activity.resume(connection, service, actor=person(), reason=reason, clinic=clinic, as_of=now)
    if json:
        show.as_json({"service": service, "clinic": clinic, "resumed": ended})
        return
    name = "command.resume.done" if ended else "command.resume.nothing"
    show.out().print(say(name, service=ServiceKey(service), where=clinic or say("all_clinics")))


@contextmanager
def _saying() -> Iterator[sa.Connection]:
    """A transaction in which it is said; what cannot be said was a wrong usage, and nothing was changed."""
    try:
        with opened() as installation, installation.engine.begin() as connection:
            yield connection
    except activity.SwitchError as error:
        raise typer.BadParameter(show.told().reason(error.reason)) from None


def _instant(given: str) -> datetime:
    try:
        instant = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(say("command.pause.until", given=given)) from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=ROME)).astimezone(UTC)
