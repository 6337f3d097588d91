"""``polydesk closures``: whom a closure or other turns would touch and where they could go, closing, opening again, and
keeping the new places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, TypeVar

import typer

from polydesk_dagster.clinic.bookings import offers
from polydesk_dagster.clinic.calendar import agendas, desk_closures, replacing, rule_edits
from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.clinic.calendar.replacing import Touched
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import EXIT_STATUS, Outcome, Report
from polydesk_dagster.settings import person
from polydesk_dagster.values import Instant

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(metavar="NAME")]
From = Annotated[str, typer.Option("--from", metavar="DAY")]
Until = Annotated[str | None, typer.Option("--to", metavar="DAY")]
FromTime = Annotated[str | None, typer.Option("--from-time", metavar="HH:MM")]
ToTime = Annotated[str | None, typer.Option("--to-time", metavar="HH:MM")]
Clinic = Annotated[str | None, typer.Option(metavar="CODE")]
Agenda = Annotated[int | None, typer.Option(metavar="NUMBER")]
Json = Annotated[bool, typer.Option("--json")]


@app.command("propose")
def propose(
    name: Name,
    first: From,
    last: Until = None,
    from_time: FromTime = None,
    to_time: ToTime = None,
    clinic: Clinic = None,
    agenda: Agenda = None,
    json: Json = False,
) -> None:
    """Mostra le prenotazioni che una chiusura toccherebbe e un posto nuovo per ciascuna; non chiude niente."""
    closure = _closure(name, first, last, from_time, to_time, clinic, agenda)
    with opened() as installation:
        found = desk_closures.propose(installation.engine, closure, as_of=datetime.now(UTC))
    if not json:
        _show(found.touched)
    then = "command.closures.apply" if found.touched else "command.closures.nobody"
    _answer(found.report, [_as_object(each) for each in found.touched], json=json, then=then)


@app.command("turns")
def turns(
    clinic: Annotated[str, typer.Argument(metavar="CODE")],
    json: Json = False,
) -> None:
    """Mostra le prenotazioni che i turni cambiati di una clinica toccherebbero e un posto nuovo per ciascuna."""
    with opened() as installation:
        found = rule_edits.propose(installation.engine, clinic, as_of=datetime.now(UTC))
    if not json:
        _show(found.touched)
    _answer(found.report, [_as_object(each) for each in found.touched], json=json, then="command.closures.follow")


@app.command("offer")
def offer(
    clinic: Clinic = None,
    json: Json = False,
) -> None:
    """Prepara il piano che tiene un posto nuovo a chi ha perso il suo; con «plan apply» i posti sono tenuti."""
    with opened() as installation, installation.engine.begin() as connection:
        report, touched = offers.propose(connection, datetime.now(UTC), clinic=clinic)
    if not json:
        _show(tuple(touched))
    _answer(report, [_as_object(each) for each in touched], json=json, then="command.closures.keep")


@app.command("kept")
def kept(
    clinic: Clinic = None,
    json: Json = False,
) -> None:
    """Elenca i posti tenuti ai pazienti che non hanno ancora risposto."""
    with opened() as installation, installation.engine.connect() as connection:
        lost = replacing.proposals(connection, 0, datetime.now(UTC))
    waiting = [each for each in lost if clinic in (None, each.clinic) and each.place and each.place.until]
    if json:
        show.as_json([_as_object(each) for each in waiting])
        return
    _show(tuple(waiting))
    show.out().print(say("command.closures.answer" if waiting else "command.closures.none_kept"))


@app.command("accept")
def accept(number: Annotated[int, typer.Argument(metavar="NUMBER")]) -> None:
    """Sposta la prenotazione nel posto tenuto: il paziente, al telefono, lo accetta."""
    _answered(number, wanted=True)


@app.command("decline")
def decline(number: Annotated[int, typer.Argument(metavar="NUMBER")]) -> None:
    """Lascia libero il posto tenuto: il paziente, al telefono, non lo vuole."""
    _answered(number, wanted=False)


def _answered(number: int, *, wanted: bool) -> None:
    with opened() as installation, installation.engine.begin() as connection:
        became = offers.answer(connection, number, wanted, clinic=None, actor=person(), as_of=datetime.now(UTC))
    show.out().print(say(f"answer.offer.{became}"))
    raise typer.Exit(0 if became is (offers.Taken.TAKEN if wanted else offers.Taken.DECLINED) else 3)


@app.command("add")
def add(
    name: Name,
    first: From,
    last: Until = None,
    from_time: FromTime = None,
    to_time: ToTime = None,
    clinic: Clinic = None,
    agenda: Agenda = None,
    json: Json = False,
) -> None:
    """Chiude, e toglie gli orari di quei giorni; chi era prenotato resta da ricollocare."""
    closure = _closure(name, first, last, from_time, to_time, clinic, agenda)
    with opened() as installation, exclusive(installation.engine, desk_closures.SERVICE, None) as alone:
        report = _busy()
        if alone:
            report = desk_closures.add(installation.engine, closure, as_of=datetime.now(UTC), actor=person())
    _answer(report, json=json)


@app.command("list")
def listed(
    clinic: Clinic = None,
    json: Json = False,
) -> None:
    """Elenca ciò che la segreteria ha chiuso, con il numero per riaprire."""
    with opened() as installation, installation.engine.connect() as connection:
        closed = desk_closures.standing(connection, datetime.now(UTC), clinic)
    if json:
        show.as_json([{"closure": number, **_as_plain(each)} for number, each in closed.items()])
        return
    t = show.told()
    rows = []
    for number, each in closed.items():
        hours = f" {t.value(each.from_time)}–{t.value(each.to_time)}" if each.from_time and each.to_time else ""
        agenda = "" if each.agenda is None else str(each.agenda)
        days = t.value(each.date_from) + hours, t.value(each.date_to)
        rows.append([str(number), each.name, *days, each.clinic or "", agenda])
    columns = [t.label("column", key) for key in ("number", "closure", "when", "until", "clinic", "agenda")]
    show.table(None, columns, rows)


@app.command("agendas")
def agendas_of(
    clinic: Clinic = None,
    json: Json = False,
) -> None:
    """Elenca le agende in uso, con il numero che --agenda vuole."""
    with opened() as installation, installation.engine.connect() as connection:
        listed = agendas.active(connection, None if clinic is None else [clinic])
    if json:
        show.as_json([asdict(each) for each in listed])
        return
    t = show.told()
    columns = [t.label("column", key) for key in ("number", "clinic", "agenda")]
    show.table(None, columns, [[str(each.number), each.clinic, each.name] for each in listed])


def _as_plain(closure: Closure) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, date | time) else v for name, v in asdict(closure).items()}


@app.command("lift")
def lift(
    number: Annotated[int, typer.Argument(metavar="NUMBER")],
    preview: Annotated[bool, typer.Option("--preview")] = False,
    json: Json = False,
) -> None:
    """Riapre ciò che la segreteria aveva chiuso: gli orari tornano."""
    with opened() as installation, exclusive(installation.engine, desk_closures.SERVICE, None) as alone:
        report = _busy()
        if alone:
            report = desk_closures.lift(
                installation.engine, number, as_of=datetime.now(UTC), actor=person(), preview=preview
            )
    _answer(report, json=json)


def _busy() -> Report:
    return Report.skipped("already_running", {"service": show.told().service(desk_closures.SERVICE)})


def _closure(
    name: str,
    first: str,
    last: str | None,
    from_time: str | None,
    to_time: str | None,
    clinic: str | None,
    agenda: int | None,
) -> Closure:
    hours = [None if text is None else _read(time.fromisoformat, text) for text in (from_time, to_time)]
    days = [_read(date.fromisoformat, text) for text in (first, last or first)]
    return Closure(name, days[0], days[1], hours[0], hours[1], clinic, agenda)


def _read(what: Callable[[str], T], text: str) -> T:
    try:
        return what(text)
    except ValueError:
        raise typer.BadParameter(say("command.closures.not_a_date", given=text)) from None


def _show(touched: tuple[Touched, ...]) -> None:
    if not touched:
        return
    t = show.told()
    columns = [
        t.label("column", key)
        for key in ("number", "when", "agenda", "touched_patient", "phone", "treatment", "new_place")
    ]
    rows = []
    for each in touched:
        place = t.text("command.closures.no_place")
        if each.place is not None:
            place = f"{t.value(Instant(each.place.starts_at, each.time_zone))}, {each.place.agenda}"
            if each.place.until is not None:
                until = Instant(each.place.until, each.time_zone)
                place = t.text("command.closures.kept_until", place=place, until=until)
        when = t.value(Instant(each.starts_at, each.time_zone))
        rows.append([str(each.appointment_id), when, each.agenda, each.patient, each.phone, each.service, place])
    show.table(t.label("table", "touched_bookings"), columns, rows)


def _as_object(each: Touched) -> dict[str, Any]:
    place = each.place and {
        "slot": each.place.slot_id,
        "starts_at": each.place.starts_at.isoformat(),
        "agenda": each.place.agenda,
        "same_doctor": each.place.same_doctor,
        "kept_until": each.place.until and each.place.until.isoformat(),
    }
    return {
        "appointment": each.appointment_id,
        "clinic": each.clinic,
        "agenda": each.agenda,
        "service": each.service,
        "starts_at": each.starts_at.isoformat(),
        "patient": each.patient,
        "phone": each.phone,
        "place": place,
    }


def _answer(
    report: Report,
    touched: list[dict[str, Any]] | None = None,
    *,
    json: bool,
    then: str = "command.closures.apply",
) -> None:
    t = show.told()
    if json:
        answer = {
            "outcome": report.outcome,
            "counts": report.counts.as_dict(),
            "reasons": [{**reason.as_dict(), "text": t.reason(reason)} for reason in report.reasons],
            "plan_id": report.plan_id,
        }
        show.as_json(answer if touched is None else answer | {"touched": touched})
    else:
        show.out().print(t.outcome(report.outcome, preview=report.preview), t.counts(report.counts))
        for key in ("bookings_to_move", "places_found", "places_to_keep"):
            if report.figures.get(key):
                show.out().print(f"  {t.label('figure', key)}: {t.value(report.figures[key])}")
        for reason in report.reasons:
            show.out().print(f"  · {t.reason(reason)}")
        if report.preview and report.plan_id is not None and report.outcome is not Outcome.NOTHING_TO_DO:
            show.out().print(say(then, plan=report.plan_id))
    raise typer.Exit(0 if report.preview else EXIT_STATUS[report.outcome])
