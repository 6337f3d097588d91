"""Whether the installation is well: what `polydesk doctor` prints and the health endpoint answers.

It asks both databases directly, so that it also speaks when Dagster does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from polydesk_dagster.catalog import ROME, SERVICES, OnDemand, Service
from polydesk_dagster.database.engine import business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import current, head
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.schedules.due import HEARTBEAT
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import teller

if TYPE_CHECKING:
    from starlette.applications import Starlette

DAEMONS: Mapping[str, str] = {
    "SCHEDULER": "gli orari",
    "SENSOR": "i sensori",
    "QUEUED_RUN_COORDINATOR": "la coda delle esecuzioni",
    "MONITORING": "il controllo delle esecuzioni",
}
"""Dagster's daemons that must beat, and what stands still without each."""
SILENT_AFTER = timedelta(minutes=3)
PATIENCE: Mapping[str, timedelta] = {
    "QUEUED": timedelta(minutes=30),
    "NOT_STARTED": timedelta(minutes=5),
    "STARTING": timedelta(minutes=5),
    "STARTED": timedelta(hours=4),
    "CANCELING": timedelta(minutes=5),
}
"""How long a run may stay in a status before it counts as stuck."""
ENDED_BADLY: Mapping[str, str] = {
    "failed": "fallito",
    "refused": "stato rifiutato",
    "stopped": "stato fermato in parte da un controllo: il motivo è nel suo esito",
}
"""How a service's last run ended, where somebody must look."""
LARGEST_STORAGE = 5_000_000_000
"""Bytes of Dagster's storage, now or at its present growth in thirty days."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``code`` is stable English and names the runbook's row."""

    code: str
    ok: bool
    message: str
    """Italian, for the operator; what to do is in the runbook."""
    subject: str | None = None
    """The service, daemon or run that it is about."""


def examine(settings: Settings, now: datetime) -> list[Finding]:
    """Look at everything; never raises for what is wrong with the installation."""
    findings: list[Finding] = []
    ticks: dict[str, datetime] = {}
    try:
        engine = create_engine(dagster_url(settings).set(drivername="postgresql+psycopg"), pool_size=1)
        try:
            with engine.connect() as connection:
                ticks = _last_looks(connection, now)
                findings += [*_daemons(connection, now), *_stuck_runs(connection, now), _storage(connection)]
        finally:
            engine.dispose()
    except (sa.exc.SQLAlchemyError, PolydeskError) as error:
        findings.append(_unreachable("dagster_database", "Il database di Dagster", error))
    try:
        engine = create_engine(business_url(settings), pool_size=1)
        try:
            with engine.connect() as connection:
                findings += [_schema(connection), *_services(connection, now, ticks)]
        finally:
            engine.dispose()
    except (sa.exc.SQLAlchemyError, PolydeskError) as error:
        findings.append(_unreachable("database", "Il database delle cliniche", error))
    return findings


def _unreachable(code: str, what: str, error: Exception) -> Finding:
    why = str(error) if isinstance(error, PolydeskError) else type(error).__name__
    return Finding(code, ok=False, message=f"{what} non risponde: {why}")


def _schema(connection: sa.Connection) -> Finding:
    have, want = current(connection), head()
    if have == want:
        return Finding("schema", ok=True, message=f"Lo schema del database è aggiornato ({have}).")
    return Finding(
        "schema", ok=False, message=f"Lo schema del database è {have or 'vuoto'}, serve {want}: «polydesk db migrate»."
    )


def _daemons(connection: sa.Connection, now: datetime) -> Iterator[Finding]:
    beats = rows.heartbeats(connection)
    for kind, what in DAEMONS.items():
        beat = beats.get(kind)
        if beat is None:
            message = f"Il processo che tiene {what} non è mai partito: «polydesk up»."
        elif now - beat > SILENT_AFTER:
            message = f"Fermo da {_ago(now - beat)}: {what} (dalle {beat.astimezone(ROME):%d/%m %H:%M})."
        else:
            yield Finding("daemon", ok=True, message=f"Vivo: {what}.", subject=kind)
            continue
        yield Finding("daemon", ok=False, message=message, subject=kind)


def _stuck_runs(connection: sa.Connection, now: datetime) -> Iterator[Finding]:
    runs = rows.unfinished(connection, list(PATIENCE))
    stuck = 0
    for run in runs:
        if now - run.since > PATIENCE[run.status]:
            stuck += 1
            yield Finding(
                "stuck_run",
                ok=False,
                message=f"L'esecuzione di «{run.job}» è ferma in {run.status} da {_ago(now - run.since)}.",
                subject=run.run_id,
            )
    if not stuck:
        yield Finding("stuck_run", ok=True, message=f"Nessuna esecuzione bloccata ({len(runs)} in corso o in coda).")


def _last_looks(connection: sa.Connection, now: datetime) -> dict[str, datetime]:
    """When each schedule or sensor last looked whether something was due, by its name."""
    looks: dict[str, datetime] = {}
    for tick in rows.last_ticks(connection, now - timedelta(days=4)):
        if tick.status != "FAILURE":
            looks[tick.name] = max(tick.at, looks.get(tick.name, tick.at))
    return looks


def _storage(connection: sa.Connection) -> Finding:
    size, days = rows.growth(connection)
    monthly = size / max(days, 1) * 30 if days >= 3 else 0.0
    told = f"{size / 1e6:.0f} MB{f', {monthly / 1e6:.0f} MB al mese' if monthly else ''}"
    if max(size, monthly) > LARGEST_STORAGE:
        return Finding("dagster_storage", ok=False, message=f"L'archivio di Dagster è grande: {told}.")
    return Finding("dagster_storage", ok=True, message=f"L'archivio di Dagster è {told}.")


def _services(connection: sa.Connection, now: datetime, ticks: Mapping[str, datetime]) -> Iterator[Finding]:
    ended = connection.execute(
        sa.text("""
            SELECT service, max(started_at) AS at,
                   (array_agg(CASE WHEN outcome = 'partial' AND reasons @> '[{"code": "guard"}]' THEN 'stopped'
                                   ELSE outcome END ORDER BY started_at DESC))[1]
            FROM service_run WHERE NOT preview AND started_at > :since GROUP BY service"""),
        {"since": now - timedelta(days=40)},
    )
    last = {service: (at, outcome) for service, at, outcome in ended}
    for service in SERVICES:
        at, outcome = last.get(service.key, (None, None))
        if outcome in ENDED_BADLY:
            yield Finding(
                "service_failed",
                ok=False,
                message=f"«{teller().service(service.key)}» alla sua ultima esecuzione "
                f"({at.astimezone(ROME):%d/%m %H:%M}) è "
                f"{ENDED_BADLY[outcome]}.",
                subject=service.key,
            )
        yield from _overdue(service, at, ticks.get(service.sensor or service.key), now)


def _overdue(service: Service, ran: datetime | None, looked: datetime | None, now: datetime) -> Iterator[Finding]:
    """A frequent service is on time if its schedule looked whether anything was due, and it ran once a day; one that a
    sensor starts runs only where there is news, and is on time if that looked."""
    if isinstance(service.cadence, OnDemand):
        return
    interval = service.cadence.interval
    seen = max((instant for instant in (ran, looked) if instant is not None), default=None)
    name = f"«{teller().service(service.key)}» ({teller().cadence(service.cadence)})"
    if seen is None:
        yield Finding("service_overdue", ok=True, message=f"{name} non è ancora partito.", subject=service.key)
    elif now - seen > 2 * interval:
        message = f"{name} doveva già essere ripartito: l'ultima volta {_ago(now - seen)} fa."
        yield Finding("service_overdue", ok=False, message=message, subject=service.key)
    elif service.sensor is None and ran is not None and now - ran > HEARTBEAT + 2 * interval:
        message = f"{name} guarda ma non lavora: l'ultima esecuzione {_ago(now - ran)} fa."
        yield Finding("service_overdue", ok=False, message=message, subject=service.key)
    else:
        yield Finding("service_overdue", ok=True, message=f"{name} è in orario.", subject=service.key)


def _ago(span: timedelta) -> str:
    minutes = int(span.total_seconds() // 60)
    if minutes < 120:
        return f"{minutes} minuti"
    return f"{minutes // 60} ore" if minutes < 48 * 60 else f"{minutes // 1440} giorni"


def as_object(findings: list[Finding], now: datetime) -> dict[str, Any]:
    """The JSON of the endpoint and of ``doctor --json``."""
    return {
        "ok": all(finding.ok for finding in findings),
        "at": now.isoformat(),
        "findings": [asdict(finding) for finding in findings],
    }


def application(settings: Settings) -> Starlette:
    """``GET /health``: 200 if all is well, 503 if not, always with the findings as JSON."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def health(_request: Request) -> JSONResponse:
        now = datetime.now(UTC)
        findings = await run_in_threadpool(examine, settings, now)
        answer = as_object(findings, now)
        return JSONResponse(answer, status_code=200 if answer["ok"] else 503)

    return Starlette(routes=[Route("/health", health)])


PORT = 3001


def main() -> None:
    """Serve ``/health``: ``python -m polydesk_dagster.runtime.health [--host H] [--port N]``."""
    import argparse

    import uvicorn

    from polydesk_dagster import settings

    parser = argparse.ArgumentParser(description="Stato di salute dell'installazione")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    arguments = parser.parse_args()
    app = application(settings.load())
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
