"""Whether the installation is well: what `polydesk doctor` prints and the health endpoint answers.

It asks both databases directly, so that it also speaks when Dagster does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import ROME, OnDemand
from polydesk_dagster.database.engine import business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import current, head
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.runtime.state.activity import starts_live
from polydesk_dagster.runtime.state.model import Condition, ServiceState
from polydesk_dagster.runtime.state.services import service_states
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import teller
from polydesk_dagster.told.state import standing

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
    with (
        _reached("dagster_database", "Il database di Dagster", lambda: _dagster_url(settings), findings) as theirs,
        _reached("database", "Il database delle cliniche", lambda: business_url(settings), findings) as ours,
    ):
        if theirs is not None:
            findings += [*_daemons(theirs, now), *_stuck_runs(theirs, now), _storage(theirs)]
        if ours is not None:
            findings += [_schema(ours), *_services(ours, theirs, now, live=starts_live(settings))]
    return findings


def _dagster_url(settings: Settings) -> URL:
    return dagster_url(settings).set(drivername="postgresql+psycopg")


@contextmanager
def _reached(code: str, what: str, url: Callable[[], URL], findings: list[Finding]) -> Iterator[sa.Connection | None]:
    """A connection to a database; None, with a finding that says why, where there is none to be had. What goes wrong
    with it in the block is a finding too, and ends the block."""
    try:
        engine = create_engine(url(), pool_size=1)
        connection = engine.connect()
    except (sa.exc.SQLAlchemyError, PolydeskError) as error:
        findings.append(_unreachable(code, what, error))
        yield None
        return
    try:
        yield connection
    except sa.exc.SQLAlchemyError as error:
        findings.append(_unreachable(code, what, error))
    finally:
        connection.close()
        engine.dispose()


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


def _storage(connection: sa.Connection) -> Finding:
    size, days = rows.growth(connection)
    monthly = size / max(days, 1) * 30 if days >= 3 else 0.0
    told = f"{size / 1e6:.0f} MB{f', {monthly / 1e6:.0f} MB al mese' if monthly else ''}"
    if max(size, monthly) > LARGEST_STORAGE:
        return Finding("dagster_storage", ok=False, message=f"L'archivio di Dagster è grande: {told}.")
    return Finding("dagster_storage", ok=True, message=f"L'archivio di Dagster è {told}.")


def _services(
    connection: sa.Connection, dagster: sa.Connection | None, now: datetime, *, live: bool
) -> Iterator[Finding]:
    for state in service_states(connection, dagster, now, live=live):
        name, key = teller().service(state.service.key), state.service.key
        for run in state.runs:
            if run.bad:
                whose = f" per {run.clinic}" if run.clinic else ""
                how = ENDED_BADLY["stopped" if run.stopped else run.outcome]
                when = f"{run.at.astimezone(ROME):%d/%m %H:%M}"
                message = f"«{name}» alla sua ultima esecuzione{whose} ({when}) è {how}."
                yield Finding("service_failed", ok=False, message=message, subject=key)
        if not isinstance(state.service.cadence, OnDemand):
            yield Finding(
                "service_overdue",
                ok=not state.bad or state.condition is Condition.FAILED,
                message=_punctual(state, now),
                subject=key,
            )


def _punctual(state: ServiceState, now: datetime) -> str:
    name = f"«{teller().service(state.service.key)}» ({teller().cadence(state.service.cadence)})"
    seen = [at for at in (state.last_at, state.look.at if state.look else None, state.activity.since) if at is not None]
    match state.condition:
        case Condition.STANDING:
            return f"{name} non parte da solo: {standing(teller(), state.activity)}."
        case Condition.NEVER_RAN if not seen:
            return f"{name} non è ancora partito."
        case Condition.OVERDUE:
            return f"{name} doveva già essere ripartito: l'ultima volta {_ago(now - max(seen))} fa."
        case Condition.IDLE:
            return f"{name} guarda ma non lavora: l'ultima esecuzione {_ago(now - (state.last_at or now))} fa."
        case _:
            return f"{name} è in orario."


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

    keep_to_ourselves()
    parser = argparse.ArgumentParser(description="Stato di salute dell'installazione")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    arguments = parser.parse_args()
    app = application(settings.load())
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
