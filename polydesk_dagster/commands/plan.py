"""``polydesk plan``: see what a service would change, apply exactly that, and take it back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from polydesk_dagster.changes import listed, plans, registry
from polydesk_dagster.changes import show as rows_of
from polydesk_dagster.changes.assign import assign
from polydesk_dagster.changes.hold import hold as take_out
from polydesk_dagster.changes.hold import only as leave
from polydesk_dagster.changes.hold import release
from polydesk_dagster.changes.kind import FINDINGS
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.quarantine import set_aside
from polydesk_dagster.changes.quarantine import settle as settle_record
from polydesk_dagster.changes.reverse import undo as take_back
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.clinic.bookings import emergency
from polydesk_dagster.commands import show
from polydesk_dagster.commands.files import private_file
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import EXIT_STATUS, Outcome, Report
from polydesk_dagster.settings import person
from polydesk_dagster.sources.practice import importing
from polydesk_dagster.values import Count, Instant

app = typer.Typer(no_args_is_help=True, add_completion=False)

Id = Annotated[int, typer.Argument(metavar="ID")]
Json = Annotated[bool, typer.Option("--json")]
Rows = Annotated[list[int], typer.Argument(metavar="ROW…")]
Why = Annotated[
    str | None,
    typer.Option(metavar="TEXT"),
]

SHOWN = 200
"""Rows that a terminal is given; a CSV holds them all."""


@app.command("list")
def list_(
    service: Annotated[str | None, typer.Option(metavar="KEY")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    everything: Annotated[bool, typer.Option("--all")] = False,
    json: Json = False,
) -> None:
    """I piani che aspettano qualcuno o che qualcuno ha deciso, dal più recente; con --all anche gli altri."""
    with opened() as installation, installation.engine.connect() as connection:
        found = listed.latest(connection, service=service, limit=limit, routine=everything)
    if json:
        show.as_json([_as_object(plan) for plan in found])
        return
    t = show.told()
    show.table(
        t.label("table", "plans"),
        show.columns("plan", "service", "what", "clinic", "made_at", "state", "rows", "failed_guards"),
        [
            (
                plan.id,
                t.service(plan.service),
                t.term("kind", plan.kind),
                plan.clinic,
                t.value(Instant(plan.created_at)),
                t.term("plan_state", plan.standing),
                t.counts(plan.counts, preview=plan.state == "ready", kind=plan.kind),
                ", ".join(guard.name for guard in plan.speaking_guards),
            )
            for plan in found
        ],
    )


@app.command("show")
def show_(
    plan_id: Id,
    csv: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Tutte le righe di un piano, prima e dopo."""
    with opened() as installation, installation.engine.connect() as connection:
        plan = _load(installation, plan_id)
        kind = registry.kind(plan.kind)
        if csv is not None:
            with private_file(csv) as file:
                written = rows_of.write_csv(connection, plan, kind, file, say=show.told().reason)
            if not json:
                show.out().print(say("command.plan.written", rows=Count("rows", written), file=str(csv)))
                return
            show.as_json({**_as_object(plan), "csv": str(csv), "written": written})
            return
        if json:
            rows = [row.as_dict() for row in rows_of.rows(connection, plan, kind)]
            show.as_json({**_as_object(plan), "rows": rows})
            return
        _tell(plan)
        first = list(rows_of.rows(connection, plan, kind, limit=SHOWN))
        t = show.told()
        cells = [
            (
                row.ordinal,
                t.term("action", row.told),
                t.value(row.key),
                t.value(rows_of.difference(row)),
                t.value(because) if (because := rows_of.because(row)) is not None else "",
            )
            for row in first
        ]
        show.table(None, show.columns("row", "action", "what", "difference", "why"), cells)
        rest = plan.writes + plan.tally.get("conflict", 0) - len(first)
        if rest > 0:
            show.out().print(say("command.plan.more", count=rest))


@app.command("quarantine")
def quarantine_(
    service: Annotated[str | None, typer.Option(metavar="KEY")] = None,
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    limit: Annotated[int, typer.Option(min=1)] = SHOWN,
    everything: Annotated[bool, typer.Option("--all")] = False,
    json: Json = False,
) -> None:
    """I record delle fonti che non si sono potuti leggere, finché la fonte non li corregge."""
    with opened() as installation, installation.engine.connect() as connection:
        found = set_aside(connection, service=service, clinic=clinic, settled=everything, limit=limit)
    if json:
        show.as_json(
            [
                {
                    **asdict(each),
                    "why": each.why.as_dict(),
                    "message": show.told().reason(each.why),
                    "since": each.since.isoformat(),
                    "last_seen": each.last_seen.isoformat(),
                }
                for each in found
            ]
        )
        return
    if not found:
        show.out().print(say("command.plan.no_quarantine"))
        return
    t = show.told()
    cells = [
        (
            each.number,
            t.service(each.service),
            t.term("kind", each.kind) if each.kind else "",
            each.clinic,
            t.value(each.key),
            t.reason(each.why),
            t.value(Instant(each.since)),
        )
        for each in found
    ]
    titles = show.columns("number", "service", "what", "clinic", "record", "why", "since")
    show.table(t.label("table", "records_waiting"), titles, cells)


@app.command("settle")
def settle_(
    number: Annotated[int, typer.Argument(metavar="NUMBER")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT")],
    undo: Annotated[bool, typer.Option("--undo")] = False,
    json: Json = False,
) -> None:
    """Lascia fuori un record in quarantena, finché la fonte non lo manda diverso."""
    with opened() as installation, installation.engine.begin() as connection:
        settle_record(connection, number, actor=person(), reason=reason, as_of=datetime.now(UTC), undo=undo)
    if json:
        show.as_json({"record": number, "left_out": not undo})
    else:
        show.out().print(say("command.plan.waits_again" if undo else "command.plan.left_out", record=number))


@app.command("apply")
def apply_(
    plan_id: Id,
    reason: Why = None,
    past_guard: Annotated[list[str] | None, typer.Option(metavar="NAME")] = None,
    confirm: Annotated[str | None, typer.Option(metavar="PHRASE")] = None,
    hold: Annotated[list[int] | None, typer.Option(metavar="ROW")] = None,
    only: Annotated[list[int] | None, typer.Option(metavar="ROW")] = None,
    json: Json = False,
) -> None:
    """Applica esattamente le righe di un piano, o dice perché no; con --hold lascia fuori quelle nominate, con --only
    applica soltanto quelle."""
    with opened() as installation:
        plan = _load(installation, plan_id)
        with _alone(installation, plan) as free:
            if free and hold:
                plan = _cut(installation, plan, take_out, hold, reason, json=json)
            if free and only:
                plan = _cut(installation, plan, leave, only, reason, json=json)
            report = _settle(installation, plan, reason, confirm, past_guard or ()) if free else plans.busy(plan)
        what = say("command.plan.head", plan=plan.id)
        _answer(plan, report, what, json=json)


@app.command("hold")
def hold_(plan_id: Id, rows: Rows, reason: Why = None, json: Json = False) -> None:
    """Trattiene righe di un piano: il resto si applica, quelle aspettano qui e nei piani che verranno."""
    with opened() as installation:
        plan = _load(installation, plan_id)
        with installation.engine.begin() as connection:
            report = take_out(connection, plan_id, rows, as_of=datetime.now(UTC), actor=person(), reason=reason)
        _answer(plan, report, say("command.plan.head", plan=plan.id), json=json)


@app.command("release")
def release_(plan_id: Id, rows: Rows, reason: Why = None, json: Json = False) -> None:
    """Rimette nel piano righe che qualcuno tratteneva."""
    with opened() as installation:
        plan = _load(installation, plan_id)
        with installation.engine.begin() as connection:
            report = release(connection, plan_id, rows, as_of=datetime.now(UTC), actor=person(), reason=reason)
        _answer(plan, report, say("command.plan.head", plan=plan.id), json=json)


@app.command("assign")
def assign_(
    plan_id: Id,
    row: Annotated[int, typer.Argument(metavar="ROW")],
    record: Annotated[str, typer.Argument(metavar="NAME")],
    reason: Annotated[str, typer.Option(metavar="TEXT")],
    json: Json = False,
) -> None:
    """Dice che una riga è un record che abbiamo già: lo cambia, invece di aggiungerne un altro."""
    with opened() as installation:
        plan = _load(installation, plan_id)
        with installation.engine.begin() as connection:
            report = assign(connection, plan_id, row, record, as_of=datetime.now(UTC), actor=person(), reason=reason)
        _answer(plan, report, say("command.plan.head", plan=plan.id), json=json)


def _cut(
    installation: Installation,
    plan: Plan,
    rule: Callable[..., Report],
    rows: Collection[int],
    reason: str | None,
    *,
    json: bool,
) -> Plan:
    """The plan without some of its rows; ends the command where they cannot be left out."""
    with installation.engine.begin() as connection:
        report = rule(connection, plan.id, rows, as_of=datetime.now(UTC), actor=person(), reason=reason)
    if report.outcome is Outcome.REFUSED:
        _answer(plan, report, say("command.plan.head", plan=plan.id), json=json)
    return _load(installation, plan.id)


def _settle(
    installation: Installation, plan: Plan, reason: str | None, confirm: str | None, past_guards: Collection[str]
) -> Report:
    as_of = datetime.now(UTC)
    if plan.service in emergency.VERBS and plan.undoes is None:
        given = emergency.Press(reason or "", confirm or "", person(), plan.id)
        with installation.engine.begin() as connection:
            return emergency.settle(connection, plan, given, as_of=as_of, past_guards=past_guards)
    if plan.undoes is not None and (refusal := _without_reason(plan, reason)) is not None:
        return refusal
    if importing.is_part(plan):
        with installation.engine.begin() as connection:
            whole = importing.load(connection, plan.id)
            return importing.take(
                connection, whole, as_of=as_of, actor=person(), reason=reason, past_guards=past_guards
            )
    return settle(
        installation.engine,
        registry.kind(plan.kind),
        Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope),
        plan,
        as_of=as_of,
        actor=person(),
        reason=reason,
        past_guards=past_guards,
    )


def _without_reason(plan: Plan, reason: str | None) -> Report | None:
    """Why what a dangerous service did is not taken back without a word; None for every other plan."""
    return emergency.without_reason(plan.clinic, reason or "") if plan.service in emergency.VERBS else None


@app.command("undo")
def undo_(
    plan_id: Id,
    reason: Why = None,
    preview: Annotated[bool, typer.Option("--preview")] = False,
    json: Json = False,
) -> None:
    """Riporta indietro ciò che un piano ha cambiato; ciò che è cambiato dopo resta e viene nominato."""
    with opened() as installation:
        plan = _load(installation, plan_id)
        with _alone(installation, plan) as free:
            if not preview and (refusal := _without_reason(plan, reason)) is not None:
                report = refusal
            elif free:
                with installation.engine.begin() as connection:
                    report = take_back(
                        connection,
                        plan_id,
                        as_of=datetime.now(UTC),
                        actor=person(),
                        reason=reason,
                        preview=preview,
                    )
            else:
                report = plans.busy(plan)
        what = say("command.plan.undo", plan=plan.id)
        if report.plan_id not in {None, plan.id}:
            what = say("command.plan.undo_by", plan=plan.id, by=report.plan_id)
        _answer(plan, report, what, json=json)


def _load(installation: Installation, plan_id: int) -> Plan:
    with installation.engine.connect() as connection:
        try:
            return plans.load(connection, plan_id)
        except LookupError:
            raise typer.BadParameter(say("reason.unknown_plan", plan=plan_id)) from None


@contextmanager
def _alone(installation: Installation, plan: Plan) -> Iterator[bool]:
    """The lock that a run of the service would hold."""
    with exclusive(installation.engine, plan.service, plan.clinic) as free:
        yield free


def _as_object(plan: Plan) -> dict[str, Any]:
    return {
        "plan_id": plan.id,
        "service": plan.service,
        "kind": plan.kind,
        "clinic": plan.clinic,
        "state": plan.standing,
        "undoes": plan.undoes,
        "counts": plan.counts.as_dict(),
        "findings": {name: plan.tally[name] for name in FINDINGS if plan.tally.get(name)},
        "guards": [{**guard.as_dict(), "text": show.told().reason(guard.reason)} for guard in plan.guards],
        "fingerprint": plan.fingerprint,
        "snapshot": plan.snapshot,
        "created_at": plan.created_at.isoformat(),
        "expires_at": plan.expires_at.isoformat(),
        "applied_at": plan.applied_at.isoformat() if plan.applied_at else None,
        "applied_by": plan.applied_by,
        "reason": plan.reason,
    }


def _tell(plan: Plan) -> None:
    console = show.out()
    t = show.told()
    head = (say("command.plan.head", plan=plan.id), "bold")
    where = (t.service(plan.service), plan.clinic or say("all_clinics"), t.term("plan_state", plan.standing))
    console.print(Text.assemble(head, "".join(f" · {each}" for each in where)))
    console.print(t.counts(plan.counts, preview=plan.state == "ready", kind=plan.kind))
    for finding in FINDINGS:
        if plan.tally.get(finding):
            console.print(f"  {t.label('figure', f'finding.{finding}')}: {plan.tally[finding]}")
    for guard in plan.failed_guards:
        console.print(Text.assemble("  ", (f"✗ {guard.name}", "red"), f": {t.reason(guard.reason)}"))
    for guard in plan.holding_guards:
        console.print(Text.assemble("  ", (f"✋ {guard.name}", "yellow"), f": {t.reason(guard.reason)}"))


def _answer(plan: Plan, report: Report, what: str, *, json: bool) -> None:
    if json:
        show.as_json(
            {
                "plan_id": report.plan_id or plan.id,
                "service": plan.service,
                "clinic": plan.clinic,
                "outcome": report.outcome,
                "counts": report.counts.as_dict(),
                "reasons": [{**reason.as_dict(), "text": show.told().reason(reason)} for reason in report.reasons],
            }
        )
    else:
        console = show.out()
        t = show.told()
        counts = t.counts(report.counts, preview=report.preview, kind=plan.kind)
        outcome = Text(t.outcome(report.outcome, preview=report.preview), show.COLOURS[report.outcome])
        console.print(Text.assemble((what, "bold"), ": ", outcome, "  ", counts))
        for reason in report.reasons:
            console.print(f"  {show.told().reason(reason)}")
    raise typer.Exit(EXIT_STATUS[report.outcome])
