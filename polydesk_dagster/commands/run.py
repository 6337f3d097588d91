"""``polydesk run KEY``: one service now, as the same Dagster job that the web page starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any

import typer
from rich.text import Text

from polydesk_dagster.catalog import BY_KEY, Place, Service
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.outcome import EXIT_STATUS, WHAT_TO_DO, Report, combine
from polydesk_dagster.settings import person
from polydesk_dagster.values import Several

Option = typer.Option
Message = Mapping[str, Any]
"""What a run tells on its way; see ``runtime.orders``."""


PLANS = 10
"""How many a run names of the plans that it has made."""


def run(
    key: Annotated[str, typer.Argument(metavar="KEY")],
    clinic: Annotated[str | None, Option(metavar="CODE")] = None,
    preview: Annotated[bool, Option("--preview")] = False,
    as_of: Annotated[str | None, Option(metavar="INSTANT")] = None,
    full: Annotated[bool, Option("--full")] = False,
    everyone: Annotated[bool, Option("--everyone")] = False,
    reconcile: Annotated[bool, Option("--reconcile")] = False,
    rollback: Annotated[bool, Option("--rollback")] = False,
    plan: Annotated[int | None, Option(metavar="ID")] = None,
    past_guard: Annotated[list[str] | None, Option(metavar="NAME")] = None,
    reason: Annotated[str | None, Option(metavar="TEXT")] = None,
    confirm: Annotated[str | None, Option(metavar="PHRASE")] = None,
    unpaid: Annotated[list[int] | None, Option(metavar="ID")] = None,
    only: Annotated[list[str] | None, Option(metavar="KEY")] = None,
    json: Annotated[bool, Option("--json")] = False,
) -> None:
    """Esegue un servizio adesso e dice com'è andata."""
    service = BY_KEY.get(key)
    if service is None:
        known = ", ".join(BY_KEY)
        raise typer.BadParameter(say("command.run.unknown_service", key=key, known=known))
    _check_instant(as_of)
    options = {
        "full": full or None,
        "everyone": everyone or None,
        "reconcile": reconcile or None,
        "rollback": rollback or None,
        "plan": plan,
        "past_guard": ",".join(past_guard) if past_guard else None,
        "reason": reason,
        "confirm": confirm,
        "unpaid": unpaid or None,
        "only": only or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    strange = set(given) - set(service.options)
    if strange:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(strange))
        raise typer.BadParameter(say("command.run.useless", names=names, key=key))
    if past_guard and plan is None and "plan" in service.options:
        raise typer.BadParameter(say("command.run.guard_without_plan", key=key))
    config = {"as_of": as_of, "preview": preview or None, **given}
    started, clock = datetime.now(UTC), monotonic()
    heads: dict[int, Plan] = {}
    with opened() as installation:
        report_by_clinic = run_service(installation, service, clinic, config, progress=_progress(json))
        report = combine(each for _, each in report_by_clinic)
        heads = _heads(installation, report)
    result = as_object(service, clinic, report, started, monotonic() - clock)
    if len(report_by_clinic) > 1:
        result["clinics"] = [
            {"clinic": code, "outcome": each.outcome, "counts": each.counts.as_dict(), "plan_id": each.plan_id}
            for code, each in report_by_clinic
        ]
    if json:
        show.as_json(result)
    else:
        tell(service, heads, report, looked=preview or _only_looks(service, reason, confirm))
    raise typer.Exit(EXIT_STATUS[report.outcome])


def _check_instant(as_of: str | None) -> None:
    if as_of is None:
        return
    try:
        aware = datetime.fromisoformat(as_of).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise typer.BadParameter(say("command.run.no_instant", given=as_of))


def _progress(quiet: bool) -> Callable[[Message], object] | None:
    """Tells how far a run has come, where a person is watching."""
    console = show.err()
    if quiet or not console.is_terminal:
        return None

    def tell(message: Message) -> None:
        if message["kind"] == "progress":
            console.print(
                f"  {show.told().named_term(message['what'])}: {message['done']}/{message['total']}", style="dim"
            )

    return tell


def run_service(
    installation: Installation,
    service: Service,
    clinic: str | None,
    config: dict[str, Any],
    progress: Callable[[Message], object] | None = None,
) -> list[tuple[str | None, Report]]:
    """``pressing.press`` for the command, which calls what does not exist a wrong usage."""
    from polydesk_dagster.runtime.pressing import UnknownError, press

    told = progress or (lambda _: None)
    try:
        return press(installation.settings, installation.engine, service, clinic, config, person=person(), told=told)
    except UnknownError as error:
        raise typer.BadParameter(show.told().reason(error.reason)) from None


def as_object(
    service: Service, clinic: str | None, report: Report, started: datetime, seconds: float
) -> dict[str, Any]:
    """The one object that ``run --json`` prints."""
    return {
        "service": service.key,
        "clinic": clinic,
        "outcome": report.outcome,
        "counts": report.counts.as_dict(),
        "reasons": [{**reason.as_dict(), "text": show.told().reason(reason)} for reason in report.reasons],
        "plan_id": report.plan_id,
        "started_at": started.isoformat(),
        "seconds": round(seconds, 3),
    }


def _only_looks(service: Service, reason: str | None, confirm: str | None) -> bool:
    """Whether a dangerous button was pressed for its preview."""
    return service.place is Place.EMERGENCY and Press(reason or "", confirm or "").looks_only


def tell(service: Service, heads: Mapping[int, Plan], report: Report, *, looked: bool) -> None:
    """For people: the outcome, the reasons, the figures, and each of the plans ``heads`` with what to type next, and
    how many more there are. Of a mere look, and of what is gone for good, also the tables."""
    console, t = show.out(), show.told()
    outcome = Text(t.outcome(report.outcome, preview=report.preview), show.COLOURS[report.outcome])
    counts = t.counts(report.counts, preview=report.preview)
    console.print(Text.assemble((t.service(service.key), "bold"), ": ", outcome, "  ", counts))
    more = 0
    for reason in report.reasons:
        if reason.code == "other_plans":
            more = reason.count + 1 - len(heads)
            continue
        console.print(f"  · {show.why(reason)} {t.times(reason)}".rstrip())
    for table in report.tables if looked or service.destroys else ():
        columns = [t.label("column", column) for column in table.columns]
        rows = ([t.value(cell) for cell in row] for row in table.rows)
        show.table(t.label("table", table.key), columns, rows)
        if left := table.total - len(table.rows):
            console.print(f"  {t.text('more_rows', count=left)}")
    codes = {reason.code for reason in report.reasons}
    for key, figure in report.figures.items():
        if key != WHAT_TO_DO or (len(heads) == 1 and "what_to_do" not in codes):
            console.print(f"  {t.label('figure', key)}: {t.value(figure)}")
    for plan in heads.values():
        about = " · ".join(
            filter(
                None,
                (t.term("kind", plan.kind), plan.clinic, t.counts(plan.counts, preview=report.preview, kind=plan.kind)),
            )
        )
        console.print("  " + say("command.run.plan", plan=plan.id, about=about))
    if more > 0:
        console.print("  " + say("command.run.more_plans", count=more))


def _heads(installation: Installation, report: Report) -> dict[int, Plan]:
    """The last of the plans that ``report`` names, its own the very last."""
    others = [
        int(plan)  # pyrefly: ignore[bad-argument-type]
        for reason in report.reasons
        if reason.code == "other_plans" and isinstance(plans_named := reason.values["plans"], Several)
        for plan in plans_named.items
    ]
    named = [plan for plan in (*others, report.plan_id) if plan is not None][-PLANS:]
    with installation.engine.connect() as connection:
        return {plan: plans.load(connection, plan) for plan in named}
