"""One run for many clinics: which they are, so many at a time, each with its own outcome, and what is left of them.

A run is for many where it covers a range of partitions, as a backfill does; its config may leave only some of them.
What needs no other asset can also be made in a run of no partition.
No ``from __future__ import annotations``: Dagster reads the annotations.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

import dagster as dg
import sqlalchemy as sa
from pydantic import Field

from polydesk_dagster.catalog import Service
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.database import service_runs
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Context, Run, ServiceConfig, performed, unknown_partition, unrecorded_told
from polydesk_dagster.runtime import canceling
from polydesk_dagster.told import dagster as told
from polydesk_dagster.told import teller

SIDE_BY_SIDE = 4
"""Clinics at a time in one run; each takes up to three connections, and the memory of one list's page and plan."""

A_RUN = 100
"""Clinics that a schedule asks for in one run: who is killed with it, and what it remembers of each, stays bounded."""

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

ALL_AT_ONCE = dg.BackfillPolicy.single_run()
"""Of every asset that is made so: one run may cover any range of its partitions."""

NOT_WELL = frozenset({Outcome.REFUSED, Outcome.FAILED})

_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


class ManyConfig(ServiceConfig):
    """What a service can be asked that one run does for many clinics."""

    clinics: list[str] = Field(default_factory=list)
    """Codes of the clinics that a run for many is for; default all of its range, or all whose integration is on."""


def stamp(wanted: Mapping[str, tuple[int, int]]) -> str:
    """What tells one request for many clinics from the next in a run's key: each clinic's newest number and attempt."""
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]


def about(run: dg.DagsterRun, partitions: Sequence[str]) -> set[str]:
    """The clinics that a run names: by its partition, by a range of ``partitions`` (Dagster's, in their order), in its
    config, or by those of the range that stand in the config. Empty for a run that names nobody, which is for whoever
    is active when it comes."""
    if (alone := run.tags.get("dagster/partition")) is not None:
        return {alone}
    steps: Any = run.run_config.get("ops", {})
    asked = {clinic for step in steps.values() for clinic in (step.get("config") or {}).get("clinics", ())}
    first, last = (run.tags.get(tag) for tag in _RANGE)
    if first not in partitions or last not in partitions:
        return asked
    within = set(partitions[partitions.index(str(first)) : partitions.index(str(last)) + 1])
    return within & asked if asked else within


def covering(clinics: Collection[str], partitions: Sequence[str]) -> dict[str, str]:
    """The tags of a run for ``clinics``, one or more: the range of ``partitions`` (Dagster's, in their order) from the
    first of them to the last. Where others stand between, the config names the clinics too.

    Raises:
        ValueError: where none of them is a partition.
    """
    places = [place for place, partition in enumerate(partitions) if partition in clinics]
    if not places:
        raise ValueError("none of the clinics is a partition")
    return {_RANGE[0]: partitions[places[0]], _RANGE[1]: partitions[places[-1]]}


def under_way(
    instance: dg.DagsterInstance, service: str | None = None, *, done_with: sa.Connection | None = None
) -> set[str]:
    """The clinics that a run of ``service``, or of any, is about or will be. A ``service`` of one step may be
    ``done_with`` a clinic while its run goes on for others: by what our database has of that, who is so is left out."""
    partitions = instance.get_dynamic_partitions("clinic")
    runs = instance.get_runs(dg.RunsFilter(job_name=service, statuses=UNFINISHED))
    done: dict[str, set[str]] = {}
    if done_with is not None and service is not None and runs:
        done = service_runs.ended(done_with, [run.run_id for run in runs], service)
    return set[str]().union(*(about(run, partitions) - done.get(run.run_id, set()) for run in runs))


def requests(
    instance: dg.DagsterInstance, service: Service, clinics: Collection[str], key: str
) -> Iterator[dg.RunRequest]:
    """What asks for ``service`` for these clinics, so many a run; their keys begin with ``key``. Who is no partition
    yet becomes one.

    The clinics are named to the first step of a run, which binds the others.
    """
    instance.add_dynamic_partitions("clinic", sorted(clinics))
    partitions = instance.get_dynamic_partitions("clinic")
    coming = iter([partition for partition in partitions if partition in clinics])
    while together := list(islice(coming, A_RUN)):
        run_key, tags = f"{key}:{together[0]}", {"polydesk/service": service.key}
        if len(together) == 1:
            yield dg.RunRequest(run_key, tags=tags, partition_key=together[0])
            continue
        config = {"ops": {service.steps[0]: {"config": {"clinics": together}}}}
        yield dg.RunRequest(run_key, config, tags | covering(together, partitions))


def clinics_of(context: Context, engine: sa.Engine, config: ManyConfig) -> list[str] | None:
    """The clinics that this run is for; None where it is for the one of its partition."""
    if context.has_partition_key:
        return None
    if context.has_partition_key_range:
        return [clinic for clinic in context.partition_keys if not config.clinics or clinic in config.clinics]
    if config.clinics:
        return list(dict.fromkeys(config.clinics))
    with engine.connect() as connection:
        return list(connection.scalars(ACTIVE_CLINICS))


def left(context: Context, key: dg.AssetKey, clinics: Sequence[str]) -> list[str]:
    """Those of ``clinics`` for which neither the run that this one is another attempt at, nor any attempt between, has
    made the asset ``key``: what went well is not done again."""
    root = context.run.root_run_id
    if root is None or not clinics:
        return list(clinics)
    tried = {"dagster/root_run_id": root}
    runs = {root, *(run.run_id for run in context.instance.get_runs(dg.RunsFilter(tags=tried)))}
    record = context.instance.get_run_record_by_id(root)
    since = None if record is None else record.create_timestamp
    done = {clinic for clinic, run in made(context.instance, key, clinics, since) if run in runs}
    return [clinic for clinic in clinics if clinic not in done]


def made(
    instance: dg.DagsterInstance, key: dg.AssetKey, clinics: Sequence[str], since: datetime | None
) -> Iterator[tuple[str, str]]:
    """Each time that the asset ``key`` was made for one of ``clinics`` after ``since``: the clinic, and the run."""
    after = None if since is None else since.timestamp()
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=list(clinics), after_timestamp=after)
    cursor, more = None, bool(clinics)
    while more:
        page = instance.fetch_materializations(wanted, limit=1000, cursor=cursor)
        for found in page.records:
            if found.partition_key is not None:
                yield found.partition_key, found.run_id
        cursor, more = page.cursor, page.has_more


def ended_badly(connection: sa.Connection, run: str, services: Sequence[str]) -> dict[str, Report]:
    """The clinics for which one of ``services`` was refused or failed in this Dagster run, each with how."""
    found: dict[str, Report] = {}
    for service in services:
        for clinic, report in service_runs.recorded(connection, run, service):
            if clinic is not None and report.outcome in NOT_WELL:
                found[clinic] = brief(report)
    return found


def brief(report: Report) -> Report:
    """``report`` without its tables, which stay in the database: of a thousand clinics they would fill the memory."""
    return replace(report, tables=())


def perform_each(
    context: Context,
    polydesk: PolydeskResource,
    service: str,
    config: ServiceConfig,
    rule: Callable[[Run], Report],
    clinics: Iterable[str | None],
) -> Iterator[tuple[str, Report]]:
    """``perform`` for each of these clinics in one run, ``SIDE_BY_SIDE`` at a time: each with its report, as it comes.
    What one comes to is nothing to the others. ``clinics`` is asked for the next one when there is a place for it; None
    says that it is nobody's turn yet.

    Raises:
        dagster.Failure: where the database's schema does not suit this program.
    """
    name = teller().service(service)
    with unrecorded_told(name, polydesk):
        settings, engine = polydesk.settings(), polydesk.engine()
        with engine.connect() as connection:
            ours = set(connection.scalars(sa.text("SELECT code FROM clinic")))
        with canceling.fenced(context.instance, context.run.run_id, engine), ThreadPoolExecutor(SIDE_BY_SIDE) as pool:

            def one(clinic: str) -> Report:
                unknown = None if clinic in ours else unknown_partition(engine, clinic)
                return unknown or performed(context, polydesk, settings, engine, service, config, rule, name, clinic)

            under_way: dict[Future[Report], str] = {}
            try:
                for clinic in clinics:
                    if clinic is not None:
                        under_way[pool.submit(one, clinic)] = clinic
                    yield from _ended(under_way, None if len(under_way) == SIDE_BY_SIDE else 0)
                while under_way:
                    yield from _ended(under_way, None)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _ended(under_way: dict[Future[Report], str], patience: float | None) -> Iterator[tuple[str, Report]]:
    """Those that have ended, or the first that do within ``patience`` (seconds; None: however long)."""
    done, _ = wait(under_way, patience, FIRST_COMPLETED)
    for each in done:
        yield under_way.pop(each), each.result()


def shown_of(key: dg.AssetKey, clinic: str, report: Report) -> dg.AssetMaterialization | dg.AssetObservation:
    """What ``running.shown`` says of one run, of one clinic of a run for many, for its log."""
    kind = dg.AssetObservation if report.preview or report.outcome is Outcome.SKIPPED else dg.AssetMaterialization
    return kind(asset_key=key, metadata=told.brief(report), partition=clinic)
