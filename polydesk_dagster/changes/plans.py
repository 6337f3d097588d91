"""A plan's head as it is stored in ``plan``: what it is of, what it comes to, the guards over it, how it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.outcome import Counts, Report
from polydesk_dagster.values import ServiceKey

RULES = "1"
"""Version of how plans are made: part of every fingerprint."""

ITALY = ZoneInfo("Europe/Rome")

REMEMBERED = "30 days"
"""How long what a person took back is not proposed again without a word."""

AHEAD = timedelta(minutes=1)
"""How far an instant may be ahead of a clock before it is the future: two machines' clocks differ."""

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
        return plan_rows.table(self.id)

    @property
    def failed_guards(self) -> tuple[Verdict, ...]:
        return tuple(guard for guard in self.guards if not guard.passed)

    @property
    def holding_guards(self) -> tuple[Verdict, ...]:
        """Those that stop nothing, but have set rows aside."""
        return tuple(guard for guard in self.guards if guard.held)

    @property
    def speaking_guards(self) -> tuple[Verdict, ...]:
        """All that somebody may go past: those that stop it, then those that have only set rows aside."""
        return (*self.failed_guards, *(guard for guard in self.holding_guards if guard.passed))

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


def parameters(scope: Scope, as_of: datetime, plan_id: int) -> dict[str, Any]:
    """What a kind's SQL may bind."""
    today = as_of.astimezone(ITALY).date()
    given = {"clinic_id": scope.clinic_id, "as_of": as_of, "today": today, "plan_id": plan_id, "undoes": None}
    return {**scope.parameters, **given}


def fingerprint(
    connection: sa.Connection, plan_id: int, kind: str, scope: Scope, snapshot: str | None, *, rows: bool = True
) -> str:
    """Over the rules' version, the scope, the source's snapshot and every row with its precondition."""
    said = plan_rows.digest(connection, plan_id) if rows else ""
    given = json.dumps(
        [RULES, kind, scope.service, scope.clinic, dict(scope.parameters), snapshot, said],
        default=str,
        sort_keys=True,  # the database keeps parameters in an order of its own
    )
    return hashlib.sha256(given.encode()).hexdigest()


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


_OF_A_LIST = "(jsonb_exists({0}.tally, 'seen') OR jsonb_exists({0}.scope, 'sheet'))"
"""SQL: a plan that compares a source's list, or a sheet, with ours."""

LOAD = f"""
    SELECT plan.*, clinic.code AS clinic, now() > plan.expires_at AS expired,
           plan.state = 'ready' AND plan.undoes IS NULL
               AND {_OF_A_LIST.format("plan")}
               AND EXISTS (SELECT FROM plan n
                           WHERE n.service = plan.service AND n.clinic_id IS NOT DISTINCT FROM plan.clinic_id
                             AND n.id > plan.id AND n.kind = plan.kind AND n.scope = plan.scope AND n.undoes IS NULL
                             AND {_OF_A_LIST.format("n")}) AS superseded
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
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {plan_rows.table(plan_id)}"))


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
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {plan_rows.table(plan_id)}"))
    return len(gone)
