"""``polydesk run KEY``: one service now, as the same Dagster job that the web page starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from polydesk_dagster.catalog import BY_KEY, Service
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.outcome import EXIT_STATUS, Outcome, Report, combine

Option = typer.Option
Message = Mapping[str, Any]
"""What a run tells on its way; see ``runtime.submit``."""


def run(
    key: Annotated[str, typer.Argument(help="Chiave del servizio (vedi «polydesk services»).", metavar="CHIAVE")],
    clinic: Annotated[str | None, Option(help="Solo questa clinica.", metavar="CODICE")] = None,
    preview: Annotated[bool, Option("--preview", help="Mostra che cosa cambierebbe, senza cambiarlo.")] = False,
    as_of: Annotated[str | None, Option(help="Istante a cui lavorare, RFC 3339.", metavar="ISTANTE")] = None,
    full: Annotated[bool, Option("--full", help="Ricalcola tutto (statistiche).")] = False,
    everyone: Annotated[bool, Option("--everyone", help="Anche chi è stato scritto da poco (attivazione).")] = False,
    reconcile: Annotated[bool, Option("--reconcile", help="Riallinea da capo (eventi di studiolab).")] = False,
    rollback: Annotated[bool, Option("--rollback", help="Torna alla generazione di prima (icona gialla).")] = False,
    plan: Annotated[int | None, Option(help="Applica esattamente questo piano.", metavar="ID")] = None,
    past_guard: Annotated[str | None, Option(help="Passa oltre questa protezione.", metavar="NOME")] = None,
    reason: Annotated[str | None, Option(help="Perché (servizi di emergenza).", metavar="TESTO")] = None,
    confirm: Annotated[str | None, Option(help="La frase di conferma dell'anteprima.", metavar="FRASE")] = None,
    operator: Annotated[str | None, Option(help="Chi lo chiede (servizi di emergenza).", metavar="NOME")] = None,
    unpaid: Annotated[
        list[int] | None, Option(help="Blocco il cui pagamento risulta mai avvenuto; ripetibile.", metavar="ID")
    ] = None,
    only: Annotated[
        list[str] | None, Option(help="Solo questo insieme di dati (pulizia); ripetibile.", metavar="CHIAVE")
    ] = None,
    json: Annotated[bool, Option("--json", help="Un oggetto JSON.")] = False,
) -> None:
    """Esegue un servizio adesso e dice com'è andata."""
    service = BY_KEY.get(key)
    if service is None:
        known = ", ".join(BY_KEY)
        raise typer.BadParameter(say(f"servizio «{key}» sconosciuto; ci sono: {known}", f"unknown: {key}; {known}"))
    _check_instant(as_of)
    options = {
        "full": full or None,
        "everyone": everyone or None,
        "reconcile": reconcile or None,
        "rollback": rollback or None,
        "plan": plan,
        "past_guard": past_guard,
        "reason": reason,
        "confirm": confirm,
        "operator": operator,
        "unpaid": unpaid or None,
        "only": only or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    strange = set(given) - set(service.options)
    if strange:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(strange))
        raise typer.BadParameter(say(f"{names} non serve a «{key}»", f"{names} means nothing to {key}"))
    config = {"as_of": as_of, "preview": preview or None, **given}
    started, clock = datetime.now(UTC), monotonic()
    if not service.available:
        report = Report.refused("not_available", _not_available(service))
        report_by_clinic = [(clinic, report)]
    else:
        with opened() as installation:
            report_by_clinic = run_service(installation, service, clinic, config, progress=_progress(json))
            report = combine(each for _, each in report_by_clinic)
    result = as_object(service, clinic, report, started, monotonic() - clock)
    if len(report_by_clinic) > 1:
        result["clinics"] = [
            {"clinic": code, "outcome": each.outcome, "counts": each.counts.as_dict()}
            for code, each in report_by_clinic
        ]
    if json:
        show.as_json(result)
    else:
        tell(service, result)
    raise typer.Exit(EXIT_STATUS[report.outcome])


def _check_instant(as_of: str | None) -> None:
    if as_of is None:
        return
    try:
        aware = datetime.fromisoformat(as_of).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise typer.BadParameter(
            say(
                f"--as-of «{as_of}»: serve un istante RFC 3339 con il fuso, per esempio 2026-03-29T01:30:00+01:00",
                f"--as-of {as_of}: an RFC 3339 instant with an offset is needed",
            )
        )


def _not_available(service: Service) -> str:
    return say(
        f"«{service.name}» non è ancora disponibile in questa versione ({service.cadence.sentence} quando lo sarà).",
        f"{service.key} is not available in this version yet.",
    )


def _progress(quiet: bool) -> Callable[[Message], object] | None:
    """Tells how far a run has come, where a person is watching."""
    console = show.err()
    if quiet or not console.is_terminal:
        return None

    def tell(message: Message) -> None:
        if message["kind"] == "progress":
            console.print(f"[dim]  {message['what']}: {message['done']}/{message['total']}[/]")

    return tell


def run_service(
    installation: Installation,
    service: Service,
    clinic: str | None,
    config: dict[str, Any],
    progress: Callable[[Message], object] | None = None,
) -> list[tuple[str | None, Report]]:
    """Run a service for one clinic or all, each clinic with a studiolab in a run of its own; returns their reports."""
    with installation.engine.connect() as connection:
        known = set(connection.scalars(sa.text("SELECT code FROM clinic")))
        active = list(connection.scalars(ACTIVE_CLINICS))
    if clinic is not None and clinic not in known:
        listed = ", ".join(sorted(known)) or say("nessuna", "none")
        raise typer.BadParameter(
            say(f"clinica «{clinic}» sconosciuta; ci sono: {listed}", f"unknown clinic {clinic}; there are: {listed}")
        )
    if not service.per_clinic:
        return [(clinic, _execute(installation, service, None, {**config, "clinic": clinic}, progress))]
    wanted = active if clinic is None else [code for code in active if code == clinic]
    if not wanted:
        message = (
            say(f"Clinica {clinic}: integrazione con studiolab non attiva", f"Clinic {clinic}: studiolab is off")
            if clinic
            else say("Nessuna clinica ha l'integrazione con studiolab attiva", "No clinic has its studiolab on")
        )
        return [(clinic, Report.skipped("integration_off", f"{message}.", clinic))]
    return [(code, _execute(installation, service, code, config, progress)) for code in wanted]


def _execute(
    installation: Installation,
    service: Service,
    partition: str | None,
    config: dict[str, Any],
    progress: Callable[[Message], object] | None,
) -> Report:
    from polydesk_dagster.database.service_runs import recorded
    from polydesk_dagster.runtime.submit import Order, execute

    given = {name: value for name, value in config.items() if value is not None}
    order = Order(
        service.key,
        {"ops": {step: {"config": given} for step in service.steps}},
        {"polydesk/service": service.key},
        partition,
    )
    finished = execute(installation.settings, service.place.value, order, progress or (lambda _: None))
    with installation.engine.connect() as connection:
        reports = recorded(connection, finished.run_id, service.key)
    report = combine(report for _, report in reports)
    if reports and (finished.status == "SUCCESS" or report.outcome in {Outcome.REFUSED, Outcome.FAILED}):
        return report
    return Report.failed(
        "no_report",
        say(
            f"Esecuzione {finished.run_id} finita ({finished.status}) senza dirlo: guarda il suo log nell'interfaccia.",
            f"Run {finished.run_id} ended ({finished.status}) without an outcome: see its log in the UI.",
        ),
        partition,
    )


def as_object(
    service: Service, clinic: str | None, report: Report, started: datetime, seconds: float
) -> dict[str, Any]:
    """The one object that ``run --json`` prints."""
    return {
        "service": service.key,
        "clinic": clinic,
        "outcome": report.outcome,
        "counts": report.counts.as_dict(),
        "reasons": [reason.as_dict() for reason in report.reasons],
        "plan_id": report.plan_id,
        "started_at": started.isoformat(),
        "seconds": round(seconds, 3),
    }


def tell(service: Service, result: dict[str, Any]) -> None:
    console = show.out()
    console.print(f"[bold]{service.name}[/]: {show.outcome(result['outcome'])}  {show.counts(result['counts'])}")
    for reason in result["reasons"]:
        where = f"{reason['clinic']}: " if reason["clinic"] else ""
        times = f" ({reason['count']})" if reason["count"] != 1 else ""
        console.print(f"  · {where}{reason['message']}{times}", markup=False)
    if result["plan_id"] is not None:
        plan = result["plan_id"]
        console.print(
            say(
                f"  Piano {plan}: guardalo con «polydesk plan show {plan}».",
                f"  Plan {plan}: polydesk plan show {plan}",
            )
        )
