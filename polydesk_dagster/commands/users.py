"""``polydesk users``: who comes through the door, and as what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.values import Instant
from polydesk_dagster.web import users
from polydesk_dagster.web.roles import Role

app = typer.Typer(no_args_is_help=True, add_completion=False)

Email = Annotated[str, typer.Argument(metavar="EMAIL")]
RoleOf = Annotated[Role, typer.Argument()]
Clinics = Annotated[
    list[str] | None,
    typer.Option("--clinic"),
]


@app.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elenca le persone, i ruoli, le cliniche e quando si sono viste l'ultima volta."""
    with opened() as installation, installation.engine.connect() as connection:
        people = users.listed(connection)
    if json:
        fields = ("email", "name", "role", "state", "clinics", "ways", "seen_at")
        show.as_json([{field: getattr(each, field) for field in fields} for each in people])
        return
    columns = (
        say("command.users.address"),
        say("command.users.name"),
        say("command.users.role"),
        say("command.users.state"),
        say("command.users.clinics"),
        say("command.users.ways"),
        say("command.users.seen"),
    )
    everywhere = say("command.users.everywhere")
    rows = [
        (
            each.email,
            each.name,
            each.role,
            show.told().term("record_state", each.state),
            ", ".join(each.clinics) or everywhere,
            ", ".join(each.ways) or "—",
            show.told().value(Instant(each.seen_at) if each.seen_at else None),
        )
        for each in people
    ]
    show.table(None, columns, rows)


@app.command()
def add(
    email: Email,
    role: RoleOf,
    name: Annotated[str, typer.Option()] = "",
    clinic: Clinics = None,
) -> None:
    """Aggiunge una persona e stampa il collegamento con cui sceglie la password."""
    now = datetime.now(UTC)
    with opened() as installation:
        with installation.engine.begin() as connection:
            user = users.add(connection, email, name or email.partition("@")[0], role, clinic or [], now)
            token = users.link(connection, user, "password", now, users.LINK_LIFE)
        _tell(installation, token)


@app.command("role")
def role_(email: Email, role: RoleOf, clinic: Clinics = None) -> None:
    """Cambia il ruolo e le cliniche di una persona; le sue sessioni finiscono."""
    with opened() as installation, installation.engine.begin() as connection:
        users.change_role(connection, email, role, clinic or [], datetime.now(UTC))
    show.out().print(say("command.users.changed", email=email, role=role.value))


@app.command()
def reset(email: Email) -> None:
    """Toglie la password e stampa il collegamento con cui sceglierne un'altra; riattiva chi era disabilitato."""
    with opened() as installation:
        with installation.engine.begin() as connection:
            token = users.reset(connection, email, datetime.now(UTC))
        _tell(installation, token)


@app.command()
def disable(email: Email) -> None:
    """Non lascia più entrare una persona; le sue sessioni finiscono adesso."""
    with opened() as installation, installation.engine.begin() as connection:
        users.disable(connection, email, datetime.now(UTC))
    show.out().print(say("command.users.disabled", email=email))


def _tell(installation: Installation, token: str) -> None:
    console = show.out()
    console.print(say("command.users.link", days=users.LINK_LIFE.days))
    console.print(f"  {installation.settings.address}/attiva?codice={token}", soft_wrap=True)
