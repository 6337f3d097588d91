"""``polydesk messages templates``: the texts in force, their versions, what a draft would be, and the plans that change
them."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say, told
from polydesk_dagster.values import Instant, Term

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polydesk_dagster.changes import Plan
    from polydesk_dagster.clinic.messages.drafts import Which
    from polydesk_dagster.clinic.messages.templates import Finding, Text

app = typer.Typer(no_args_is_help=True, add_completion=False)


class Variant(StrEnum):
    plain = "plain"
    neutral = "neutral"


class Over(StrEnum):
    sms = "sms"
    email = "email"


class Speech(StrEnum):
    it = "it"
    de = "de"


Kind = Annotated[str, typer.Argument(metavar="KIND")]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")]
Channel = Annotated[Over, typer.Option(metavar="sms|email")]
Wording = Annotated[Variant, typer.Option(metavar="plain|neutral")]
Language = Annotated[Speech, typer.Option(metavar="it|de")]
Subject = Annotated[str | None, typer.Option(metavar="TEXT")]
Clinic = Annotated[str | None, typer.Option(metavar="CODE")]
Json = Annotated[bool, typer.Option("--json")]


@app.command("list")
def listed(clinic: Clinic = None, json: Json = False) -> None:
    """Elenca i testi in vigore e di chi sono: di fabbrica, della catena, della clinica."""
    from polydesk_dagster.clinic.messages import drafts

    with opened() as installation, installation.engine.connect() as connection:
        found = drafts.in_force(connection, clinic)
    if json:
        show.as_json([
            {"kind": each.which.kind, "variant": each.which.variant, "channel": each.which.channel,
             "language": each.which.language, "layer": each.layer, "subject": each.text.subject,
             "body": each.text.body}
            for each in found
        ])  # fmt: skip
        return
    t = told()
    rows = [
        (
            t.term("message_kind", each.which.kind),
            t.term("message_variant", each.which.variant),
            t.term("channel", each.which.channel),
            each.which.language,
            t.term("message_layer", each.layer),
            (each.text.subject or each.text.body)[:60],
        )
        for each in found
    ]
    columns = ("message_kind", "message_variant", "message_channel", "message_language", "message_layer")
    show.table(say("table.messages_templates"), show.columns(*columns, "message_text"), rows)


@app.command()
def versions(
    kind: Kind,
    channel: Channel,
    variant: Wording = Variant.plain,
    language: Language = Speech.it,
    clinic: Clinic = None,
) -> None:
    """Elenca le versioni di un testo, dalla più recente: «restore» ne rimette in vigore una."""
    from polydesk_dagster.clinic.messages import drafts

    which = _which(kind, variant, channel, language)
    with opened() as installation, installation.engine.connect() as connection:
        found = drafts.versions(connection, clinic, which)
    t = told()
    rows = [
        (
            past.number,
            t.value(Instant(past.written_at, "Europe/Rome")),
            t.term("message_layer", past.layer),
            t.text("template_withdrawn") if past.text is None else (past.text.subject or past.text.body),
        )
        for past in found
    ]
    table = say("table.messages_versions", kind=Term("message_kind", kind))
    show.table(table, show.columns("number", "message_at", "message_layer", "message_text"), rows)


@app.command("try")
def tried(
    kind: Kind,
    file: File,
    channel: Channel,
    variant: Wording = Variant.plain,
    language: Language = Speech.it,
    subject: Subject = None,
    clinic: Clinic = None,
) -> None:
    """Prova un testo senza cambiare nulla: consigli, quanto costa, come lo leggerebbero tre pazienti veri."""
    from polydesk_dagster.clinic.messages import drafts

    which, text = _which(kind, variant, channel, language), _text(channel, subject, file)
    with opened() as installation, installation.engine.connect() as connection:
        draft = drafts.look(connection, clinic, which, text, datetime.now(UTC))
    _advise(draft.findings)
    t = told()
    for sample in draft.samples:
        show.out().print(f"── {sample.clinic}")
        said = t.reason(sample.problem) if sample.problem else f"{sample.subject or ''}\n{sample.body}".strip()
        show.out().print(said, soft_wrap=True)
    if draft.segments is not None:
        show.out().print(say("command.messages.size", segments=draft.segments))
    if draft.each is not None:
        show.out().print(say("command.messages.price", each=draft.each, month=draft.month))
    if any(finding.error for finding in draft.findings):
        raise typer.Exit(1)


@app.command()
def write(
    kind: Kind,
    file: File,
    channel: Channel,
    variant: Wording = Variant.plain,
    language: Language = Speech.it,
    subject: Subject = None,
    clinic: Clinic = None,
) -> None:
    """Prepara il piano che cambia un testo, con i consigli su come è scritto; lo applica «polydesk plan apply»."""
    from polydesk_dagster.clinic.messages import custom

    text = _text(channel, subject, file)
    with opened() as installation, installation.engine.begin() as connection:
        plan, found = custom.propose(
            connection, clinic, kind, variant.value, channel.value, language.value, text, as_of=datetime.now(UTC)
        )
    _advise(found)
    planned(plan)


@app.command()
def restore(version: Annotated[int, typer.Argument(metavar="VERSION")]) -> None:
    """Prepara il piano che rimette in vigore una versione precedente."""
    from polydesk_dagster.clinic.messages import custom

    with opened() as installation, installation.engine.begin() as connection:
        plan, found = custom.restore(connection, version, as_of=datetime.now(UTC))
    _advise(found)
    planned(plan)


@app.command()
def withdraw(
    kind: Kind,
    channel: Channel,
    variant: Wording = Variant.plain,
    language: Language = Speech.it,
    clinic: Clinic = None,
) -> None:
    """Prepara il piano che toglie un testo personalizzato: torna quello della catena, o di fabbrica."""
    from polydesk_dagster.clinic.messages import custom

    which = _which(kind, variant, channel, language)
    with opened() as installation, installation.engine.begin() as connection:
        planned(custom.withdraw(connection, clinic, which, as_of=datetime.now(UTC)))


def _which(kind: str, variant: Variant, channel: Over, language: Speech) -> Which:
    from polydesk_dagster.clinic.messages.drafts import Which

    return Which(kind, variant.value, channel.value, language.value)


def _text(channel: Over, subject: str | None, file: Path) -> Text:
    from polydesk_dagster.clinic.messages.templates import Text

    if (channel is Over.email) != (subject is not None):
        raise typer.BadParameter(say("command.messages.subject"))
    return Text(subject, file.read_text(encoding="utf-8").rstrip("\n"))


def _advise(found: Sequence[Finding]) -> None:
    for finding in found:
        show.out().print(told().reason(finding.reason))


def planned(plan: Plan) -> None:
    """Say which plan was made, or that there is nothing to change."""
    show.out().print(say("command.messages.planned" if plan.counts.changed else "command.messages.same", plan=plan.id))
