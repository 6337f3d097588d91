"""Default closures: the central server's set of a year against ours, and the slots of the days that it touches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import synchronise as engine_of_plans
from polydesk_dagster.changes.kind import Kind, Limits, Source
from polydesk_dagster.changes.plans import ITALY, Scope
from polydesk_dagster.changes.stage import Page, Unreadable
from polydesk_dagster.clinic.calendar.touched import derive_touched
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import Outcome, Reason, Report, combine

SERVICE = "import_closures"
YEARS = 2
"""The year in course and those after it that are asked for."""

NOON = "13:00"
"""Where a half day ends or begins."""

NAMED = """r.name || ', ' || to_char(r.date_from, 'DD/MM/YYYY')
           || CASE WHEN r.date_to > r.date_from THEN ' – ' || to_char(r.date_to, 'DD/MM/YYYY') ELSE '' END"""
"""SQL over ``r``: how people call a closure."""

HALVES = {"day": (None, None), "morning": ("00:00", NOON), "afternoon": (NOON, "23:59:59")}


def _prepare(closure: Any) -> tuple[Any, ...]:
    from_time, to_time = HALVES[closure.part]
    return (
        closure.id,
        closure.name,
        closure.date_from,
        closure.date_to,
        from_time,
        to_time,
        closure.scope,
        closure.region,
        closure.municipality,
    )


_CHANGED = """
    SELECT layer, region, municipality_code, CAST(NULL AS bigint) AS clinic_id, CAST(NULL AS bigint) AS agenda_id,
           date_from, date_to
    FROM {rows} r WHERE action IN ('create', 'update', 'retire')
    UNION
    SELECT was_layer, was_region, was_municipality_code, NULL, NULL, was_date_from, was_date_to
    FROM {rows} r WHERE action IN ('update', 'retire', 'delete') AND was_date_from IS NOT NULL"""


def _derive(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:
    return derive_touched(connection, _CHANGED.format(rows=rows), as_of)


CLOSURE = Kind(
    name="closure",
    table="closure",
    key=NAMED,
    fixed=("source", "source_year", "source_id", "source_version"),
    owned=(
        "layer",
        "name",
        "date_from",
        "date_to",
        "from_time",
        "to_time",
        "region",
        "municipality_code",
        "lifted_at",
    ),
    kept=("effect", "yearly", "clinic_id", "agenda_id"),
    taken="t.source = r.source AND t.source_year = r.source_year AND t.source_id = r.source_id",
    limits=Limits(minimum=1, shrink=0.3, rejected=0.2, retired=0.3),
    dependents=("orphan",),
    undo_before=(
        "UPDATE orphan SET closure_id = NULL WHERE closure_id IN (SELECT id FROM {rows} r WHERE action = 'delete')",
    ),
    effect=_derive,
    source=Source(
        columns={
            "source_id": "text",
            "name": "text",
            "date_from": "date",
            "date_to": "date",
            "from_time": "time",
            "to_time": "time",
            "scope": "text",
            "region": "text",
            "municipality": "text",
        },
        prepare=_prepare,
        label=lambda closure: str(closure.id),
        text=("name",),
        key=("{}.source_id",),
        apart=("source_id",),
        desired="""
            SELECT s.n, s.source_id, s.name, s.date_from, s.date_to, s.from_time, s.to_time, s.scope AS layer,
                   CASE WHEN s.scope = 'region' THEN coalesce(known.region, s.region) END AS region,
                   CASE WHEN s.scope = 'municipality' THEN s.municipality END AS municipality_code,
                   'central' AS source, CAST(:year AS integer) AS source_year, :snapshot AS source_version,
                   CAST(NULL AS timestamptz) AS lifted_at,
                   CASE WHEN s.scope = 'region' AND known.region IS NULL THEN 'unmapped' ELSE s.problem END AS problem,
                   CASE WHEN s.scope = 'region' AND known.region IS NULL THEN 'region_unknown'
                        ELSE s.reason END AS reason
            FROM {stage} s
            LEFT JOIN (SELECT DISTINCT ON (name_key(region)) region FROM (
                           SELECT region FROM municipality UNION SELECT region FROM clinic) named
                       ORDER BY name_key(region), region) known ON name_key(known.region) = name_key(s.region)
        """,
        current="""SELECT t.*, t.source_id AS source_key FROM closure t
                   WHERE t.source = 'central' AND t.source_year = :year""",
        retire={"lifted_at": ":as_of"},
        retirable="c.lifted_at IS NULL",
        reason="""CASE WHEN d.n IS NULL THEN 'closure_gone'
                       WHEN c.lifted_at IS NOT NULL THEN 'closure_back' END""",
    ),
)


def import_year(
    engine: sa.Engine,
    year: int,
    version: str,
    items: tuple[Any, ...],
    unreadable: tuple[Unreadable, ...],
    *,
    as_of: datetime,
    actor: str = "dagster",
    preview: bool = False,
) -> Report:
    """Take the central set of ``year`` as the whole truth of that year, and re-derive the days that it touches."""
    scope = Scope(SERVICE, parameters={"year": year})
    page = Page(1, items, unreadable, version, len(items) + len(unreadable))
    return engine_of_plans.synchronise(engine, CLOSURE, scope, [page], as_of=as_of, actor=actor, preview=preview)


def import_closures(
    engine: sa.Engine,
    ask: Callable[[int], Any],
    *,
    as_of: datetime,
    actor: str = "dagster",
    preview: bool = False,
) -> Report:
    """Import this year's and the next one's set. ``ask`` gives the client's set of a year, None where there is none.

    A year whose set cannot be had or is refused keeps its last good one; the other goes on. Next year's may be
    published late: until we hold some of it, that there is none is told and is no fault.
    """
    first = as_of.astimezone(ITALY).year
    reports = []
    for year in range(first, first + YEARS):
        try:
            found = ask(year)
        except PolydeskError as error:
            reports.append(Report.failed("closures_unreadable", {"year": year, "cause": error.reason}))
            continue
        if not (found and (found.items or found.rejected)) and year > first and not _known(engine, year):
            unpublished = Reason("not_yet_published", {"year": year})
            reports.append(Report(Outcome.NOTHING_TO_DO, reasons=(unpublished,), preview=preview))
            continue
        if found is None:
            reports.append(Report.failed("closures_missing", {"year": year}))
            continue
        unreadable = tuple(
            Unreadable(r.key, "invalid", Reason("record_wrong", {"record": r.position + 1, "why": r.reason}), r.raw)
            for r in found.rejected
        )
        reports.append(
            import_year(engine, year, found.version, found.items, unreadable, as_of=as_of, actor=actor, preview=preview)
        )
    return combine(reports)


def _known(engine: sa.Engine, year: int) -> bool:
    """Whether we hold closures of ``year`` from the central server, lifted ones included."""
    with engine.connect() as connection:
        return bool(
            connection.scalar(
                sa.text("SELECT EXISTS (SELECT FROM closure WHERE source = 'central' AND source_year = :year)"),
                {"year": year},
            )
        )
