"""``polydesk messages``: what is in doubt, who has to be called, who wants none, how the texts look."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import sqlalchemy as sa
import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say

if TYPE_CHECKING:
    from polydesk_dagster.clinic.messages.kinds import Channel

app = typer.Typer(help="I messaggi ai pazienti: dubbi, telefonate, chi non ne vuole, testi.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Una lista di oggetti JSON.")]


class Shown(StrEnum):
    reminder = "reminder"
    preparation = "preparation"


@app.command()
def unknown(json: Json = False) -> None:
    """Elenca i messaggi di cui non si sa se siano arrivati."""
    from polydesk_dagster.clinic.messages import health
    from polydesk_dagster.clinic.messages.text import mask_address

    with opened(create=False) as installation, installation.engine.connect() as connection:
        doubts = health.unknown(connection)
    rows = [
        (doubt.id, doubt.clinic, doubt.kind, doubt.channel, mask_address(doubt.address), doubt.since.isoformat())
        for doubt in doubts
    ]
    if json:
        names = ("id", "clinic", "kind", "channel", "address", "since")
        show.as_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    show.table(say("In dubbio", "In doubt"), ("Id", "Clinica", "Tipo", "Canale", "Recapito", "Da"), rows)


@app.command()
def settle(
    number: Annotated[int, typer.Argument(help="Il numero del messaggio.", metavar="ID")],
    arrived: Annotated[
        bool, typer.Option("--arrived/--not-arrived", help="È arrivato, oppure si può mandare di nuovo.")
    ],
    who: Annotated[str, typer.Option(help="Chi lo dice.", metavar="NOME")],
) -> None:
    """Dice che ne è stato di un messaggio in dubbio: arrivato, o da mandare di nuovo."""
    from polydesk_dagster.clinic.messages import ledger

    with opened(create=False) as installation, installation.engine.begin() as connection:
        settled = ledger.settle(connection, number, arrived=arrived, who=who, at=datetime.now(UTC))
    if not settled:
        raise typer.BadParameter(say(f"il messaggio {number} non è in dubbio", f"message {number} is not in doubt"))
    show.out().print(say("Annotato.", "Noted."))


Address = Annotated[str, typer.Argument(help="Un numero di telefono o un'email.", metavar="RECAPITO")]


@app.command()
def stop(address: Address) -> None:
    """Annota che a un recapito non si deve più scrivere, di chiunque sia: vale dal prossimo messaggio."""
    from polydesk_dagster.clinic.messages import preferences

    channel, known = _read(address)
    with opened(create=False) as installation, installation.engine.begin() as connection:
        preferences.receive(connection, channel, known, "STOP", datetime.now(UTC))
    show.out().print(say("Annotato: non si scrive più.", "Noted: nothing more will be written there."))


@app.command()
def start(address: Address) -> None:
    """Annota che a un recapito si può scrivere di nuovo, qualunque fosse il motivo per cui era bloccato."""
    from polydesk_dagster.clinic.messages import preferences

    channel, known = _read(address)
    with opened(create=False) as installation, installation.engine.begin() as connection:
        blocked = preferences.unblock(connection, channel, known)
    show.out().print(say("Annotato.", "Noted.") if blocked else say("Non era bloccato.", "It was not blocked."))


def _read(address: str) -> tuple[Channel, str]:
    from polydesk_dagster.clinic.messages import preferences

    found = preferences.read_address(address)
    if found is None:
        raise typer.BadParameter(say("non è un telefono né un'email", "neither a telephone nor an e-mail address"))
    return found


@app.command()
def calls(json: Json = False) -> None:
    """Elenca gli appuntamenti per cui la segreteria deve telefonare."""
    from polydesk_dagster.clinic.messages.kinds import WHY_WORDS

    with opened(create=False) as installation, installation.engine.connect() as connection:
        found = connection.execute(
            sa.text("""
                SELECT l.appointment_id, c.code AS clinic, l.kind, l.reason, l.starts_at
                FROM call_list l JOIN clinic c ON c.id = l.clinic_id
                WHERE l.state = 'open' ORDER BY l.starts_at, l.id""")
        ).all()
    if json:
        show.as_json([{**row._mapping, "starts_at": row.starts_at.isoformat()} for row in found])
        return
    rows = [(r.appointment_id, r.clinic, f"{r.starts_at:%d/%m %H:%M} UTC", WHY_WORDS[r.reason]) for r in found]
    show.table(say("Da chiamare", "To call"), ("Appuntamento", "Clinica", "Inizio", "Perché"), rows)


@app.command()
def preview(
    kind: Annotated[Shown, typer.Argument(help="Quale messaggio.", metavar="TIPO")] = Shown.reminder,
    clinic: Annotated[str | None, typer.Option(help="Solo questa clinica.", metavar="CODICE")] = None,
) -> None:
    """Mostra i testi su tre appuntamenti veri, con i nomi mascherati."""
    from polydesk_dagster.clinic.messages.samples import samples

    with opened(create=False) as installation, installation.engine.connect() as connection:
        found = samples(connection, kind, datetime.now(UTC), clinic)
    for sample in found:
        size = "" if sample.size is None else f", {sample.size.segments} SMS {sample.size.encoding}"
        show.out().print(f"── {sample.clinic}, {sample.channel}{size}")
        text = sample.problem or f"{sample.subject or ''}\n{sample.body}".strip()
        show.out().print(text, soft_wrap=True)


@app.command()
def lint(json: Json = False) -> None:
    """Controlla i testi personalizzati: variabili, parole da non usare, lunghezza degli SMS."""
    from polydesk_dagster.clinic.messages import templates

    with opened(create=False) as installation, installation.engine.connect() as connection:
        texts = connection.execute(
            sa.text("""
                SELECT coalesce(c.code, 'catena') AS clinic, t.kind, t.variant, t.channel, t.language, t.subject, t.body
                FROM message_template t LEFT JOIN clinic c ON c.id = t.clinic_id
                WHERE t.retired_at IS NULL ORDER BY 1, 2, 3, 4, 5""")
        ).all()
    found = [
        {"clinic": t.clinic, "template": f"{t.kind} {t.variant} {t.channel} {t.language}", "error": f.error,
         "message": f.message}
        for t in texts
        for f in templates.lint(t.kind, t.variant, t.channel, t.subject, t.body)
    ]  # fmt: skip
    if json:
        show.as_json(found)
    else:
        rows = [tuple(row.values()) for row in found]
        show.table(say("Testi", "Texts"), ("Clinica", "Testo", "Errore", "Che cosa"), rows)
    raise typer.Exit(1 if any(row["error"] for row in found) else 0)
