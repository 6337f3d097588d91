"""``polydesk practice``: a practice's own data as a workbook, written, looked at, imported and taken back."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.changes.plans import busy
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.run import run_service
from polydesk_dagster.commands.show import say
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import EXIT_STATUS, Report, combine
from polydesk_dagster.settings import person
from polydesk_dagster.sources.practice import exporting, importing, reading, undoing
from polydesk_dagster.sources.practice.importing import Import
from polydesk_dagster.sources.practice.problems import Problem
from polydesk_dagster.told import workbook
from polydesk_dagster.values import Count, ServiceKey, Several

app = typer.Typer(help="I dati della struttura in un file Excel.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE")]
Number = Annotated[int, typer.Argument(metavar="NUMBER")]
Force = Annotated[bool, typer.Option("--force")]
Slots = Annotated[bool, typer.Option("--slots/--no-slots")]
Guards = Annotated[list[str] | None, typer.Option(metavar="NAME")]
Why = Annotated[str | None, typer.Option(metavar="TEXT")]
Json = Annotated[bool, typer.Option("--json")]


@app.command("template")
def template(out: Out = Path("practice.xlsx"), force: Force = False) -> None:
    """Scrive un file Excel vuoto, da riempire."""
    _write(out, force, lambda file: exporting.template(file, show.told()))
    show.out().print(say("command.practice.written", file=str(out)))


@app.command("export")
def export(out: Out = Path("practice.xlsx"), force: Force = False) -> None:
    """Scrive in un file Excel ciò che c'è in Polydesk."""
    with opened() as installation, installation.engine.connect() as connection:
        rows = _write(out, force, lambda file: exporting.export(connection, file, show.told()))
    show.out().print(say("command.practice.exported", file=str(out), rows=Count("rows", rows or 0)))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    preview: Annotated[bool, typer.Option("--preview")] = False,
    slots: Slots = True,
    past_guard: Guards = None,
    reason: Why = None,
    json: Json = False,
) -> None:
    """Legge un file Excel e importa cliniche, medici, prestazioni, agende, turni, chiusure, utenti e testi."""
    data = reading.content(file)
    as_of = datetime.now(UTC)
    name = hashlib.sha256(data).hexdigest()
    with opened(create=True) as installation, _alone(installation, looking=preview) as alone:
        if not alone:
            _answer(Report.skipped("service_busy", {"service": ServiceKey(importing.SERVICE)}), None, json=json)
        with installation.engine.begin() as connection:
            book = reading.read(data, workbook.words(), importing.clinics(connection))
            found = importing.plan(
                connection, book, as_of=as_of, origin=f"{name[:16]}:{as_of.isoformat()}", snapshot=name, file=file.name
            )
            report = importing.shown(connection, found)
        if preview or not found.does:
            _answer(replace(report, preview=preview), found, json=json)
        _apply(installation, found, slots=slots, past_guard=past_guard, reason=reason, json=json)


@app.command("apply")
def apply(
    number: Number, slots: Slots = True, past_guard: Guards = None, reason: Why = None, json: Json = False
) -> None:
    """Importa un file già guardato: tutti i suoi piani, o nessuno."""
    with opened() as installation, exclusive(installation.engine, importing.SERVICE, None) as alone:
        found = _load(installation, number)
        if not alone:
            _answer(busy(found.plans[0]), found, json=json)
        _apply(installation, found, slots=slots, past_guard=past_guard, reason=reason, json=json)


@app.command("problems")
def problems(number: Number, json: Json = False) -> None:
    """Tutte le righe di un file già guardato che sono da correggere."""
    with opened() as installation:
        found = _load(installation, number).problems
    t = show.told()
    if json:
        show.as_json(_problems(found))
    else:
        for each in found:
            show.out().print(f"  · {t.reason(each.reason)}")
        show.out().print(say("command.practice.problems", rows=Count("rows", len(found))))


def _problems(found: Iterable[Problem]) -> list[dict[str, Any]]:
    t = show.told()
    return [{"sheet": each.sheet, "row": each.line, "text": t.reason(each.reason)} for each in found]


@app.command("undo")
def undo(
    number: Number, reason: Annotated[str, typer.Option(metavar="TEXT")], slots: Slots = True, json: Json = False
) -> None:
    """Annulla un'importazione; ciò che nel frattempo è in uso resta."""
    if not is_reason(reason):
        raise typer.BadParameter(say("reason.reason_missing", least=LEAST_REASON))
    with opened() as installation, exclusive(installation.engine, importing.SERVICE, None) as alone:
        found = _load(installation, number)
        report, made = busy(found.plans[0]), None
        if alone:
            with installation.engine.begin() as connection:
                before = undoing.left_by_its_turns(connection, found)
                report = undoing.undo(connection, found, as_of=datetime.now(UTC), actor=person(), reason=reason)
            if slots and (made := _generated(installation, report)) is not None:
                given = {"as_of": datetime.now(UTC), "actor": person(), "reason": reason}
                made = undoing.retire_left(installation.engine, found, made, before, **given)
    _answer(report, None, made, json=json)


def _alone(installation: Installation, *, looking: bool) -> AbstractContextManager[bool]:
    """Whether nobody else imports; whoever only looks is in nobody's way."""
    return nullcontext(True) if looking else exclusive(installation.engine, importing.SERVICE, None)


def _apply(
    installation: Installation,
    found: Import,
    *,
    slots: bool,
    past_guard: list[str] | None,
    reason: str | None,
    json: bool,
) -> None:
    with installation.engine.begin() as connection:
        report = importing.apply(
            connection,
            found,
            as_of=datetime.now(UTC),
            actor=person(),
            reason=reason,
            past_guards=past_guard or (),
        )
    _answer(report, found, _generated(installation, report) if slots else None, json=json)


def _generated(installation: Installation, report: Report) -> Report | None:
    """The slots, made anew where the practice is another than before."""
    if not report.counts.changed:
        return None
    return combine(part for _, part in run_service(installation, BY_KEY["generate_slots"], None, {}))


def _load(installation: Installation, number: int) -> Import:
    with installation.engine.connect() as connection:
        try:
            return importing.load(connection, number)
        except LookupError:
            raise typer.BadParameter(say("reason.no_workbook_plan", plan=number)) from None


def _write(out: Path, force: bool, write: Callable[[IO[bytes]], int | None]) -> int | None:
    """Written whole, for the account alone: a workbook names the people who work here."""
    if out.exists() and not force:
        raise typer.BadParameter(say("command.practice.exists", file=str(out)))
    held = io.BytesIO()
    rows = write(held)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.write_bytes(held.getvalue())
    draft.replace(out)
    return rows


def _answer(report: Report, found: Import | None, slots: Report | None = None, *, json: bool) -> None:
    t, console = show.told(), show.out()
    plans = [plan.id for plan in found.plans] if found is not None else []
    if json:
        show.as_json(
            {
                "outcome": report.outcome,
                "preview": report.preview,
                "counts": report.counts.as_dict(),
                "reasons": [{**each.as_dict(), "text": t.reason(each)} for each in report.reasons],
                "problems": _problems(found.problems if found is not None else ()),
                "plan_id": report.plan_id,
                "plans": plans,
                "slots": slots
                and {
                    "outcome": slots.outcome,
                    "counts": slots.counts.as_dict(),
                    "reasons": [{**each.as_dict(), "text": t.reason(each)} for each in slots.reasons],
                },
            }
        )
    else:
        console.print(
            t.outcome(report.outcome, preview=report.preview), t.counts(report.counts, preview=report.preview)
        )
        for each in report.reasons:
            console.print(f"  · {t.reason(each)}")
        for key, figure in report.figures.items():
            console.print(f"  {t.label('figure', key)}: {t.value(figure)}")
        kinds = iter(plan.kind for plan in (found.plans if found is not None else ()) if plan.rows_kept)
        for table in report.tables:
            title = t.label("table", table.key) if table.key != "plan_rows" else t.term("kind", next(kinds))
            rows = ([t.value(cell) for cell in row] for row in table.rows)
            show.table(title, [t.label("column", key) for key in table.columns], rows)
            if left := table.total - len(table.rows):
                console.print(f"  {t.text('more_rows', count=left)}")
        if slots is not None:
            told = t.outcome(slots.outcome)
            console.print(say("command.practice.slots", outcome=told, counts=t.counts(slots.counts)))
            for each in slots.reasons:
                console.print(f"  · {show.why(each)}")
        if report.plan_id is not None and plans:
            step = "next" if report.preview else "undo"
            if report.counts.changed:
                console.print(say(f"command.practice.{step}", plan=report.plan_id, plans=Several(tuple(plans))))
    status = 0 if report.preview and report.counts.changed else EXIT_STATUS[report.outcome]
    raise typer.Exit(max(status, EXIT_STATUS[slots.outcome] if slots is not None else 0))
