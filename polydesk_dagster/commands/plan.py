"""``polydesk plan``: see what a service would change, apply exactly that, and take it back."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from polydesk_dagster.changes import plans, registry
from polydesk_dagster.changes import show as rows_of
from polydesk_dagster.changes.kind import ACTION_NAMES, FINDING_NAMES
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.reverse import undo as take_back
from polydesk_dagster.changes.stage import set_aside
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.clinic.bookings import emergency
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import EXIT_STATUS, Report
from polydesk_dagster.settings import person
from polydesk_dagster.told import teller

app = typer.Typer(help="I piani: che cosa cambierebbe, applicarlo, annullarlo.", no_args_is_help=True)

Id = Annotated[int, typer.Argument(help="Numero del piano.", metavar="ID")]
Json = Annotated[bool, typer.Option("--json", help="Un oggetto JSON.")]
Why = Annotated[
    str | None,
    typer.Option(help="Perché; serve per passare oltre un controllo e per i servizi di emergenza.", metavar="TESTO"),
]

STATES = {
    "ready": ("da applicare", "ready"),
    "applied": ("applicato", "applied"),
    "undone": ("annullato", "undone"),
    "expired": ("scaduto", "expired"),
}
SHOWN = 200
"""Rows that a terminal is given; a CSV holds them all."""


def _titles(*names: tuple[str, str]) -> tuple[str, ...]:
    return tuple(say(*each) for each in names)


@app.command("list")
def list_(
    service: Annotated[str | None, typer.Option(help="Solo di questo servizio.", metavar="CHIAVE")] = None,
    limit: Annotated[int, typer.Option(help="Quanti al massimo.", min=1)] = 20,
    everything: Annotated[
        bool, typer.Option("--all", help="Anche ciò che non chiede niente a nessuno: scaduti, vuoti, automatici.")
    ] = False,
    json: Json = False,
) -> None:
    """I piani che aspettano qualcuno o che qualcuno ha deciso, dal più recente; con --all anche gli altri."""
    with opened() as installation, installation.engine.connect() as connection:
        found = plans.latest(connection, service=service, limit=limit, routine=everything)
    if json:
        show.as_json([_as_object(plan) for plan in found])
        return
    columns = _titles(
        ("Piano", "Plan"),
        ("Servizio", "Service"),
        ("Che cosa", "What"),
        ("Clinica", "Clinic"),
        ("Fatto il", "Made at"),
        ("Stato", "State"),
        ("Righe", "Rows"),
        ("Controlli non superati", "Failed guards"),
    )
    show.table(
        say("Piani", "Plans"),
        columns,
        [
            (
                plan.id,
                teller().service(plan.service),
                registry.kind(plan.kind).label,
                plan.clinic,
                f"{plan.created_at.astimezone(plans.ITALY):%d/%m/%Y %H:%M}",
                say(*STATES[_state(plan)]),
                show.counts(plan.counts.as_dict()),
                ", ".join(guard.name for guard in plan.failed_guards),
            )
            for plan in found
        ],
    )


@app.command("show")
def show_(
    plan_id: Id,
    csv: Annotated[Path | None, typer.Option(help="Scrive tutte le righe in questo file.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Tutte le righe di un piano, prima e dopo."""
    with opened() as installation, installation.engine.connect() as connection:
        plan = _load(installation, plan_id)
        kind = registry.kind(plan.kind)
        if csv is not None:
            with _private(csv) as file:
                written = rows_of.write_csv(connection, plan, kind, file)
            if not json:
                show.out().print(say(f"{written} righe in {csv}", f"{written} rows in {csv}"))
                return
            show.as_json({**_as_object(plan), "csv": str(csv), "written": written})
            return
        if json:
            rows = [row.as_dict() for row in rows_of.rows(connection, plan, kind)]
            show.as_json({**_as_object(plan), "rows": rows})
            return
        _tell(plan)
        first = list(rows_of.rows(connection, plan, kind, limit=SHOWN))
        columns = _titles(
            ("Riga", "Row"),
            ("Azione", "Action"),
            ("Che cosa", "What"),
            ("Prima → dopo", "Before → after"),
            ("Perché", "Why"),
        )
        cells = [
            (
                row.ordinal,
                say(ACTION_NAMES[row.action], row.action),
                row.key,
                rows_of.difference(row, english=show.english()),
                row.reason or FINDING_NAMES.get(row.finding or "", ""),
            )
            for row in first
        ]
        show.table(None, columns, cells)
        rest = plan.writes + plan.tally.get("conflict", 0) - len(first)
        if rest > 0:
            show.out().print(say(f"… e altre {rest} righe: --csv FILE", f"… and {rest} more rows: --csv FILE"))


@app.command("quarantine")
def quarantine_(
    service: Annotated[str | None, typer.Option(help="Solo di questo servizio.", metavar="CHIAVE")] = None,
    clinic: Annotated[str | None, typer.Option(help="Solo di questa clinica.", metavar="CODICE")] = None,
    limit: Annotated[int, typer.Option(help="Quanti al massimo.", min=1)] = SHOWN,
    json: Json = False,
) -> None:
    """I record delle fonti che non si sono potuti leggere, finché la fonte non li corregge."""
    with opened() as installation, installation.engine.connect() as connection:
        found = set_aside(connection, service=service, clinic=clinic, limit=limit)
    if json:
        show.as_json(
            [
                {**asdict(each), "since": each.since.isoformat(), "last_seen": each.last_seen.isoformat()}
                for each in found
            ]
        )
        return
    if not found:
        show.out().print(say("Nessun record in quarantena.", "No record in quarantine."))
        return
    columns = _titles(
        ("Servizio", "Service"),
        ("Che cosa", "What"),
        ("Clinica", "Clinic"),
        ("Record", "Record"),
        ("Perché", "Why"),
        ("Dal", "Since"),
    )
    cells = [
        (
            teller().service(each.service),
            registry.kind(each.kind).label if each.kind else "",
            each.clinic,
            each.key,
            each.message,
            f"{each.since.astimezone(plans.ITALY):%d/%m/%Y %H:%M}",
        )
        for each in found
    ]
    show.table(say("In quarantena", "In quarantine"), columns, cells)


@app.command("apply")
def apply_(
    plan_id: Id,
    reason: Why = None,
    past_guard: Annotated[
        list[str] | None, typer.Option(help="Passa oltre questo controllo, che hai guardato.", metavar="NOME")
    ] = None,
    confirm: Annotated[
        str | None, typer.Option(help="La frase dell'anteprima (servizi di emergenza).", metavar="FRASE")
    ] = None,
    json: Json = False,
) -> None:
    """Applica esattamente le righe di un piano, o dice perché no."""
    with opened() as installation:
        plan = _load(installation, plan_id)
        with _alone(installation, plan) as free:
            if free:
                report = _settle(installation, plan, reason, confirm, past_guard or ())
            else:
                report = plans.busy(plan, teller().service(plan.service))
        what = say(f"Piano {plan.id}", f"Plan {plan.id}")
        _answer(plan, report, what, json=json)


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
    preview: Annotated[bool, typer.Option("--preview", help="Solo il piano dell'annullamento.")] = False,
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
                report = plans.busy(plan, teller().service(plan.service))
        what = say(f"Annullamento del piano {plan.id}", f"Undo of plan {plan.id}")
        if preview:
            what = say(f"Anteprima, niente è cambiato: {what.lower()}", f"Preview, nothing has changed: {what.lower()}")
        if report.plan_id not in {None, plan.id}:
            what += say(f" con il piano {report.plan_id}", f" by plan {report.plan_id}")
        _answer(plan, report, what, json=json)


@contextmanager
def _private(path: Path) -> Iterator[TextIO]:
    """A file for whole rows, patients included: where it is new, nobody but its owner may read it."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        message = say(f"non riesco a scrivere «{path}»: {error.strerror}", f"cannot write {path}: {error.strerror}")
        raise typer.BadParameter(message) from None


def _load(installation: Installation, plan_id: int) -> Plan:
    with installation.engine.connect() as connection:
        try:
            return plans.load(connection, plan_id)
        except LookupError:
            message = say(f"non esiste il piano {plan_id}", f"there is no plan {plan_id}")
            raise typer.BadParameter(message) from None


@contextmanager
def _alone(installation: Installation, plan: Plan) -> Iterator[bool]:
    """The lock that a run of the service would hold."""
    with exclusive(installation.engine, plan.service, plan.clinic) as free:
        yield free


def _state(plan: Plan) -> str:
    return "expired" if plan.state == "ready" and plan.expired else plan.state


def _as_object(plan: Plan) -> dict[str, Any]:
    return {
        "plan_id": plan.id,
        "service": plan.service,
        "kind": plan.kind,
        "clinic": plan.clinic,
        "state": _state(plan),
        "undoes": plan.undoes,
        "counts": plan.counts.as_dict(),
        "findings": {name: plan.tally[name] for name in FINDING_NAMES if plan.tally.get(name)},
        "guards": [guard.as_dict() for guard in plan.guards],
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
    name = teller().service(plan.service)
    state = say(*STATES[_state(plan)])
    head = (f"{say('Piano', 'Plan')} {plan.id}", "bold")
    console.print(Text.assemble(head, f" · {name} · {plan.clinic or say('catena', 'chain')} · {state}"))
    console.print(show.counts(plan.counts.as_dict()))
    for finding, label in FINDING_NAMES.items():
        if plan.tally.get(finding):
            console.print(f"  {say(label, finding)}: {plan.tally[finding]}")
    for guard in plan.failed_guards:
        console.print(Text.assemble("  ", (f"✗ {guard.name}", "red"), f": {guard.message}"))


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
        counts = show.counts(report.counts.as_dict())
        console.print(Text.assemble((what, "bold"), ": ", show.outcome(report.outcome), "  ", counts))
        for reason in report.reasons:
            console.print(f"  {show.told().reason(reason)}")
    raise typer.Exit(EXIT_STATUS[report.outcome])
