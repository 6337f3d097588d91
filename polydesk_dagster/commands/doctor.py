"""``polydesk doctor``: what is configured, reachable, stale, and what a person should do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
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
from polydesk_dagster.resources.meaning import words_alone
from polydesk_dagster.runtime import health, supervisor
from polydesk_dagster.runtime.state import probing
from polydesk_dagster.runtime.state.integrations import integration_states
from polydesk_dagster.runtime.state.model import BROKEN, Answer, Finding, Link
from polydesk_dagster.settings import Settings
from polydesk_dagster.told.state import state_of_system, told_as, told_of_finding, values_of_link
from polydesk_dagster.values import Duration, Value


def doctor(
    probe: Annotated[bool, typer.Option("--probe")] = False,
    json: Annotated[bool, typer.Option("--json")] = False,
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
        findings.append(Finding("database", ok=False, how="refused", values={"why": error.reason}))
        watched = []
    # Where nothing is meant to be running, silent daemons and overdue services are no news.
    watched = watched if up or not settings.embedded else [f for f in watched if f.code in RESTING]
    findings += watched if probe else [f for f in watched if f.code != "studiolab_unread"]  # each clinic is told of
    well = all(finding.ok for finding in findings)
    if json:
        show.as_json(health.as_object(findings, now, show.told()) | {"ok": well})
    else:
        mark = {True: Text(say("doctor.well"), "green"), False: Text(say("doctor.look"), "red")}
        rows = [(mark[f.ok], f.code, f.subject, told_of_finding(show.told(), f)) for f in findings]
        show.table(None, ("", *show.columns("finding", "subject", "how_it_is")), rows)
    raise typer.Exit(0 if well else 1)


RESTING = {"database", "dagster_database", "schema", "restored", "dagster_storage"}
"""What can be wrong with an installation even when it is not up."""


INVARIANTS: Mapping[str, Callable[[sa.Connection, datetime], calendar_checks.Finding]] = {
    "free_on_closure": calendar_checks.free_on_closure,
    "overlapping": calendar_checks.overlapping,
    "bookings_without_slot": calendar_checks.bookings_without_slot,
}
"""The calendar's, by the code of the finding."""


def _configuration(settings: Settings, *, up: bool) -> Iterator[Finding]:
    yield Finding("home", ok=True, values={"home": str(settings.home)})
    yield Finding("database_kind", ok=True, how="embedded" if settings.embedded else "configured")
    yield Finding("up", ok=True, how="running" if up else "down")
    alone = words_alone(settings)
    chosen = settings.embeddings_model == configuration.NO_MODEL
    how = "words_alone" if alone else "words_chosen" if chosen else "counts"
    yield Finding("meaning", ok=True, how=how, values={"why": alone} if alone else {})
    yield Finding(
        "alert_webhook", ok=True, how="configured" if settings.alert_url or settings.alert_apprise else "missing"
    )
    minutes: dict[str, Value] = {"every": Duration(settings.ping_minutes * 60)}
    yield Finding("alert_ping", ok=True, how="configured" if settings.ping_url else "missing", values=minutes)


def _systems(settings: Settings, now: datetime, *, ask: bool) -> Iterator[Finding]:
    probes = probing.systems(settings, now)
    for state in probing.asked(probes) if ask else [state for state, _ in probes]:
        ok = state.answer is Answer.WELL if state.answer else state.configured or state.played or not state.needed
        how, values = state_of_system(state)
        yield Finding("configured", ok=ok, subject=state.code, how=how, values=values)


def _clinics(installation: Installation, now: datetime, *, ask: bool) -> Iterator[Finding]:
    with installation.engine.connect() as connection:
        states = integration_states(connection, installation.has_token)
        asked = probing.studiolabs(connection, installation.token, now) if ask else []
    answered = {answer.clinic for answer in asked}
    for state in states:
        if state.link not in {Link.ABSENT, Link.OFF} and state.clinic not in answered:  # what was just asked is newer
            ok, values = state.link not in BROKEN, values_of_link(state)
            yield Finding("studiolab", ok=ok, subject=state.clinic, how=told_as(state), values=values)
    for answer in asked:
        how, values = state_of_system(answer)
        yield Finding("studiolab_asked", ok=answer.answer is Answer.WELL, subject=answer.clinic, how=how, values=values)


def _records(installation: Installation, now: datetime) -> Iterator[Finding]:
    with installation.engine.connect() as connection:
        faults = audit.verify(connection)
        altered: dict[str, Value] = {"count": len(faults), "first": faults[0].line} if faults else {}
        yield Finding("audit_trail", ok=not faults, values=altered)
        for code, check in INVARIANTS.items():
            found = check(connection, now)
            broken: dict[str, Value] = {"count": found.count, "examples": found.examples} if found.count else {}
            yield Finding(code, ok=found.count == 0, values=broken)
        # The desk's daily work, not a fault of the installation.
        orphans = calendar_checks.open_orphans(connection, now)
        yield Finding("open_orphans", ok=True, values={"count": orphans.count})
