"""The state of every service: the catalogue, what may start by itself, what looked and ran last, what waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY, HEARTBEAT, SERVICES, Daily, OnDemand, Service, next_run
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.runtime.state import activity as activities
from polydesk_dagster.runtime.state.model import (
    Activity,
    Condition,
    LastRun,
    Look,
    Mode,
    Running,
    ServiceState,
    Waiting,
)

LOOKED_BACK = timedelta(days=4)
"""How far back a tick is looked for: longer than any cadence."""
UNFINISHED = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")

WORST_FIRST = ("failed", "refused", "partial", "skipped", "ok", "nothing_to_do")

_RUN = """
    SELECT outcome, outcome = 'partial' AND reasons @> '[{"code": "guard"}]' AS stopped, started_at, seconds, counts,
           reasons, dagster_run, plan_id
    FROM service_run r
    WHERE r.service = w.service AND (NOT preview OR w.service = ANY(:only_look))
      AND NOT (outcome = 'skipped' AND reasons @> '[{"code": "already_running"}]')"""
_NEWEST = "ORDER BY r.clinic_id, started_at DESC, id DESC LIMIT 1"  # as its index has them, for no clinic too
LAST = f"""
    SELECT w.service, c.code, r.* FROM unnest(CAST(:services AS text[])) w(service) CROSS JOIN clinic c
    CROSS JOIN LATERAL ({_RUN} AND r.clinic_id = c.id {_NEWEST}) r
    WHERE c.active AND (NOT w.service = ANY(:per_clinic)
                        OR EXISTS (SELECT FROM integration i WHERE i.clinic_id = c.id AND i.active))
    UNION ALL
    SELECT w.service, NULL, r.* FROM unnest(CAST(:services AS text[])) w(service)
    CROSS JOIN LATERAL ({_RUN} AND r.clinic_id IS NULL {_NEWEST}) r"""
"""The newest run of each service for each of its current clinics, and for the chain; a press that came while it was
running already is no run."""

WAITING = """
    SELECT p.service, 'plan', c.code, count(*), min(p.created_at)
    FROM plan p LEFT JOIN clinic c ON c.id = p.clinic_id
    WHERE p.state = 'ready' AND p.expires_at > :as_of AND p.undoes IS NULL
      AND NOT EXISTS (SELECT FROM plan n WHERE n.service = p.service AND n.clinic_id = p.clinic_id
                                           AND n.kind = p.kind AND n.id > p.id)
      AND (p.clinic_id IS NOT NULL
           OR NOT EXISTS (SELECT FROM plan n WHERE n.service = p.service AND n.clinic_id IS NULL
                                               AND n.kind = p.kind AND n.id > p.id))
      AND EXISTS (SELECT FROM jsonb_array_elements(p.guards) g
                  WHERE NOT CAST(g ->> 'passed' AS boolean) OR CAST(g ->> 'held' AS integer) > 0)
    GROUP BY p.service, c.code
    UNION ALL
    SELECT 'import_patients', 'review', c.code, count(*), min(r.found_at)
    FROM patient_review r JOIN clinic c ON c.id = r.clinic_id WHERE r.state = 'open' GROUP BY c.code
    UNION ALL
    SELECT q.service, 'quarantine', c.code, count(*), min(q.first_seen_at)
    FROM quarantine q LEFT JOIN clinic c ON c.id = q.clinic_id
    WHERE q.resolved_at IS NULL AND q.settled_at IS NULL GROUP BY q.service, c.code
    UNION ALL
    SELECT 'sync_events', 'event', c.code,
           count(*) FILTER (WHERE e.state <> 'unknown') + count(DISTINCT e.type) FILTER (WHERE e.state = 'unknown'),
           min(e.received_at)
    FROM event_inbox e JOIN clinic c ON c.id = e.clinic_id WHERE e.state IN ('parked', 'dead', 'unknown')
    GROUP BY c.code
    UNION ALL
    SELECT CASE m.kind WHEN 'preparation' THEN 'send_preparation_notices'
                       WHEN 'activation' THEN 'resend_activation_emails' ELSE 'send_reminders' END,
           'message', c.code, count(*), min(m.changed_at)
    FROM message m JOIN clinic c ON c.id = m.clinic_id WHERE m.state = 'unknown' GROUP BY 1, c.code
    UNION ALL
    SELECT 'generate_slots', 'orphan', c.code, count(DISTINCT coalesce(t.appointment_id, -s.id)), min(o.detected_at)
    FROM orphan o JOIN slot s ON s.id = o.slot_id JOIN agenda a ON a.id = s.agenda_id
    JOIN clinic c ON c.id = a.clinic_id LEFT JOIN seat t ON t.slot_id = s.id AND t.appointment_id IS NOT NULL
    WHERE o.resolved_at IS NULL AND said_of(o, t.appointment_id) <> 'kept' AND s.starts_at > :as_of GROUP BY c.code
    ORDER BY 1, 2, 3"""


EXPECTED = """
    SELECT c.code, c.created_at, CASE WHEN i.active THEN greatest(c.created_at, i.updated_at) END
    FROM clinic c LEFT JOIN integration i ON i.clinic_id = c.id WHERE c.active"""
"""Since when there is anything to do for each clinic, and where it has a studiolab for that."""


@dataclass(frozen=True, slots=True)
class _Dagster:
    """What Dagster's storage says, by the names of schedules and sensors and of jobs."""

    looks: Mapping[str, Look] = field(default_factory=dict)
    looked_at: Mapping[str, datetime] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    running: Mapping[str, Sequence[Running]] = field(default_factory=dict)


def service_states(
    connection: sa.Connection, dagster: sa.Connection | None, as_of: datetime, *, live: bool
) -> tuple[ServiceState, ...]:
    """Every service of the catalogue as it is at ``as_of``, in the catalogue's order.

    ``dagster`` is a connection to Dagster's own database; with None nothing is known of looks, of Dagster's switches
    and of what is running. ``live`` is ``activity.starts_live``.
    """
    said = activities.activities(connection, as_of, live=live)
    theirs = _dagster(dagster, as_of) if dagster is not None else _Dagster()
    runs, waiting = _runs(connection), _waiting(connection, as_of)
    clinics = connection.execute(sa.text(EXPECTED)).all()
    anywhere = min((since for _, since, _ in clinics), default=None)
    linked = {code: since for code, _, since in clinics if since is not None}
    return tuple(
        _state(
            each,
            said[each.key],
            theirs,
            runs[each.key],
            waiting[each.key],
            linked if each.per_clinic else {},
            min(linked.values(), default=None) if each.per_clinic else anywhere,
            as_of,
        )
        for each in SERVICES
    )


def service_state(
    connection: sa.Connection, dagster: sa.Connection | None, service: str, as_of: datetime, *, live: bool
) -> ServiceState:
    """The same of one service. Raises KeyError where the catalogue has no such key."""
    states = service_states(connection, dagster, as_of, live=live)
    return states[SERVICES.index(BY_KEY[service])]


def _dagster(connection: sa.Connection, as_of: datetime) -> _Dagster:
    looks: dict[str, Look] = {}
    looked_at: dict[str, datetime] = {}
    for tick in rows.last_ticks(connection, as_of - LOOKED_BACK):
        if tick.name not in looks or tick.at > looks[tick.name].at:
            looks[tick.name] = Look(tick.status, tick.at, tick.skip_reason)
        if tick.status != "FAILURE":
            looked_at[tick.name] = max(tick.at, looked_at.get(tick.name, tick.at))
    running = defaultdict[str, list[Running]](list)
    for run in rows.unfinished(connection, UNFINISHED):
        running[run.job].append(Running(run.run_id, run.status, run.since))
    return _Dagster(looks, looked_at, rows.switches(connection), running)


def _runs(connection: sa.Connection) -> dict[str, list[LastRun]]:
    found = defaultdict[str, list[LastRun]](list)
    values = {
        "services": [service.key for service in SERVICES],
        "per_clinic": [service.key for service in SERVICES if service.per_clinic],
        "only_look": [service.key for service in SERVICES if service.only_looks],
    }
    for service, clinic, outcome, stopped, at, seconds, counts, reasons, run, plan in connection.execute(
        sa.text(LAST), values
    ):
        found[service].append(LastRun(clinic, outcome, stopped, at, seconds, counts, tuple(reasons), run, plan))
    return defaultdict(list, {key: _still_said(BY_KEY[key], runs) for key, runs in found.items()})


def _still_said(service: Service, runs: Sequence[LastRun]) -> list[LastRun]:
    """Without what a newer run has made void: a clinic's run by one of the whole chain, and for a service with a run a
    clinic what the chain as a whole came to by the next run of any clinic. Worst first."""
    chain = next((run for run in runs if run.clinic is None), None)
    clinics = [run for run in runs if run.clinic is not None]
    if chain is not None and service.per_clinic and any(run.at > chain.at for run in clinics):
        chain = None
    if chain is not None and not service.per_clinic:
        clinics = [run for run in clinics if run.at > chain.at]
    left = [*clinics, *([chain] if chain is not None else [])]
    return sorted(left, key=lambda run: (not run.bad, WORST_FIRST.index(run.outcome), run.clinic or ""))


def _waiting(connection: sa.Connection, as_of: datetime) -> dict[str, list[Waiting]]:
    found = defaultdict[str, list[Waiting]](list)
    for service, code, clinic, count, since in connection.execute(sa.text(WAITING), {"as_of": as_of}):
        found[service].append(Waiting(code, clinic, count, since))
    return found


def _state(
    service: Service,
    said: Activity,
    dagster: _Dagster,
    runs: Sequence[LastRun],
    waiting: Sequence[Waiting],
    linked: Mapping[str, datetime],
    installed: datetime | None,
    as_of: datetime,
) -> ServiceState:
    name = service.sensor or service.key
    activity = said
    if said.works and dagster.switches.get(name) is False:
        activity = Activity(Mode.SWITCHED_OFF, paused=said.paused)
    expected = activity.since or installed
    behind = _behind(service, activity, runs, linked, as_of)
    return ServiceState(
        service,
        _condition(service, activity, runs, dagster.looked_at.get(name), expected, as_of, behind=bool(behind)),
        activity,
        _next(service, activity, as_of),
        dagster.looks.get(name),
        tuple(runs),
        tuple(dagster.running.get(service.key, ())),
        tuple(waiting),
        expected,
        behind,
    )


def _behind(
    service: Service, activity: Activity, runs: Sequence[LastRun], linked: Mapping[str, datetime], as_of: datetime
) -> dict[str, datetime]:
    """See ``ServiceState.behind``; nobody is where all are, for then the service itself is late."""
    if not (isinstance(service.cadence, Daily) and activity.works):
        return {}
    due = as_of - 2 * service.cadence.interval
    ran = {run.clinic: run.at for run in runs if run.clinic is not None}
    if not any(at >= due for at in ran.values()):
        return {}
    seen = {
        code: max(at for at in (since, activity.since, activity.resumed.get(code), ran.get(code)) if at is not None)
        for code, since in linked.items()
        if code not in activity.paused
    }
    return {code: at for code, at in sorted(seen.items(), key=lambda each: (each[1], each[0])) if at < due}


def _next(service: Service, activity: Activity, as_of: datetime) -> datetime | None:
    match activity.mode:
        case Mode.ON:
            return next_run(service, as_of)
        case Mode.PAUSED if activity.until is not None:
            return next_run(service, activity.until)
        case _:
            return None


def _condition(
    service: Service,
    activity: Activity,
    runs: Sequence[LastRun],
    looked: datetime | None,
    expected: datetime | None,
    as_of: datetime,
    *,
    behind: bool,
) -> Condition:
    """A frequent service is on time if its schedule looked whether anything was due, and it ran once a day; one that a
    sensor starts runs only where there is news, and is on time if that looked. What was let or resumed, or has had
    anything to do, since ``expected`` counts as seen at that instant."""
    if any(run.bad for run in runs):
        return Condition.FAILED
    if activity.mode not in {Mode.ON, Mode.ON_DEMAND}:
        return Condition.STANDING
    ran = max((run.at for run in runs), default=None)
    if isinstance(service.cadence, OnDemand):
        return Condition.WELL if runs else Condition.NEVER_RAN
    seen = max((instant for instant in (ran, looked, expected) if instant is not None), default=None)
    interval = service.cadence.interval
    if seen is None:
        return Condition.NEVER_RAN
    if behind or as_of - seen > 2 * interval:
        return Condition.OVERDUE
    worked = max((instant for instant in (ran, expected) if instant is not None), default=None)
    if service.sensor is None and worked is not None and as_of - worked > HEARTBEAT + 2 * interval:
        return Condition.IDLE
    return Condition.WELL if runs else Condition.NEVER_RAN
