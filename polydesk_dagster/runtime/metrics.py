"""What an installation shows a monitoring system: few figures, each the answer to a question that somebody on call has.

Instants are told as seconds since 1970, so that an age is ``time() - figure`` and goes on growing when nobody answers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.runtime import unread
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.runtime.state.activity import activity, starts_live
from polydesk_dagster.runtime.state.services import LOOKED_BACK, UNFINISHED, WAITING
from polydesk_dagster.settings import Settings

LAG = timedelta(minutes=15)
"""How far back starts of runs are looked at."""

Gauge = tuple[str, str, tuple[str, ...]]

GOOD: Gauge = (
    "polydesk_service_last_good_timestamp_seconds",
    "Since when has this service not done its work for this clinic (chain: for all of them)?",
    ("service", "clinic"),
)
LOOKED: Gauge = (
    "polydesk_service_last_look_timestamp_seconds",
    "Does anybody still look whether this service has something to do?",
    ("service",),
)
WAITS: Gauge = (
    "polydesk_waiting",
    "What waits for a person: doubtful messages, parked events, plans, patients in review, quarantine, orphans?",
    ("kind", "clinic"),
)
OLDEST: Gauge = (
    "polydesk_waiting_oldest_timestamp_seconds",
    "For how long has the oldest of them been waiting?",
    ("kind", "clinic"),
)
UNREAD: Gauge = (
    "polydesk_clinic_unread_since_timestamp_seconds",
    "Since when have the events of this clinic's studiolab not been readable (none: all are read)?",
    ("clinic",),
)
RUNS: Gauge = ("polydesk_runs", "How many runs are queued, starting, working or being stopped?", ("status",))
LAGGED: Gauge = (
    "polydesk_run_start_lag_seconds",
    "How long did the slowest run of the last quarter of an hour wait between being asked for and working?",
    (),
)
BEATS: Gauge = (
    "polydesk_daemon_beat_timestamp_seconds",
    "Does each part of Dagster's daemon still beat?",
    ("daemon",),
)
DATABASE: Gauge = ("polydesk_database_up", "Does the database answer?", ("database",))
SIZE: Gauge = ("polydesk_database_bytes", "How large is the database?", ("database",))
FREE: Gauge = ("polydesk_disk_free_bytes", "How much room is left where the home is?", ())

_GOOD_RUN = """
    SELECT extract(epoch FROM started_at + make_interval(secs => seconds)) AS ended FROM service_run r
    WHERE r.service = w.service AND NOT preview AND outcome IN ('ok', 'nothing_to_do')"""
_NEWEST = "ORDER BY started_at DESC, id DESC LIMIT 1"
_GOOD = f"""
    SELECT w.service, c.code, r.ended FROM unnest(CAST(:services AS text[])) w(service) CROSS JOIN clinic c
    CROSS JOIN LATERAL ({_GOOD_RUN} AND r.clinic_id = c.id {_NEWEST}) r WHERE c.active
    UNION ALL
    SELECT w.service, 'chain', r.ended FROM unnest(CAST(:services AS text[])) w(service)
    CROSS JOIN LATERAL ({_GOOD_RUN} AND r.clinic_id IS NULL {_NEWEST}) r"""
_SIZE = sa.text("SELECT pg_database_size(current_database())")


def exposition(settings: Settings, ours: Engine, theirs: Engine, now: datetime) -> bytes:
    """All of it in Prometheus' text format; what a database does not say is left out, and that it does not is told."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(_families(settings, ours, theirs, now))))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def _families(settings: Settings, ours: Engine, theirs: Engine, now: datetime) -> Iterator[GaugeMetricFamily]:
    up, size = _gauge(DATABASE), _gauge(SIZE)
    of_ours = partial(_ours, live=starts_live(settings))
    for name, engine, read in (("polydesk", ours, of_ours), ("dagster", theirs, _theirs)):
        try:
            with engine.connect() as connection:
                size.add_metric([name], float(connection.scalar(_SIZE) or 0))
                yield from list(read(connection, now))
            up.add_metric([name], 1.0)
        except sa.exc.SQLAlchemyError:
            up.add_metric([name], 0.0)
    yield from (up, size)
    free = _gauge(FREE)
    free.add_metric([], shutil.disk_usage(settings.home if settings.home.exists() else settings.home.anchor).free)
    yield free


def _ours(connection: sa.Connection, now: datetime, *, live: bool) -> Iterator[GaugeMetricFamily]:
    good = _gauge(GOOD)
    for service, clinic, at in connection.execute(sa.text(_GOOD), {"services": [each.key for each in SERVICES]}):
        good.add_metric([service, clinic], float(at))
    yield good
    waits, oldest = _gauge(WAITS), _gauge(OLDEST)
    counted: dict[tuple[str, str], tuple[int, float]] = {}
    for _service, kind, clinic, count, since in connection.execute(sa.text(WAITING), {"as_of": now}):
        before, first = counted.get((kind, clinic or "chain"), (0, since.timestamp()))
        counted[kind, clinic or "chain"] = before + count, min(first, since.timestamp())
    for (kind, clinic), (count, first) in counted.items():
        waits.add_metric([kind, clinic], count)
        oldest.add_metric([kind, clinic], first)
    yield from (waits, oldest)
    since, reading = _gauge(UNREAD), activity(connection, "sync_events", now, live=live)
    for each in unread.unread(connection, now, reading.paused) if reading.works else ():
        since.add_metric([each.code], each.since.timestamp())
    yield since


def _theirs(connection: sa.Connection, now: datetime) -> Iterator[GaugeMetricFamily]:
    looked = _gauge(LOOKED)
    names = {each.sensor or each.key: each.key for each in SERVICES}
    seen: dict[str, float] = {}
    for tick in rows.last_ticks(connection, now - LOOKED_BACK):
        service = names.get(tick.name)
        if service is not None and tick.status != "FAILURE":
            seen[service] = max(tick.at.timestamp(), seen.get(service, 0.0))
    for service, at in seen.items():
        looked.add_metric([service], at)
    yield looked
    runs = _gauge(RUNS)
    statuses = [run.status for run in rows.unfinished(connection, UNFINISHED)]
    for status in UNFINISHED:
        runs.add_metric([status.lower()], statuses.count(status))
    yield runs
    lag = _gauge(LAGGED)
    lag.add_metric([], rows.start_lag(connection, now - LAG))
    yield lag
    beats = _gauge(BEATS)
    for daemon, beat in rows.heartbeats(connection).items():
        beats.add_metric([daemon.lower()], beat.timestamp())
    yield beats


def _gauge(gauge: Gauge) -> GaugeMetricFamily:
    name, question, labels = gauge
    return GaugeMetricFamily(name, question, labels=labels)
