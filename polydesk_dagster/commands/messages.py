"""``polydesk messages``: what is in doubt, who has to be called, who wants none, how the texts look."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from polydesk_dagster.commands import message_texts, reminders, show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say, told
from polydesk_dagster.values import Term

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polydesk_dagster.clinic.messages.kinds import Channel
    from polydesk_dagster.clinic.messages.story import Step

app = typer.Typer(no_args_is_help=True, add_completion=False)

app.add_typer(message_texts.app, name="templates")
app.add_typer(reminders.app, name="reminders")

Json = Annotated[bool, typer.Option("--json")]


Who = Annotated[str, typer.Option(metavar="NAME")]
Why = Annotated[str, typer.Option(metavar="REASON")]


class Shown(StrEnum):
    reminder = "reminder"
    preparation = "preparation"


def _titles(*keys: str) -> Sequence[str]:
    return [told().label("column", key) for key in keys]


@app.command()
def unknown(json: Json = False) -> None:
    """Elenca i messaggi di cui non si sa se siano arrivati."""
    from polydesk_dagster.clinic.messages import health
    from polydesk_dagster.clinic.messages.text import mask_address

    with opened() as installation, installation.engine.connect() as connection:
        doubts = health.unknown(connection)
    names = ("id", "clinic", "kind", "channel", "address", "since")
    if json:
        show.as_json([
            dict(zip(names, (d.id, d.clinic, d.kind, d.channel, mask_address(d.address), d.since.at.isoformat()),
                     strict=True))
            for d in doubts
        ])  # fmt: skip
        return
    t = told()
    rows = [
        (
            doubt.id,
            doubt.clinic,
            t.term("message_kind", doubt.kind),
            t.term("channel", doubt.channel),
            mask_address(doubt.address),
            t.value(doubt.since),
        )
        for doubt in doubts
    ]
    columns = _titles("number", "clinic", "message_kind", "message_channel", "message_address", "message_since")
    show.table(say("table.messages_unknown"), columns, rows)


@app.command()
def settle(
    number: Annotated[int, typer.Argument(metavar="ID")],
    arrived: Annotated[bool, typer.Option("--arrived/--not-arrived")],
    who: Who,
) -> None:
    """Dice che ne è stato di un messaggio in dubbio: arrivato, o da mandare di nuovo."""
    from polydesk_dagster.clinic.messages import ledger

    with opened() as installation, installation.engine.begin() as connection:
        settled = ledger.settle(connection, number, arrived=arrived, who=who, at=datetime.now(UTC))
    if not settled:
        raise typer.BadParameter(say("command.messages.not_in_doubt", number=number))
    show.out().print(say("command.messages.noted"))


Address = Annotated[str, typer.Argument(metavar="ADDRESS")]


@app.command()
def stop(address: Address) -> None:
    """Annota che a un recapito non si deve più scrivere, di chiunque sia: vale dal prossimo messaggio."""
    from polydesk_dagster.clinic.messages import blocks

    channel, known = _read(address)
    with opened() as installation, installation.engine.begin() as connection:
        blocks.stop(connection, channel, [known], datetime.now(UTC))
    show.out().print(say("command.messages.stopped"))


@app.command()
def start(address: Address, who: Who, why: Why) -> None:
    """Toglie il blocco di un recapito, qualunque ne fosse il motivo; resta scritto chi lo ha tolto e perché."""
    from polydesk_dagster.clinic.messages import blocks

    channel, known = _read(address)
    with opened() as installation, installation.engine.begin() as connection:
        blocked = blocks.lift(connection, channel, [known], who=who, why=why, as_of=datetime.now(UTC))
    show.out().print(say("command.messages.noted" if blocked else "command.messages.not_blocked"))


def _read(address: str) -> tuple[Channel, str]:
    from polydesk_dagster.clinic.messages import preferences

    found = preferences.read_address(address)
    if found is None:
        raise typer.BadParameter(say("command.messages.no_address"))
    return found


@app.command()
def calls(
    json: Json = False,
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    done: Annotated[int | None, typer.Option(metavar="ID")] = None,
    outcome: Annotated[str | None, typer.Option(metavar="OUTCOME")] = None,
    who: Annotated[str | None, typer.Option(metavar="NAME")] = None,
) -> None:
    """Elenca gli appuntamenti per cui la segreteria deve telefonare; con --done ne chiude uno."""
    from polydesk_dagster.clinic.messages import calls as listed

    now = datetime.now(UTC)
    if done is not None:
        if not (outcome and who):
            raise typer.BadParameter(say("command.messages.call_needs"))
        with opened() as installation, installation.engine.begin() as connection:
            closed = listed.done(connection, done, who=who, outcome=outcome, at=now)
        if not closed:
            raise typer.BadParameter(say("command.messages.no_call", number=done))
        show.out().print(say("command.messages.noted"))
        return
    with opened() as installation, installation.engine.connect() as connection:
        found = listed.to_make(connection, now, clinic)
    if json:
        show.as_json([
            {"id": c.id, "appointment_id": c.appointment_id, "clinic": c.clinic, "kind": c.kind, "reason": c.reason,
             "starts_at": c.start.at.isoformat(), "patient": c.patient, "guardian": c.guardian, "phones": c.phones,
             "service": c.service}
            for c in found
        ])  # fmt: skip
        return
    t = told()
    rows = [
        (
            call.id,
            call.clinic,
            t.value(call.start),
            call.guardian or call.patient,
            ", ".join(call.phones) or t.value(None),
            call.service,
            t.term("message_kind", call.kind),
            t.text(f"reason.message_{call.reason}"),
        )
        for call in found
    ]
    columns = _titles(
        *("number", "clinic", "message_start", "call_person", "call_phones", "call_service", "message_kind", "reason")
    )
    show.table(say("table.messages_calls"), columns, rows)


@app.command()
def replies(
    json: Json = False,
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    done: Annotated[int | None, typer.Option(metavar="ID")] = None,
    who: Annotated[str | None, typer.Option(metavar="NAME")] = None,
) -> None:
    """Elenca le risposte dei pazienti che solo una persona capisce; con --done ne chiude una."""
    from polydesk_dagster.clinic.messages import replies as listed

    if done is not None:
        if not who:
            raise typer.BadParameter(say("command.messages.reply_needs"))
        with opened() as installation, installation.engine.begin() as connection:
            closed = listed.handled(connection, done, who=who, at=datetime.now(UTC))
        if not closed:
            raise typer.BadParameter(say("command.messages.no_reply", number=done))
        show.out().print(say("command.messages.noted"))
        return
    with opened() as installation, installation.engine.connect() as connection:
        found = listed.to_read(connection, clinic)
    if json:
        show.as_json([
            {"id": r.id, "clinic": r.clinic, "at": r.at.at.isoformat(), "phone": r.phone, "patients": r.patients,
             "text": r.text, "reason": r.reason}
            for r in found
        ])  # fmt: skip
        return
    t = told()
    rows = [
        (
            reply.id,
            reply.clinic or "",
            t.value(reply.at),
            ", ".join(reply.patients),
            reply.phone or "",
            reply.text,
            t.text(f"reason.reply_{reply.reason}"),
        )
        for reply in found
    ]
    columns = _titles(
        *("number", "clinic", "message_at", "call_person", "call_phones", "message_text", "reason"),
    )
    show.table(say("table.messages_replies"), columns, rows)


@app.command()
def allow(
    kind: Annotated[Shown, typer.Argument(metavar="KIND")],
    count: Annotated[int, typer.Option(metavar="NUMBER")],
    who: Who,
    why: Why,
) -> None:
    """Lascia partire i messaggi di un giorno insolito, tanti quanti se ne sono visti e non di più."""
    from polydesk_dagster.clinic.messages import volume

    with opened() as installation, installation.engine.begin() as connection:
        volume.allow(connection, kind.value, count, who=who, why=why, as_of=datetime.now(UTC))
    show.out().print(say("command.messages.noted"))


@app.command()
def closed(
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    tell: Annotated[bool, typer.Option("--tell")] = False,
    count: Annotated[int | None, typer.Option(metavar="NUMBER")] = None,
) -> None:
    """Elenca chi ha perso l'orario, per una chiusura o per turni cambiati, e che cosa leggerà; con --tell e il loro
    numero lo avvisa."""
    from polydesk_dagster.clinic.messages import closed as touched

    now = datetime.now(UTC)
    with opened() as installation, installation.engine.begin() as connection:
        found = touched.untold(connection, now, clinic)
        if tell and count != len(found):
            raise typer.BadParameter(say("command.messages.closed_count", count=len(found)))
        told_now = touched.tell(connection, found, now, clinic) if tell else 0
    if tell:
        show.out().print(say("command.messages.closed_told", count=told_now))
        return
    t = told()
    rows = [(each.clinic, t.value(each.start), each.patient, each.notice) for each in found]
    show.table(say("table.messages_closed"), _titles("clinic", "message_start", "call_person", "message_text"), rows)
    if rows:
        show.out().print(say("command.messages.closed_next", count=len(rows)))


@app.command()
def resend(number: Annotated[int, typer.Argument(metavar="ID")], who: Who, why: Why) -> None:
    """Manda di nuovo un messaggio, perché qualcuno lo vuole; una volta sola, e resta scritto chi e perché."""
    from polydesk_dagster.clinic.messages import again

    with opened() as installation, installation.engine.begin() as connection:
        new = again.resend(connection, number, who=who, why=why, at=datetime.now(UTC))
    show.out().print(say("command.messages.resent", number=new))


class About(StrEnum):
    appointment = "appointment"
    patient = "patient"


@app.command()
def why(
    about: Annotated[About, typer.Argument(metavar="appointment|patient")],
    number: Annotated[int, typer.Argument(metavar="ID")],
    json: Json = False,
) -> None:
    """Racconta che cosa è stato pianificato, mandato o no, quando e perché, di un appuntamento o di un paziente."""
    from polydesk_dagster.clinic.messages import story

    with opened() as installation, installation.engine.connect() as connection:
        found = story.of(connection, about.value, number)
    if json:
        show.as_json([
            {"at": step.at.at.isoformat(), "kind": step.kind, "what": step.what, "reason": step.reason,
             "channel": step.channel, "address": step.address, "start": step.start and step.start.at.isoformat(),
             "code": " ".join(filter(None, (step.answer, step.code))) or None}
            for step in found
        ])  # fmt: skip
        return
    t = told()
    rows = [
        (
            t.value(step.at),
            t.term("message_kind", step.kind) if step.kind else "",
            t.term("message_step", step.what),
            t.text(f"reason.message_{step.reason}") if step.reason else _details(step),
            t.term("channel", step.channel) if step.channel else "",
            step.address or "",
            t.value(step.start) if step.start else "",
        )
        for step in found
    ]
    columns = _titles(
        *("message_at", "message_kind", "message_step", "reason", "message_channel", "message_address"),
        "message_start",
    )
    show.table(say("table.messages_story", about=Term("message_about", about.value), number=number), columns, rows)


def _details(step: Step) -> str:
    if step.what == "called" and step.code:
        return told().term("call_outcome", step.code)
    return (step.code or "") if step.said is None else told().value(step.said)


@app.command()
def preview(
    kind: Annotated[Shown, typer.Argument(metavar="KIND")] = Shown.reminder,
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
) -> None:
    """Mostra i testi su tre appuntamenti veri, con i nomi mascherati."""
    from polydesk_dagster.clinic.messages.samples import samples

    with opened() as installation, installation.engine.connect() as connection:
        found = samples(connection, kind, datetime.now(UTC), clinic)
    for sample in found:
        t = told()
        size = "" if sample.size is None else f", {sample.size.segments} SMS {sample.size.encoding}"
        show.out().print(f"── {sample.clinic}, {t.term('channel', sample.channel)}{size}")
        text = t.reason(sample.problem) if sample.problem else f"{sample.subject or ''}\n{sample.body}".strip()
        show.out().print(text, soft_wrap=True)


@app.command()
def lint(json: Json = False) -> None:
    """Controlla i testi personalizzati e i nomi delle prestazioni: variabili, parole da non usare, lunghezza."""
    from polydesk_dagster.clinic.messages import sensitivity, templates

    with opened() as installation, installation.engine.connect() as connection:
        texts = templates.customised(connection)
        names = sensitivity.undecided(connection)
    t = told()
    found = [
        (text.clinic or say("all_clinics"), f"{text.kind} {text.variant} {text.channel} {text.language}", finding)
        for text in texts
        for finding in templates.lint(text.kind, text.variant, text.channel, text.subject, text.body)
    ]
    found += [(name.clinic, name.code, sensitivity.finding(name)) for name in names]
    if json:
        show.as_json([
            {"clinic": place, "template": text, "error": f.error, "code": f.reason.code, "message": t.reason(f.reason)}
            for place, text, f in found
        ])  # fmt: skip
    else:
        rows = [(place, text, t.value(f.error), t.reason(f.reason)) for place, text, f in found]
        show.table(say("table.messages_lint"), _titles("clinic", "message_text", "message_error", "reason"), rows)
    raise typer.Exit(1 if any(f.error for *_, f in found) else 0)


@app.command()
def sensitive(
    code: Annotated[str, typer.Argument(metavar="SERVICE")],
    who: Who,
    clinic: Annotated[str, typer.Option(metavar="CODE")],
    named: Annotated[bool, typer.Option("--never-named/--may-be-named")],
) -> None:
    """Decide se una prestazione può essere nominata nei messaggi."""
    from polydesk_dagster.clinic.messages import sensitivity

    with opened() as installation, installation.engine.begin() as connection:
        decided = sensitivity.decide(connection, clinic, code, sensitive=named, who=who, at=datetime.now(UTC))
    if not decided:
        raise typer.BadParameter(say("command.messages.no_service", code=code, clinic=clinic))
    show.out().print(say("command.messages.noted"))
