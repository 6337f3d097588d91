"""A plan as it is stored: its head in ``plan``, its rows in a typed table of its own, and the guards over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.changes.kind import FINDINGS, Kind
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.database import bulk
from polydesk_dagster.outcome import Counts, Report
from polydesk_dagster.values import ServiceKey

RULES = "1"
"""Version of how plans are made: part of every fingerprint."""

ITALY = ZoneInfo("Europe/Rome")

REMEMBERED = "30 days"
"""How long what a person took back is not proposed again without a word."""

AHEAD = timedelta(minutes=1)
"""How far an instant may be ahead of a clock before it is the future: two machines' clocks differ."""

FEW = 100
"""Rows that a plan may have before the planner of queries is told how many there are: what goes through them goes well
with so few whichever way, and with five hundred it went through all of ours for each."""

PRUNE_AFTER = "31 days"
"""Rows outlive what is remembered of them: nobody looks for them while they go."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a plan may touch. ``parameters`` bind in the kind's SQL beside :clinic_id and :as_of."""

    service: str
    clinic: str | None = None
    clinic_id: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None
    """The run that plans, by which a later step of it finds its plan."""

    @property
    def name(self) -> str:
        """Tells apart the sources of one service."""
        return "/".join([self.clinic or "", *(str(value) for value in self.parameters.values())]).strip("/")

    @property
    def stored(self) -> str:
        """The parameters as JSON, as a plan's ``scope`` holds them."""
        return json.dumps(dict(self.parameters), default=str)


@dataclass(frozen=True, slots=True)
class Plan:
    """A stored plan. ``tally`` counts rows by action and finding, and ``unchanged`` and ``rejected`` records."""

    id: int
    service: str
    kind: str
    volatile: bool
    clinic: str | None
    clinic_id: int | None
    scope: Mapping[str, Any]
    snapshot: str | None
    fingerprint: str
    tally: Mapping[str, int]
    guards: tuple[Verdict, ...]
    state: str
    undoes: int | None
    as_of: datetime
    created_at: datetime
    expires_at: datetime
    applied_at: datetime | None
    applied_by: str | None
    reason: str | None
    rows_kept: bool
    expired: bool
    superseded: bool
    """Whether the same list has been compared again since, which tells what is to do now."""

    @property
    def standing(self) -> str:
        """Its state, as people are told: one that waits may be over, or another stand for it."""
        if self.state != "ready":
            return self.state
        return "expired" if self.expired else "superseded" if self.superseded else "ready"

    @property
    def rows(self) -> str:
        """The table of its rows."""
        return rows_table(self.id)

    @property
    def failed_guards(self) -> tuple[Verdict, ...]:
        return tuple(guard for guard in self.guards if not guard.passed)

    @property
    def holding_guards(self) -> tuple[Verdict, ...]:
        """Those that stop nothing, but have set rows aside."""
        return tuple(guard for guard in self.guards if guard.held)

    @property
    def within(self) -> Scope:
        return Scope(self.service, self.clinic, self.clinic_id, self.scope)

    @property
    def writes(self) -> int:
        """How many rows applying it would write."""
        return sum(self.tally.get(action, 0) for action in ("create", "update", "retire", "delete", "link"))

    @property
    def waits(self) -> bool:
        """Whether rows in conflict are a person's to decide; of other plans they are left."""
        return not self.volatile and self.undoes is None

    @property
    def counts(self) -> Counts:
        tally = self.tally
        return Counts(
            created=tally.get("create", 0),
            updated=tally.get("update", 0) + tally.get("link", 0),
            retired=tally.get("retire", 0) + tally.get("delete", 0),
            skipped=0 if self.waits else tally.get("conflict", 0),
            waiting=tally.get("rejected", 0) + (tally.get("conflict", 0) if self.waits else 0),
            unchanged=tally.get("unchanged", 0),
        )


def busy(plan: Plan) -> Report:
    """The report where a run of the plan's service is in the way of applying or undoing it."""
    return Report.skipped("service_busy", {"service": ServiceKey(plan.service)}, plan.clinic)


def rows_table(plan_id: int) -> str:
    return f"plan_rows.p{plan_id:d}"


def column_types(connection: sa.Connection, table: str) -> dict[str, str]:
    """The SQL type of each column of ``table``."""
    query = """SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
               WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped"""
    found = connection.execute(sa.text(query), {"table": table})
    return {row.attname: row.type for row in found}


def parameters(scope: Scope, as_of: datetime, plan_id: int) -> dict[str, Any]:
    """What a kind's SQL may bind."""
    today = as_of.astimezone(ITALY).date()
    given = {"clinic_id": scope.clinic_id, "as_of": as_of, "today": today, "plan_id": plan_id, "undoes": None}
    return {**scope.parameters, **given}


def fingerprint(
    connection: sa.Connection, plan_id: int, kind: str, scope: Scope, snapshot: str | None, *, rows: bool = True
) -> str:
    """Over the rules' version, the scope, the source's snapshot and every row with its precondition."""
    said = digest(connection, plan_id) if rows else ""
    given = json.dumps(
        [RULES, kind, scope.service, scope.clinic, dict(scope.parameters), snapshot, said],
        default=str,
        sort_keys=True,  # the database keeps parameters in an order of its own
    )
    return hashlib.sha256(given.encode()).hexdigest()


def digest(connection: sa.Connection, plan_id: int, row: str = "r") -> str:
    """Of a plan's rows, or of ``row`` made of each: their hashes are added up, so that a million need no sort."""
    query = f"SELECT count(*) || ':' || sum(hash_record_extended({row}, 0)) FROM {rows_table(plan_id)} r"
    return str(connection.scalar(sa.text(query)))


def tally(connection: sa.Connection, plan_id: int) -> dict[str, int]:
    """Rows of a plan by action, and findings by class."""
    found = connection.execute(
        sa.text(f"""
            SELECT action, coalesce(finding, CASE action WHEN 'create' THEN 'missing_here'
                                                         WHEN 'retire' THEN 'missing_there'
                                                         WHEN 'update' THEN 'differs' END) AS finding, count(*) AS rows
            FROM {rows_table(plan_id)} GROUP BY 1, 2
        """)
    )
    counted: dict[str, int] = {}
    for row in found:
        counted[row.action] = counted.get(row.action, 0) + row.rows
        if row.finding in FINDINGS:
            counted[row.finding] = counted.get(row.finding, 0) + row.rows
    return counted


def create_rows(
    connection: sa.Connection,
    kind: Kind,
    plan_id: int,
    query: str,
    *,
    values: Mapping[str, Any],
    was: Sequence[str],
    told: bool = False,
    types: Mapping[str, str] | None = None,
) -> int:
    """Store the plan's rows from ``query`` and say how many, each with what the columns ``was`` of its target hold now
    (``told`` by the query as ``was_…``, or looked up): its precondition, and what undo restores. Barred is conflict."""
    types = types or column_types(connection, kind.table)
    columns = []
    for name in kind.identity:
        given = f"CAST(r.{name} AS {types[name]})"
        if kind.identity == ("id",):
            given = f"coalesce({given}, CASE WHEN r.action = 'create' THEN {_next_of(connection, kind)} END)"
        columns.append(f"{given} AS {name}")
    columns += [f"CAST(r.{name} AS {types[name]}) AS {name}" for name in kind.written]
    columns += [f"CAST(r.{name} AS {type_}) AS {name}" for name, type_ in kind.carried.items()]
    columns += [f"r.was_{name}" if told else f"t.{name} AS was_{name}" for name in was]
    same = " AND ".join(f"t.{name} = CAST(r.{name} AS {types[name]})" for name in kind.identity)
    target = ""
    if (was and not told) or kind.barred is not None:
        target = f"LEFT JOIN {kind.table} t ON {same}"
        if kind.identity == ("id",) and kind.source is None:
            # Row by row: other than a source's list, most of it is new, and all clinics' rows are too many to hash. For
            # what is new nothing is looked for: all of a table that others have filled since would be read each time.
            same = f"r.id IS NOT NULL AND {same}"
            target = f"LEFT JOIN LATERAL (SELECT * FROM {kind.table} t WHERE {same} OFFSET 0) t ON true"
    verdict = ["r.action", "r.finding", "r.reason"]
    if kind.barred is not None:
        target += f" CROSS JOIN LATERAL (SELECT CASE WHEN r.action <> 'conflict' THEN {kind.barred} END AS why) barred"
        verdict = [
            "CASE WHEN barred.why IS NULL THEN r.action ELSE 'conflict' END",
            "CASE WHEN barred.why IS NULL THEN r.finding END",
            "coalesce(barred.why, r.reason)",
        ]
    created = connection.execute(
        sa.text(f"""
            CREATE TABLE {rows_table(plan_id)} AS
            SELECT row_number() OVER () AS ordinal, CAST({verdict[0]} AS text) AS action,
                   CAST({verdict[1]} AS text) AS finding, CAST({verdict[2]} AS text) AS reason, {", ".join(columns)}
            FROM ({query}) r {target}
        """),
        values,
    )
    if created.rowcount > FEW:  # a sample of 3,000 tells enough; 30,000 are most plans whole
        bulk.analyze(connection, rows_table(plan_id), target=10)
    return created.rowcount


def create_empty_rows(connection: sa.Connection, kind: Kind, plan_id: int) -> None:
    """The table of a plan's rows for records that are copied straight into it, as creations with their ids."""
    staged = {} if kind.source is None else kind.source.columns
    types = {**staged, **column_types(connection, kind.table), **kind.carried}
    named = dict.fromkeys((*kind.written, *kind.carried, *staged))
    columns = ", ".join(f"{name} {types[name]}" for name in named)
    connection.execute(
        sa.text(f"""
            CREATE TABLE {rows_table(plan_id)} (
                ordinal bigint, action text NOT NULL DEFAULT 'create', finding text, reason text,
                id bigint DEFAULT {_next_of(connection, kind)}, {columns})
        """)
    )


def _next_of(connection: sa.Connection, kind: Kind) -> str:
    """The expression for a new id. The sequence is looked up here: by name it would be looked up for every row."""
    sequence = connection.scalar(sa.text("SELECT pg_get_serial_sequence(:table, 'id')"), {"table": kind.table})
    return f"nextval(CAST('{sequence}' AS regclass))"


def store(
    connection: sa.Connection,
    kind: Kind,
    scope: Scope,
    plan_id: int,
    *,
    as_of: datetime,
    counted: Mapping[str, int],
    snapshot: str | None,
    guards: Sequence[Verdict] = (),
    undoes: int | None = None,
    rows: bool,
) -> Plan:
    """Write the plan's head over rows that stand already."""
    stored = connection.execute(
        sa.text(f"""
            WITH plan AS (
            INSERT INTO plan (id, service, kind, volatile, clinic_id, scope, snapshot, fingerprint, tally, guards,
                              undoes, origin, as_of, expires_at, rows_kept)
            VALUES (:id, :service, :kind, :volatile, :clinic_id, CAST(:scope AS jsonb), :snapshot, :fingerprint,
                    CAST(:tally AS jsonb), CAST(:guards AS jsonb), :undoes, :origin, :as_of, now() + :expires, :rows)
            RETURNING *)
            {LOAD}
        """),
        {
            "id": plan_id,
            "service": scope.service,
            "kind": kind.name,
            "volatile": kind.volatile,
            "clinic_id": scope.clinic_id,
            "scope": scope.stored,
            "snapshot": snapshot,
            "fingerprint": fingerprint(connection, plan_id, kind.name, scope, snapshot, rows=rows),
            "tally": json.dumps(dict(counted)),
            "guards": json.dumps([guard.as_dict() for guard in guards]),
            "undoes": undoes,
            "origin": scope.origin,
            "as_of": as_of,
            "expires": kind.expires,
            "rows": rows,
        },
    )
    return _plan(stored.one())


def next_id(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT nextval(pg_get_serial_sequence('plan', 'id'))")).scalar_one())


LOAD = """
    SELECT plan.*, clinic.code AS clinic, now() > plan.expires_at AS expired,
           plan.state = 'ready' AND plan.undoes IS NULL
               AND (jsonb_exists(plan.tally, 'seen') OR jsonb_exists(plan.scope, 'sheet'))
               AND EXISTS (SELECT FROM plan n
                           WHERE n.service = plan.service AND n.clinic_id IS NOT DISTINCT FROM plan.clinic_id
                             AND n.id > plan.id AND n.kind = plan.kind AND n.scope = plan.scope AND n.undoes IS NULL
                             AND (jsonb_exists(n.tally, 'seen') OR jsonb_exists(n.scope, 'sheet'))) AS superseded
    FROM plan LEFT JOIN clinic ON clinic.id = plan.clinic_id
"""


def load(connection: sa.Connection, plan_id: int, *, lock: bool = False) -> Plan:
    """The plan ``plan_id``; LookupError if there is none. ``lock`` keeps everybody else from applying it."""
    found = connection.execute(
        sa.text(f"{LOAD} WHERE plan.id = :id {'FOR UPDATE OF plan' if lock else ''}"), {"id": plan_id}
    ).one_or_none()
    if found is None:
        raise LookupError(f"plan {plan_id}")
    return _plan(found)


def several(connection: sa.Connection, ids: Collection[int]) -> tuple[Plan, ...]:
    """Those of the plans that there are, in the order in which they were made."""
    found = connection.execute(sa.text(f"{LOAD} WHERE plan.id = ANY(:ids) ORDER BY plan.id"), {"ids": list(ids)})
    return tuple(map(_plan, found))


def made_by(connection: sa.Connection, origin: str, kind: str, clinic: str | None = None) -> Plan | None:
    """The newest plan of ``kind`` that the run ``origin`` made; of a run for many, for ``clinic`` (a code)."""
    found = connection.execute(
        sa.text(f"""{LOAD} WHERE plan.origin = :origin AND plan.kind = :kind
                      AND (CAST(:clinic AS text) IS NULL OR clinic.code = :clinic)
                    ORDER BY plan.id DESC LIMIT 1"""),
        {"origin": origin, "kind": kind, "clinic": clinic},
    ).one_or_none()
    return None if found is None else _plan(found)


def _plan(row: sa.Row[Any]) -> Plan:
    values = row._mapping
    guards = tuple(map(Verdict.from_dict, values["guards"]))
    return Plan(guards=guards, **{name: values[name] for name in Plan.__slots__ if name != "guards"})


def discard(connection: sa.Connection, ids: Collection[int]) -> None:
    """Forget plans that were never applied and that another stands for."""
    gone = connection.scalars(
        sa.text("DELETE FROM plan WHERE id = ANY(:ids) AND state = 'ready' RETURNING id"), {"ids": list(ids)}
    ).all()
    for plan_id in gone:
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {rows_table(plan_id)}"))


def prune(connection: sa.Connection, *, most: int = 20) -> int:
    """Drop the rows of plans that can be neither applied nor undone any more; their heads stay. Returns how many.

    Those of a plan that was undone go with those of its undo, and those of its undos together.
    """
    gone = connection.scalars(
        sa.text(f"""
            UPDATE plan SET rows_kept = false
            WHERE id IN (SELECT id FROM plan
                         WHERE rows_kept AND expires_at < now()
                           AND (state = 'ready' AND expires_at < now() - interval '7 days'
                                OR applied_at < now() - interval '{PRUNE_AFTER}'
                                   AND NOT EXISTS (SELECT FROM plan u
                                                   WHERE u.undoes = coalesce(plan.undoes, plan.id)
                                                   AND u.state = 'applied'
                                                   AND u.applied_at >= now() - interval '{PRUNE_AFTER}'))
                         ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED)
            RETURNING id
        """),
        {"most": most},
    ).all()
    for plan_id in gone:
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {rows_table(plan_id)}"))
    return len(gone)
