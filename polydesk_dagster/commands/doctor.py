"""``polydesk doctor``: what is configured, reachable, stale, and what a person should do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
import typer
from rich.text import Text

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation, opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.runtime import health, supervisor
from polydesk_dagster.runtime.health import Finding
from polydesk_dagster.settings import Settings, variable

SYSTEMS = (
    ("central", "Server centrale", "central_url"),
    ("sms", "Gateway SMS", "sms_url"),
    ("mail", "Posta", "smtp_url"),
    ("embeddings", "Embedding", "embeddings_url"),
)


def doctor(json: Annotated[bool, typer.Option("--json", help="Un oggetto JSON.")] = False) -> None:
    """Guarda com'è messa l'installazione. Stato d'uscita 0 se tutto va bene, 1 se qualcosa chiede attenzione."""
    now = datetime.now(UTC)
    with opened(create=False) as installation:
        settings = installation.settings
        up = supervisor.running(settings.home) is not None
        findings = [*_configuration(settings, up=up), *_clinics(installation), *_records(installation, now)]
        watched = health.examine(settings, now)
        # Where nothing is meant to be running, silent daemons and overdue services are no news.
        findings += watched if up or not settings.embedded else [f for f in watched if f.code in RESTING]
    well = all(finding.ok for finding in findings)
    if json:
        show.as_json(health.as_object(findings, now))
    else:
        mark = {True: Text(say("bene", "ok"), "green"), False: Text(say("guarda", "look"), "red")}
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
    for code, name, field in SYSTEMS:
        if getattr(settings, field) is not None:
            yield Finding(
                "configured", ok=True, message=say(f"{name}: configurato", f"{code}: configured"), subject=code
            )
        elif settings.embedded or code == "embeddings":
            played = say("non configurato, lo recita il simulatore", "not configured, played by the simulator")
            absent = say("non configurato, non serve", "not configured, not needed")
            message = absent if code == "embeddings" else played
            yield Finding("configured", ok=True, message=f"{name}: {message}", subject=code)
        else:
            missing = say(f"{name}: manca {variable(field)}", f"{code}: {variable(field)} is missing")
            yield Finding("configured", ok=False, message=missing, subject=code)


def _clinics(installation: Installation) -> Iterator[Finding]:
    with installation.engine.connect() as connection:
        rows = connection.execute(
            sa.text("""
                SELECT c.code, i.token_env FROM clinic c JOIN integration i ON i.clinic_id = c.id
                WHERE i.active ORDER BY c.code""")
        ).all()
    played = installation.settings.embedded
    for code, token in rows:
        known = bool(os.environ.get(token)) or (played and token.startswith("POLYDESK_DEMO_"))
        message = say(f"studiolab attivo, token in {token}", f"studiolab on, token in {token}")
        if not known:
            message = say(f"studiolab attivo, ma {token} non è impostata", f"studiolab on, but {token} is not set")
        yield Finding("studiolab", ok=known, message=message, subject=code)


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
