"""``polydesk messages reminders``: how long ahead people are reminded, by chain, clinic and service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.message_texts import planned
from polydesk_dagster.commands.show import say, told

app = typer.Typer(help="Quanto prima si ricordano gli appuntamenti.", no_args_is_help=True)

Clinic = Annotated[str | None, typer.Option(metavar="CODE")]
Service = Annotated[str | None, typer.Option(metavar="CODE")]


@app.command("list")
def listed(json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Elenca i piani dei promemoria; dove non ce n'è, si ricorda il giorno prima."""
    from polydesk_dagster.clinic.messages import plans

    with opened() as installation, installation.engine.connect() as connection:
        found = plans.listed(connection)
    if json:
        show.as_json([
            {"clinic": p.clinic, "service": p.service, "steps": p.written, "set_by": p.set_by,
             "set_at": p.set_at.at.isoformat()}
            for p in found
        ])  # fmt: skip
        return
    t = told()
    rows = [
        (p.clinic or say("all_clinics"), p.service or "", t.value(p.told), p.set_by, t.value(p.set_at)) for p in found
    ]
    columns = show.columns("clinic", "call_service", "reminder_steps", "set_by", "message_at")
    show.table(say("table.reminder_plans"), columns, rows)


@app.command("set")
def put(
    steps: Annotated[str, typer.Argument(metavar="STEPS")],
    who: Annotated[str, typer.Option(metavar="NAME")],
    clinic: Clinic = None,
    service: Service = None,
) -> None:
    """Prepara il piano di quando ricordare, per esempio «7d 2d 3h»: sette giorni, due giorni e tre ore prima."""
    from polydesk_dagster.clinic.messages import plans

    wanted = plans.read(steps)
    with opened() as installation, installation.engine.begin() as connection:
        planned(plans.propose(connection, clinic, service, wanted, who=who, at=datetime.now(UTC)))


@app.command()
def clear(clinic: Clinic = None, service: Service = None) -> None:
    """Prepara il piano che ne toglie uno: vale di nuovo quello più largo."""
    from polydesk_dagster.clinic.messages import plans

    with opened() as installation, installation.engine.begin() as connection:
        planned(plans.withdraw(connection, clinic, service, at=datetime.now(UTC)))
