"""``polydesk doctor``: what is configured, reachable, stale, and what a person should do about it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from polydesk_dagster import settings as configuration
from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.database import embedded
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import health, supervisor
from polydesk_dagster.runtime.health import Finding
from polydesk_dagster.runtime.state import probing
from polydesk_dagster.runtime.state.integrations import integration_states
from polydesk_dagster.runtime.state.model import BROKEN, Answer, Link
from polydesk_dagster.settings import Settings
from polydesk_dagster.told.state import linked, told_of_system


def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="Interroga davvero ogni sistema configurato.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Un oggetto JSON.")] = False,
) -> None:
    """Guarda com'è messa l'installazione. Stato d'uscita 0 se tutto va bene, 1 se qualcosa chiede attenzione."""
    now = datetime.now(UTC)
    settings = configuration.load()
    up = supervisor.running(settings.home) is not None
    findings = [*_configuration(settings, up=up), *_systems(settings, now, ask=probe)]
    try:
        with opened() as installation:
            findings += [*_clinics(installation, now, ask=probe), *_records(installation, now)]
            watched = health.examine(settings, now)
    except PermanentError as error:
        if settings.embedded and not embedded.exists(settings.home):
            raise
        findings.append(Finding("database", ok=False, message=show.told().reason(error.reason)))
        watched = []
    # Where nothing is meant to be running, silent daemons and overdue services are no news.
    findings += watched if up or not settings.embedded else [f for f in watched if f.code in RESTING]
    well = all(finding.ok for finding in findings)
    if json:
        show.as_json(health.as_object(findings, now))
    else:
        mark = {True: Text(say("doctor.well"), "green"), False: Text(say("doctor.look"), "red")}
        rows = [(mark[f.ok], f.code, f.subject, f.message) for f in findings]
        columns = ("", say("Che cosa", "What"), say("Di chi", "Of what"), say("Come sta", "How it is"))
        show.table(None, columns, rows)
    raise typer.Exit(0 if well else 1)


RESTING = {"database", "dagster_database", "schema", "storage_growth"}
"""What can be wrong with an installation even when it is not up."""


def _configuration(settings: Settings, *, up: bool) -> Iterator[Finding]:
    yield Finding("home", ok=True, message=str(settings.home))
    where = say("incorporato", "embedded") if settings.embedded else say("configurato", "configured")
    yield Finding("database_kind", ok=True, message=where)
    state = say("in funzione", "up") if up else say("spento: avvialo con «polydesk up»", "down: run “polydesk up”")
    yield Finding("up", ok=True, message=state)


def _systems(settings: Settings, now: datetime, *, ask: bool) -> Iterator[Finding]:
    probes = probing.systems(settings, now)
    for state in probing.asked(probes) if ask else [state for state, _ in probes]:
        ok = state.answer is Answer.WELL if state.answer else state.configured or state.played or not state.needed
        yield Finding("configured", ok=ok, message=told_of_system(show.told(), state), subject=state.code)


def _clinics(installation: Installation, now: datetime, *, ask: bool) -> Iterator[Finding]:
    with installation.engine.connect() as connection:
        states = integration_states(connection, installation.has_token)
        asked = probing.studiolabs(connection, configuration.secret, now) if ask else []
    for state in states:
        if state.link not in {Link.ABSENT, Link.OFF}:
            message = f"studiolab {linked(show.told(), state)}"
            yield Finding("studiolab", ok=state.link not in BROKEN, message=message, subject=state.clinic)
    for answer in asked:
        message = told_of_system(show.told(), answer)
        yield Finding("studiolab_asked", ok=answer.answer is Answer.WELL, message=message, subject=answer.clinic)


def _records(installation: Installation, now: datetime) -> Iterator[Finding]:
    with installation.engine.connect() as connection:
        faults = audit.verify(connection)
        whole = say("registro delle modifiche integro", "audit trail whole")
        broken = (
            say(
                f"{len(faults)} righe del registro delle modifiche sono alterate, la prima è la {faults[0].line}",
                f"{len(faults)} lines of the audit trail were tampered with, first {faults[0].line}",
            )
            if faults
            else ""
        )
        yield Finding("audit_trail", ok=not faults, message=broken or whole)
        for code, check, italian, english in (
            ("free_on_closure", calendar_checks.free_on_closure, "orari liberi in giorni chiusi", "free while closed"),
            ("overlapping", calendar_checks.overlapping, "orari sovrapposti", "overlapping slots"),
            (
                "bookings_without_slot",
                calendar_checks.bookings_without_slot,
                "prenotazioni senza posto",
                "bookings without a seat",
            ),
        ):
            found = check(connection, now)
            examples = f": {found.examples}" if found.examples else ""
            yield Finding(code, ok=found.count == 0, message=f"{found.count} {say(italian, english)}{examples}")
        orphans = calendar_checks.open_orphans(connection, now)
        # The desk's daily work, not a fault of the installation.
        words = say("prenotazioni da ricollocare", "bookings to place elsewhere")
        yield Finding("open_orphans", ok=True, message=f"{orphans.count} {words}")
