"""``polydesk patients``: the doubtful ones of the import, and what a person says about each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from polydesk_dagster.changes.plans import ITALY
from polydesk_dagster.clinic.patients import reviews
from polydesk_dagster.clinic.patients.reviews import Candidate, Review
from polydesk_dagster.commands import show
from polydesk_dagster.commands.files import private_file
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.outcome import EXIT_STATUS, Report
from polydesk_dagster.settings import person
from polydesk_dagster.values import Count, Instant, Term

app = typer.Typer(no_args_is_help=True, add_completion=False)

Id = Annotated[int, typer.Argument(metavar="ID")]
Json = Annotated[bool, typer.Option("--json")]
Why = Annotated[str, typer.Option(metavar="TEXT")]
MaybeWhy = Annotated[str | None, typer.Option(metavar="TEXT")]


class State(StrEnum):
    open = "open"
    linked = "linked"
    created = "created"
    dismissed = "dismissed"


FIELDS = (
    "last_name",
    "first_name",
    "fiscal_code",
    "sex",
    "birth_date",
    "birth_place",
    "residence",
    "address",
    "postal_code",
    "email",
    "phone",
    "mobile",
    "deceased_on",
)
DAYS = {"birth_date", "deceased_on"}


@app.command()
def review(
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    state: Annotated[State, typer.Option()] = State.open,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elenca i casi da decidere, con i nomi mascherati: prima chi aspetta da più tempo."""
    with opened() as installation, installation.engine.connect() as connection:
        found = reviews.listed(connection, clinic=clinic, state=state, limit=limit)
    if json:
        show.as_json([_head(each) for each in found])
        return
    if not found:
        show.out().print(say("command.patients.none"))
        return
    t = show.told()
    rows = [
        (
            each.id,
            each.clinic,
            each.external_id,
            each.masked,
            t.value(each.found_at.astimezone(ITALY).date()),
            ", ".join(map(str, each.candidates)),
            t.reason(each.cause),
        )
        for each in found
    ]
    titles = show.columns("review", "clinic", "in_studiolab", "who", "since", "alike", "why")
    show.table(say("command.patients.table", state=Term("review_state", state)), titles, rows)


@app.command("show")
def show_(review_id: Id, json: Json = False) -> None:
    """Un caso per intero, accanto ai pazienti a cui somiglia: sono dati personali."""
    with _deciding() as connection:
        found = reviews.load(connection, review_id)
        alike = reviews.candidates(connection, review_id)
    if json:
        people = [{name: value for name, value in each.as_dict().items() if name != "known"} for each in alike]
        show.as_json({**_head(found), "record": found.record, "candidates": people})
        return
    console = show.out()
    t = show.told()
    head = (say("command.patients.head", review=found.id), found.clinic, found.external_id)
    console.print(" · ".join((*head, t.term("review_state", found.state))), style="bold")
    console.print(t.reason(found.cause))
    if found.decided_by:
        console.print(f"{found.decided_by}: {found.reason or '—'}")
    for name in FIELDS:
        if found.record.get(name) is not None:
            said = found.record[name]
            value = date.fromisoformat(said) if name in DAYS else said
            console.print(f"  {t.term('field', name)}: {t.value(value)}")
    if alike:
        _tell_alike(alike)
    if found.state == "open":
        console.print(say("command.patients.next", review=found.id))


def _tell_alike(alike: list[Candidate]) -> None:
    t = show.told()
    rows = [
        (
            each.id,
            f"{each.last_name} {each.first_name}",
            t.value(each.birth_date),
            say("command.patients.same_code", code=each.fiscal_code) if each.same_code else each.fiscal_code,
            ", ".join(filter(None, (each.mobile, each.email))),
            ", ".join(each.links),
        )
        for each in alike
    ]
    titles = show.columns("patient", "who", "born", "fiscal_code", "contacts", "linked_to")
    show.table(t.label("table", "alike"), titles, rows)


@app.command()
def link(
    review_id: Id,
    patient_id: Annotated[int, typer.Argument(metavar="PATIENT")],
    reason: MaybeWhy = None,
    json: Json = False,
) -> None:
    """È quel paziente. Per uno che non è tra i simili serve --reason."""
    with _deciding() as connection:
        report = reviews.link(connection, review_id, patient_id, as_of=_now(), actor=person(), reason=reason)
    _answer(report, json=json)


@app.command()
def create(
    review_id: Id,
    shared_code: Annotated[bool, typer.Option("--shared-code")] = False,
    reason: MaybeWhy = None,
    json: Json = False,
) -> None:
    """È una persona nuova: crea il paziente con i dati di studiolab."""
    with _deciding() as connection:
        report = reviews.create(
            connection, review_id, as_of=_now(), actor=person(), shared_code=shared_code, reason=reason
        )
    _answer(report, json=json)


@app.command()
def dismiss(review_id: Id, reason: Why, json: Json = False) -> None:
    """Non va importato (una prova, un errore): i prossimi import lo lasciano stare."""
    with _deciding() as connection:
        report = reviews.dismiss(connection, review_id, as_of=_now(), actor=person(), reason=reason)
    _answer(report, json=json)


@app.command()
def reopen(review_id: Id, reason: Why, json: Json = False) -> None:
    """Riporta un caso scartato tra quelli da decidere."""
    with _deciding() as connection:
        report = reviews.reopen(connection, review_id, as_of=_now(), actor=person(), reason=reason)
    _answer(report, json=json)


@app.command()
def unlink(
    clinic: Annotated[str, typer.Argument(metavar="CLINIC")],
    external_id: Annotated[str, typer.Argument(metavar="IN_STUDIOLAB")],
    reason: Why,
    json: Json = False,
) -> None:
    """Scioglie un collegamento sbagliato: il caso torna da decidere, il paziente resta."""
    with _deciding() as connection:
        report = reviews.unlink(connection, clinic, external_id, as_of=_now(), actor=person(), reason=reason)
    _answer(report, json=json)


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _deciding(unknown: str = "command.patients.unknown") -> Iterator[sa.Connection]:
    """A transaction of the installation, in which what does not exist, a case if nothing else is said, is wrong
    usage."""
    with opened() as installation, installation.engine.begin() as connection:
        try:
            yield connection
        except LookupError:
            raise typer.BadParameter(say(unknown)) from None


def _head(found: Review) -> dict[str, Any]:
    """What of a review everybody at the desk may read."""
    return {
        "id": found.id,
        "clinic": found.clinic,
        "external_id": found.external_id,
        "who": found.masked,
        "cause": {**found.cause.as_dict(), "text": show.told().reason(found.cause)},
        "state": found.state,
        "candidates": list(found.candidates),
        "found_at": found.found_at.isoformat(),
        "decided_by": found.decided_by,
        "decided_at": found.decided_at.isoformat() if found.decided_at else None,
        "reason": found.reason,
    }


def _answer(report: Report, *, json: bool) -> None:
    if json:
        show.as_json(
            {
                "outcome": report.outcome,
                "counts": report.counts.as_dict(),
                "reasons": [{**reason.as_dict(), "text": show.told().reason(reason)} for reason in report.reasons],
            }
        )
    else:
        console = show.out()
        console.print(show.outcome(report.outcome))
        for reason in report.reasons:
            console.print(f"  {show.told().reason(reason)}")
    raise typer.Exit(EXIT_STATUS[report.outcome])


@app.command("seen")
def seen_(patient: Annotated[int, typer.Argument(metavar="ID")], json: Json = False) -> None:
    """Chi ha guardato i dati di un paziente, quando e dove."""
    from polydesk_dagster.clinic.patients import seen

    with opened() as installation, installation.engine.connect() as connection:
        looks = seen.of(connection, patient)
    if json:
        show.as_json([{"at": each.at.isoformat(), "person": each.person, "page": each.page} for each in looks])
        return
    t = show.told()
    columns = [t.label("column", key) for key in ("seen_at", "seen_by", "seen_on")]
    cells = [(t.value(Instant(each.at)), each.person, each.page) for each in looks]
    show.table(say("table.patient_looks", patient=patient), columns, cells)


Patient = Annotated[int, typer.Argument(metavar="PATIENT")]
NO_PATIENT = "command.patients.no_patient"


@app.command("export")
def export_(
    patient: Patient, file: Annotated[Path, typer.Option("--output", "-o", metavar="FILE")], json: Json = False
) -> None:
    """Tutto ciò che è conservato di un paziente, in un file per lui (articoli 15 e 20 del GDPR)."""
    import json as written

    from polydesk_dagster.clinic.patients import exporting, seen
    from polydesk_dagster.told.records import exported

    with _deciding(NO_PATIENT) as connection:
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        found = exporting.everything(connection, patient)
        now = _now()
        data = exported(show.told(), found)
        seen.log(connection, person(), "polydesk patients export", now, patients=(patient,))
        with private_file(file) as target:
            written.dump(
                {"patient": patient, "made_at": now.isoformat(), "data": data}, target, ensure_ascii=False, indent=1
            )
    rows = sum(len(rows) for _, rows in found.values())
    if json:
        show.as_json({"patient": patient, "file": str(file), "data_sets": len(data), "rows": rows})
    else:
        show.out().print(say("command.patients.exported", file=str(file), rows=Count("rows", rows)))


@app.command("erase")
def erase_(patient: Patient, json: Json = False) -> None:
    """Prepara la cancellazione dei dati di un paziente e mostra che cosa va e che cosa resta per legge."""
    from polydesk_dagster.clinic.patients import erasing

    with _deciding(NO_PATIENT) as connection:
        report = erasing.plan_erasure(connection, patient, _now())
    t = show.told()
    if json:
        tables = {
            table.key: [dict(zip(table.columns, map(t.value, row), strict=True)) for row in table.rows]
            for table in report.tables
        }
        reasons = [{**reason.as_dict(), "text": t.reason(reason)} for reason in report.reasons]
        show.as_json({"plan_id": report.plan_id, "outcome": report.outcome, "reasons": reasons, "tables": tables})
        return
    console = show.out()
    for table in report.tables:
        rows_told = ([t.value(cell) for cell in row] for row in table.rows)
        show.table(t.label("table", table.key), show.columns(*table.columns), rows_told)
    for reason in report.reasons:
        console.print(f"  · {t.reason(reason)}")
    for figure in report.figures.values():
        console.print(t.value(figure))


@app.command("differences")
def differences_(
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elenca in che cosa la fonte e noi diciamo cose diverse di un paziente, e chi nella fonte non c'è più."""
    from polydesk_dagster.clinic.patients import differences

    with opened() as installation, installation.engine.connect() as connection:
        found = differences.listed(connection, clinic=clinic, limit=limit)
    if json:
        show.as_json([{**asdict(each), "since": each.since.isoformat()} for each in found])
        return
    if not found:
        show.out().print(say("command.patients.no_differences"))
        return
    t = show.told()
    rows = [(e.clinic, e.external_id, e.patient, t.term("field", e.what), t.value(Instant(e.since))) for e in found]
    show.table(None, show.columns("clinic", "record", "patient", "what", "since"), rows)
