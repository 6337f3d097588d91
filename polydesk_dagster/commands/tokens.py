"""``polydesk tokens``: which programs may book for their visitors or ask the documents, and what they may do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.ask import Role
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.front import tokens
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.settings import person
from polydesk_dagster.values import Instant

app = typer.Typer(help="I programmi che prenotano per i visitatori o interrogano i documenti.", no_args_is_help=True)

Why = Annotated[str, typer.Option("--reason", metavar="REASON")]

ORDINARY = [Scope.FIND, Scope.HOLD, Scope.BOOK, Scope.CHANGE]
"""What a front end may do unless it is said; who a visitor is, it may not say."""


@app.command()
def issue(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    reason: Why,
    scope: Annotated[list[Scope] | None, typer.Option()] = None,
    clinic: Annotated[list[str] | None, typer.Option(metavar="CODE")] = None,
    role: Annotated[Role | None, typer.Option()] = None,
    days: Annotated[int, typer.Option()] = tokens.LIFE.days,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Emette un gettone e lo stampa, questa volta sola."""
    now = datetime.now(UTC)
    with opened() as installation, installation.engine.begin() as connection:
        token = tokens.issue(
            connection,
            name=name,
            scopes=scope or ([Scope.ASK] if role else ORDINARY),
            clinics=clinic or [],
            role=role,
            who=person(),
            why=reason,
            as_of=now,
            life=timedelta(days=days),
        )
    if json:
        show.as_json({"name": name, "token": token})
        return
    show.out().print(say("command.tokens.issued", name=name, until=Instant(now + timedelta(days=days))))
    show.out().print(token, soft_wrap=True, highlight=False)


@app.command("list")
def list_(json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Elenca i gettoni emessi, anche revocati e scaduti; il gettone stesso non si rivede."""
    with opened() as installation, installation.engine.connect() as connection:
        found = tokens.listed(connection)
    if json:
        fields: tuple[str, ...] = ("id", "name", "scopes", "clinics", "role", "issued_at", "issued_by", "reason")
        fields += ("expires_at", "revoked_at")
        show.as_json([{field: getattr(each, field) for field in fields} for each in found])
        return
    columns = tuple(
        say(f"command.tokens.{key}")
        for key in (
            "number",
            "name",
            "scopes",
            "clinics",
            "role",
            "issued_at",
            "issued_by",
            "why",
            "until",
            "revoked_at",
        )
    )
    t = show.told()
    value = t.value
    rows = [
        (
            str(each.id),
            each.name,
            ", ".join(each.scopes),
            ", ".join(each.clinics) or say("command.users.everywhere"),
            t.term("role", each.role) if each.role else "",
            value(Instant(each.issued_at)),
            each.issued_by,
            each.reason,
            value(Instant(each.expires_at)),
            value(Instant(each.revoked_at) if each.revoked_at else None),
        )
        for each in found
    ]
    show.table(None, columns, rows)


@app.command()
def revoke(number: Annotated[int, typer.Argument(metavar="NUMBER")], reason: Why) -> None:
    """Revoca un gettone: da adesso non entra più."""
    with opened() as installation, installation.engine.begin() as connection:
        tokens.revoke(connection, number, who=person(), why=reason, as_of=datetime.now(UTC))
    show.out().print(say("command.tokens.revoked", number=number))
