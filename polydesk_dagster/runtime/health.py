"""Whether the installation is well: what `polydesk doctor` prints and the health endpoint answers.

It asks both databases directly, so that it also speaks when Dagster does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import OnDemand
from polydesk_dagster.database import refusals
from polydesk_dagster.database.engine import Role, business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import current, head, unsuited
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.runtime import unread
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.runtime.loaded import code_loads
from polydesk_dagster.runtime.state.activity import starts_live
from polydesk_dagster.runtime.state.model import Condition, Finding, LastRun, ServiceState, few
from polydesk_dagster.runtime.state.services import service_states
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import Teller
from polydesk_dagster.told.state import told_of_finding
from polydesk_dagster.values import Duration, Instant, ServiceKey, Term, Value, to_json

DAEMONS = ("SCHEDULER", "SENSOR", "QUEUED_RUN_COORDINATOR", "MONITORING")
"""Dagster's daemons that must beat."""
SILENT_AFTER = timedelta(minutes=3)
PATIENCE: Mapping[str, timedelta] = {
    "QUEUED": timedelta(minutes=30),
    "NOT_STARTED": timedelta(minutes=5),
    "STARTING": timedelta(minutes=5),
    "STARTED": timedelta(hours=4),
    "CANCELING": timedelta(minutes=5),
}
"""How long a run may stay in a status before it counts as stuck."""
LARGEST_STORAGE = 5_000_000_000
"""Bytes of Dagster's storage, now or at its present growth in thirty days."""


def examine(settings: Settings, now: datetime) -> list[Finding]:
    """Look at everything; never raises for what is wrong with the installation."""
    findings = [*code_loads(settings.home)]
    with (
        _reached("dagster_database", lambda: _dagster_url(settings), findings) as theirs,
        _reached("database", lambda: business_url(settings, Role.READER), findings) as ours,
    ):
        begun = theirs if theirs is not None and rows.written(theirs) else None
        if theirs is not None and begun is None:
            findings.append(Finding("dagster_database", ok=False, how="empty"))
        if begun is not None:
            findings += [*_daemons(begun, now), *_stuck_runs(begun, now), _storage(begun)]
        if ours is not None:
            states = service_states(ours, begun, now, live=starts_live(settings))
            findings += [_schema(ours), _restored(ours), *_services(states, now), *_unread(ours, states, now)]
    return findings


def _dagster_url(settings: Settings) -> URL:
    return dagster_url(settings, Role.READER).set(drivername="postgresql+psycopg")


@contextmanager
def _reached(code: str, url: Callable[[], URL], findings: list[Finding]) -> Iterator[sa.Connection | None]:
    """A connection to a database; None, with a finding that says why, where there is none to be had. What goes wrong
    with it in the block is a finding too, and ends the block."""
    where: URL | None = None
    try:
        where = url()
        engine = create_engine(where, pool_size=1, reads=True)
        connection = engine.connect()
    except (sa.exc.SQLAlchemyError, PolydeskError) as error:
        findings.append(_unreachable(code, error, where))
        yield None
        return
    try:
        yield connection
    except sa.exc.SQLAlchemyError as error:
        findings.append(_unreachable(code, error, where))
    finally:
        connection.close()
        engine.dispose()


def _unreachable(code: str, error: Exception, where: URL | None) -> Finding:
    known = refusals.known(error, where) if where else None
    why = error.reason if isinstance(error, PolydeskError) else known
    if why is not None:
        return Finding(code, ok=False, how="refused", values={"why": why})
    return Finding(code, ok=False, values={"why": type(error).__name__})


def _schema(connection: sa.Connection) -> Finding:
    have, want = current(connection), head()
    values: dict[str, Value] = {"found": have, "wanted": want}
    wrong = unsuited(connection)
    how = {"schema_missing": "empty", "schema_newer": "newer"}.get(wrong.reason.code) if wrong is not None else None
    return Finding("schema", ok=wrong is None, how=how, values=values)


def _restored(connection: sa.Connection) -> Finding:
    since = connection.scalar(sa.text("SELECT held_since FROM installation"))
    return Finding("restored", ok=since is None, values={"since": Instant(since) if since else None})


def _daemons(connection: sa.Connection, now: datetime) -> Iterator[Finding]:
    beats = rows.heartbeats(connection)
    for kind in DAEMONS:
        beat, daemon = beats.get(kind), Term("daemon", kind)
        if beat is None:
            yield Finding("daemon", ok=False, subject=kind, how="never", values={"daemon": daemon})
            continue
        values: dict[str, Value] = {"daemon": daemon, "silent": _since(beat, now), "at": Instant(beat)}
        yield Finding("daemon", ok=now - beat <= SILENT_AFTER, subject=kind, values=values)


def _stuck_runs(connection: sa.Connection, now: datetime) -> Iterator[Finding]:
    """Those that stand alike together: where nothing is started any more there are hundreds."""
    runs = rows.unfinished(connection, list(PATIENCE))
    stuck: dict[tuple[str, str], list[rows.UnfinishedRun]] = {}
    for run in runs:
        if now - run.since > PATIENCE[run.status]:
            stuck.setdefault((run.job, run.status), []).append(run)
    for (job, status), alike in stuck.items():
        longest = min(alike, key=lambda run: run.since)
        values: dict[str, Value] = {"service": ServiceKey(job), "status": Term("run_status", status)}
        values |= {"lasting": _since(longest.since, now), "count": len(alike)}
        yield Finding("stuck_run", ok=False, subject=longest.run_id, values=values)
    if not stuck:
        yield Finding("stuck_run", ok=True, values={"count": len(runs)})


def _storage(connection: sa.Connection) -> Finding:
    size, days = rows.growth(connection)
    monthly = size / max(days, 1) * 30 if days >= 3 else 0.0
    large = max(size, monthly) > LARGEST_STORAGE
    values: dict[str, Value] = {"megabytes": round(size / 1e6), "monthly": round(monthly / 1e6)}
    return Finding("dagster_storage", ok=not large, how="grows" if monthly and not large else None, values=values)


def _services(states: Sequence[ServiceState], now: datetime) -> Iterator[Finding]:
    for state in states:
        yield from _failed(state)
        if not isinstance(state.service.cadence, OnDemand):
            yield _punctual(state, now)


def _failed(state: ServiceState) -> Iterator[Finding]:
    """Whose last run ended badly: those that ended alike together, or a chain's clinics would be as many findings."""
    key = state.service.key
    alike: dict[str, list[LastRun]] = {}
    for run in state.runs:
        if run.bad:
            alike.setdefault("stopped" if run.stopped else run.outcome, []).append(run)
    for how, runs in alike.items():
        whose = few([run.clinic or Term("whose", "chain") for run in runs], "other_clinics")
        at = Instant(max(run.at for run in runs))
        values: dict[str, Value] = {"service": ServiceKey(key), "whose": whose, "at": at}
        yield Finding("service_failed", ok=False, subject=key, how=how, values=values)


def _unread(connection: sa.Connection, states: Sequence[ServiceState], now: datetime) -> Iterator[Finding]:
    """Clinics whose events cannot be read, while reading them is not meant to stand still."""
    reading = next(state.activity for state in states if state.service.key == "sync_events")
    if reading.works:
        yield from unread.findings(connection, now, reading.paused)


def _punctual(state: ServiceState, now: datetime) -> Finding:
    key, activity = state.service.key, state.activity
    values: dict[str, Value] = {"service": ServiceKey(key)}
    seen = [at for at in (state.last_at, state.look.at if state.look else None, activity.since) if at is not None]
    never = state.last_at is None and (state.look is None or state.condition is Condition.IDLE)
    how = None
    match state.condition:
        case _ if state.behind:
            how = "behind"
            values["whose"] = few(list(state.behind), "other_clinics")
            values["silent"] = _since(next(iter(state.behind.values())), now)
        case Condition.STANDING if activity.until is not None:
            how = "paused"
            values |= {"until": Instant(activity.until), "actor": activity.actor, "reason": activity.reason}
        case Condition.STANDING:
            how = "standing"
            values["mode"] = Term("mode", activity.mode)
        case Condition.NEVER_RAN if not seen:
            how = "never"
        case Condition.OVERDUE | Condition.IDLE if never and state.expected_since is not None:
            how = "never_though"
            values["silent"] = _since(state.expected_since, now)
        case Condition.OVERDUE:
            how = "overdue"
            values["silent"] = _since(max(seen), now)
        case Condition.IDLE:
            how = "idle"
            values["silent"] = _since(state.last_at or now, now)
    ok = not state.behind and (not state.bad or state.condition is Condition.FAILED)
    return Finding("service_overdue", ok=ok, subject=key, how=how, values=values)


def _since(then: datetime, now: datetime) -> Duration:
    return Duration(max((now - then).total_seconds(), 0))


def as_object(findings: list[Finding], now: datetime, t: Teller) -> dict[str, Any]:
    """The JSON of the endpoint and of ``doctor --json``: codes and values, and beside them what they say. With
    warnings alone the installation is well."""
    return {
        "ok": all(finding.ok or finding.warning for finding in findings),
        "at": now.isoformat(),
        "findings": [
            {
                "code": each.code,
                "ok": each.ok,
                "warning": each.warning,
                "subject": each.subject,
                "how": each.how,
                "values": to_json(each.values),
                "message": told_of_finding(t, each),
            }
            for each in findings
        ],
    }
