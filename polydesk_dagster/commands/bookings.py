"""``polydesk bookings``: payments for times that were gone, and what becomes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.settings import person
from polydesk_dagster.values import Money

app = typer.Typer(no_args_is_help=True, add_completion=False)
payments = typer.Typer(no_args_is_help=True, add_completion=False)
app.add_typer(payments, name="payments")


class Resolution(StrEnum):
    BOOKED = "booked"
    REFUNDED = "refunded"
    UNPAID = "unpaid"


@payments.command("list")
def listed(
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elenca i pagamenti che aspettano una persona."""
    from polydesk_dagster.clinic.bookings.payments import cases

    with opened() as installation, installation.engine.connect() as connection:
        waiting = cases(connection, clinic)
    if json:
        show.as_json(
            [
                {
                    "id": case.id,
                    "clinic": case.clinic,
                    "kind": case.kind,
                    "payment_reference": case.reference,
                    "starts_at": case.at.at.isoformat(),
                    "service": case.service,
                    "patient": case.patient_id,
                    "contacts": case.contacts,
                    "price": None if case.price is None else str(case.price),
                    "opened_at": case.opened_at.at.isoformat(),
                }
                for case in waiting
            ]
        )
        return
    if not waiting:
        show.out().print(say("command.bookings.no_payments"))
        return
    t = show.told()
    rows = [
        (
            str(case.id),
            case.clinic,
            t.term("payment_case", case.kind),
            case.reference,
            t.value(case.at),
            case.service,
            case.patient,
            ", ".join(case.contacts),
            "" if case.price is None else t.value(Money(case.price)),
        )
        for case in waiting
    ]
    titles = ("number", "clinic", "why", "payment_reference", "when", "service", "patient", "contacts", "amount")
    show.table(None, show.columns(*titles), rows)


@payments.command()
def settle(
    number: Annotated[int, typer.Argument()],
    resolution: Annotated[Resolution, typer.Argument()],
) -> None:
    """Dice che cosa è stato di un pagamento."""
    from polydesk_dagster.clinic.bookings import payments as rules

    with opened() as installation, installation.engine.begin() as connection:
        done = rules.settle(connection, number, resolution=resolution.value, actor=person(), as_of=datetime.now(UTC))
    show.out().print(say("command.bookings.settled" if done else "command.bookings.no_such_payment", number=number))
    raise typer.Exit(0 if done else 3)
