"""How far our records are in step with a source: what it looked like then, and what a person last confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import plans
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.outcome import Outcome, Reason, Report
from polydesk_dagster.values import Term


def source_name(kind: Kind, scope: Scope) -> str:
    return f"{scope.service}:{kind.name}"


_CHANGES = sa.text("SELECT times, own FROM list_changes(:clinic, :tables)")

FEW = 20
"""So many rows of a clinic's ``list_change`` are added up each time before they are folded."""

_FOLD = """
    WITH past AS (
        SELECT c.ctid AS at FROM list_change c
        WHERE c.clinic_id IN (:clinic, 0) AND c.record = ANY(:tables)
          AND c.written IS DISTINCT FROM pg_current_xact_id()
          AND :few < (SELECT count(*) FROM list_change m WHERE m.clinic_id IN (:clinic, 0) AND m.record = ANY(:tables))
        FOR UPDATE SKIP LOCKED
    ), gone AS (DELETE FROM list_change c USING past WHERE c.ctid = past.at RETURNING c.*)
    INSERT INTO list_change (record, clinic_id, times, written)
    SELECT record, clinic_id, sum(times), NULL FROM gone GROUP BY record, clinic_id
"""


def written(connection: sa.Connection, kind: Kind, scope: Scope) -> int:
    """How often whatever the list is compared with has been written: to be asked before anything of it is looked at,
    for what is committed meanwhile counts as later."""
    return int(connection.execute(_CHANGES, _compared(kind, scope)).one().times)


def _own(connection: sa.Connection, kind: Kind, scope: Scope) -> int:
    """How often this transaction has."""
    return int(connection.execute(_CHANGES, _compared(kind, scope)).one().own)


def _compared(kind: Kind, scope: Scope) -> dict[str, Any]:
    assert kind.source is not None
    return {"clinic": scope.clinic_id or 0, "tables": list(kind.source.compared)}


def absorb(connection: sa.Connection, kind: Kind, scope: Scope, etag: str | None) -> None:
    """What this transaction has written comes of reading the list ``etag``: where that is the one that we are in step
    with, it is no reason to read it again."""
    own = _own(connection, kind, scope)
    connection.execute(
        sa.text("""
            UPDATE source_state SET local_version = CAST(local_version AS bigint) + :own
            WHERE service = :service AND scope = :scope AND etag = :etag AND :own > 0
              AND local_version ~ '^[0-9]+$'"""),
        {"service": source_name(kind, scope), "scope": scope.name, "etag": etag, "own": own},
    )


def keep(connection: sa.Connection, kind: Kind, scope: Scope, plan_id: int | None, etag: str | None) -> None:
    """With what this transaction has written, which comes of the same reading, all of the list ``etag`` is done that we
    were noted to be in step with by ``plan_id``, unless something of it was left out."""
    own = _own(connection, kind, scope)
    connection.execute(
        sa.text("""
            UPDATE source_state s SET etag = :etag, local_version = CAST(s.local_version AS bigint) + :own
            FROM plan p
            WHERE s.service = :service AND s.scope = :scope AND s.plan_id = :plan_id AND p.id = s.plan_id
              AND coalesce(p.tally ->> 'conflict', '0') = '0' AND coalesce(p.tally ->> 'rejected', '0') = '0'
              AND s.local_version ~ '^[0-9]+$'"""),
        {"service": source_name(kind, scope), "scope": scope.name, "plan_id": plan_id, "etag": etag, "own": own},
    )


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a source from before."""

    records: int
    """That it had last time."""
    confirmed: int
    """That it had when a person last confirmed what came of it, or when it was first read."""
    ours: int | None
    """Our records in force then; None where that was not counted."""
    retired: int
    """Those that runs without a person have retired since."""


def known(connection: sa.Connection, kind: Kind, scope: Scope) -> Known | None:
    """What is known of the source; None where it is read for the first time."""
    row = connection.execute(
        sa.text("""
            SELECT s.records, s.confirmed_records AS confirmed, s.confirmed_ours AS ours,
                   (SELECT coalesce(sum(CAST(p.tally ->> 'missing_there' AS bigint)), 0) FROM plan p
                    WHERE p.service = :key AND p.kind = :kind AND p.clinic_id IS NOT DISTINCT FROM :clinic_id
                      AND p.scope = CAST(:within AS jsonb) AND p.state = 'applied' AND p.undoes IS NULL
                      AND p.applied_at > s.confirmed_at) AS retired
            FROM source_state s WHERE s.service = :service AND s.scope = :scope
        """).bindparams(sa.bindparam("clinic_id", type_=sa.BigInteger)),
        {
            "key": scope.service,
            "kind": kind.name,
            "clinic_id": scope.clinic_id,
            "within": scope.stored,
            "service": source_name(kind, scope),
            "scope": scope.name,
        },
    ).one_or_none()
    return None if row is None else Known(row.records, row.confirmed, row.ours, int(row.retired))


def count_ours(
    connection: sa.Connection, kind: Kind, values: Mapping[str, Any], also: Sequence[str] = ()
) -> tuple[int, ...]:
    """Our records in force that the source could retire, and those of its rows ``c`` for which each of ``also`` holds
    (SQL): all are counted by going through them once."""
    source = kind.source
    if source is None or source.current is None:
        return (0, *(0 for _ in also))
    counts = [f"count(*) FILTER (WHERE {those})" for those in (source.in_force or source.retirable, *also)]
    return tuple(connection.execute(sa.text(f"SELECT {', '.join(counts)} FROM ({source.current}) c"), values).one())


def remember(
    connection: sa.Connection,
    kind: Kind,
    scope: Scope,
    plan: Plan,
    *,
    as_of: datetime,
    etag: str | None,
    ours: int | None = None,
    source: str | None = None,
    confirmed_by: str | None = None,
) -> None:
    """Note what ``source`` looked like now that we are in step; its ETag only if nothing of it was left out, and if it
    is known what of ours it was compared with: what had been ``written`` before, and what this transaction has.

    ``confirmed_by`` is the person who has decided it, if one has; the first state of a source counts as confirmed.
    """
    if plan.failed_guards and not plan.writes and confirmed_by is None:
        return
    left_out = plan.tally.get("conflict", 0) + plan.tally.get("rejected", 0)
    values = plans.parameters(scope, as_of, plan.id)
    at = {"service": source_name(kind, scope), "scope": scope.name}
    counted = "SELECT confirmed_ours IS NOT NULL FROM source_state WHERE service = :service AND scope = :scope"
    in_force = None
    if confirmed_by is not None or not connection.scalar(sa.text(counted), at):
        in_force = count_ours(connection, kind, values)[0]
    version = None
    if ours is not None and kind.source is not None:
        version = ours + _own(connection, kind, scope)
        connection.execute(sa.text(_FOLD), {**_compared(kind, scope), "few": FEW})
    connection.execute(
        sa.text("""
            INSERT INTO source_state AS s (service, scope, records, snapshot, etag, local_version, plan_id, seen_at,
                                           source, confirmed_records, confirmed_ours, confirmed_at, confirmed_by)
            VALUES (:service, :scope, :records, :snapshot, :etag, :version, :plan_id, now(), :source, :records,
                    CAST(:in_force AS bigint), now(), :by)
            ON CONFLICT (service, scope) DO UPDATE SET records = excluded.records, snapshot = excluded.snapshot,
                etag = excluded.etag, local_version = excluded.local_version, plan_id = excluded.plan_id,
                seen_at = excluded.seen_at, source = coalesce(excluded.source, s.source),
                confirmed_records = CASE WHEN excluded.confirmed_by IS NULL THEN s.confirmed_records
                                         ELSE excluded.confirmed_records END,
                confirmed_ours = coalesce(excluded.confirmed_ours, s.confirmed_ours),
                confirmed_at = CASE WHEN excluded.confirmed_ours IS NULL THEN s.confirmed_at
                                    ELSE excluded.confirmed_at END,
                confirmed_by = coalesce(excluded.confirmed_by, s.confirmed_by)
        """),
        {
            **at,
            "records": plan.tally.get("seen", 0),
            "snapshot": plan.snapshot,
            "etag": None if left_out or version is None else etag,
            "source": source,
            "version": "" if version is None else str(version),
            "plan_id": plan.id,
            "in_force": in_force,
            "by": confirmed_by,
        },
    )


def known_etag(connection: sa.Connection, kind: Kind, scope: Scope, *, ours: int, source: str) -> str | None:
    """The ETag of the source's state that our rows are in step with; None where what it was compared with has been
    written since, going by ``ours`` (``written``), or when it is the word of another source."""
    found = connection.execute(
        sa.text("""
            SELECT etag, local_version FROM source_state
            WHERE service = :service AND scope = :scope AND source = :source"""),
        {"service": source_name(kind, scope), "scope": scope.name, "source": source},
    ).one_or_none()
    return found.etag if found is not None and found.local_version == str(ours) else None


def in_step(kind: Kind, scope: Scope) -> Report:
    """The report where the source says that it has not changed since we were last in step with it."""
    reason = Reason("not_modified", {"what": Term("kind", kind.name)}, scope.clinic)
    return Report(Outcome.NOTHING_TO_DO, reasons=(reason,))
