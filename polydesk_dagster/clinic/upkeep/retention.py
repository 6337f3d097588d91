"""The nightly clean-up, which takes away what the retention registry says is old.

A clean-up is a plan of orders, one for each data set with something old in it. Applying the plan writes the orders and
its audit line; then each order is worked off in small batches, each its own transaction, so that nobody waits for
long. A killed run leaves its orders open, and the next one works them off from where they stopped. When an order is
done, its audit line holds how many rows went and a digest over their keys, never the data.

A data set with far more in it than usual gets a plan of its own, which is not applied: a person looks at it, and the
rest goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.catalog import BY_KEY, ROME, next_run
from polydesk_dagster.changes import Guard, Kind, Scope, audit, propose
from polydesk_dagster.changes.why import term, why
from polydesk_dagster.clinic.upkeep.registry import REGISTRY, DataSet
from polydesk_dagster.database import refusals
from polydesk_dagster.database.locks import in_turn
from polydesk_dagster.errors import in_brief
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome, Reason, Report, Table, combine, done
from polydesk_dagster.values import Count, Instant, ServiceKey, Term, Value

BATCH = 250
"""Rows of one transaction: small enough that whoever comes in between waits for a few milliseconds only."""

REST = 0.01
"""Seconds between two batches of a real run, for everybody else."""

Progress = Callable[[int, int, str], None]
Rest = Callable[[], None]
"""Called between batches, outside any transaction: gives the others their turn."""


def _say_when(connection: sa.Connection, rows: str, as_of: datetime) -> Report:
    """When a plan's orders are worked off: who applies one shall not take what is still there for a fault."""
    nightly = BY_KEY["nightly_cleanup"]
    coming = next_run(nightly, as_of)
    assert coming is not None
    ordered = connection.execute(
        sa.text(f"SELECT dataset, expected FROM {rows} r WHERE action = 'create' ORDER BY ordinal")
    )
    reasons = (
        Reason(
            "ordered",
            {
                "dataset": Term("data_set", row.dataset),
                "rows": Count("rows", row.expected),
                "service": ServiceKey(nightly.key),
                "at": Instant(coming),
                "key": nightly.key,
                "chosen": row.dataset,
            },
        )
        for row in ordered
    )
    return Report(Outcome.NOTHING_TO_DO, reasons=tuple(reasons))


# An order that is open already is worked off as it stands: there is nothing left to decide about it.
_UNUSUAL = """(r.expected > 10000
               AND r.expected > 10 * (SELECT CASE WHEN count(*) >= 3 THEN avg(removed) END
                                      FROM (SELECT c.removed FROM cleanup c
                                            WHERE c.dataset = r.dataset AND c.finished_at IS NOT NULL
                                            ORDER BY c.id DESC LIMIT 10) past)
               AND NOT EXISTS (SELECT FROM cleanup c WHERE c.dataset = r.dataset AND c.finished_at IS NULL))"""

CLEANUP = Kind(
    name="cleanup",
    table="cleanup",
    key=why("data_set_named", dataset=term("data_set", "r.dataset")),
    told=True,
    fixed=("dataset", "cutoff", "expected", "oldest", "newest", "ordered_at"),
    volatile=True,
    orders=True,
    # An order that was made since has seen to what this one is about.
    taken="t.dataset = r.dataset AND (t.finished_at IS NULL OR t.ordered_at > r.ordered_at)",
    held="CASE WHEN t.removed > 0 OR t.finished_at IS NOT NULL THEN 'cleaned_already' END",
    guards=(Guard("unusual_volume", f"SELECT count(*) FROM {{rows}} r WHERE {_UNUSUAL}", 0),),
    effect=_say_when,
    expires=timedelta(hours=12),
)


def _orders(chosen: tuple[DataSet, ...]) -> str:
    """The query of a plan: what is old in each data set. A bound in days is written out, since it is ours."""
    return " UNION ALL ".join(
        f"""SELECT 'create' AS action, 'old' AS finding, {why("old")} AS reason,
                   CAST(NULL AS bigint) AS id, '{each.key}' AS dataset, o.cutoff, o.expected, o.oldest, o.newest,
                   :as_of AS ordered_at
            FROM (SELECT :as_of - interval '{each.days} days' AS cutoff, count(*) AS expected,
                         min(t.{each.age}) AS oldest, max(t.{each.age}) AS newest
                  FROM {each.table} t
                  WHERE {each.predicate.replace(":cutoff", f"(:as_of - interval '{each.days} days')")}) o
            WHERE o.expected > 0"""
        for each in chosen
    )


_PROPOSED = """SELECT action, finding, reason, id, dataset, cutoff, expected, oldest, newest, ordered_at
               FROM proposed_order WHERE {which} ORDER BY place"""


def clean(
    engine: sa.Engine,
    as_of: datetime,
    *,
    service: str = "nightly_cleanup",
    chosen: tuple[DataSet, ...] = REGISTRY,
    preview: bool = False,
    actor: str = "dagster",
    batch: int = BATCH,
    rest: Rest | None = None,
    progress: Progress | None = None,
) -> Report:
    """Order what is old and work the orders off; with ``preview`` only say how much there is.

    A data set with an unusual volume is named with the plan that waits for a person's word; once that is applied, the
    next run works its order off. Open orders are worked off whatever becomes of the new ones.

    Counts: ``retired`` rows deleted, ``updated`` rows that lost columns.
    """
    with engine.begin() as connection:
        in_turn(connection, "cleanup orders")  # another service that orders the same data then finds this order
        unusual, broken = _propose_orders(connection, chosen, as_of)
        plan = propose(connection, CLEANUP, Scope(service), _PROPOSED.format(which="NOT unusual"), as_of=as_of)
        stopped = [_stop(connection, known, service, as_of, preview=preview) for known in unusual]
        tables = _what(connection)
        if preview:
            shown = changes.preview(connection, plan, CLEANUP)
            todo = {WHAT_TO_DO: shown.figures[WHAT_TO_DO]}
            ordered = Report(shown.outcome, _expected(connection, "NOT unusual"), shown.reasons, todo, tables, plan.id)
        else:
            applied = changes.apply(connection, plan.id, as_of=as_of, actor=actor)
            ordered = Report(applied.outcome, reasons=applied.reasons, plan_id=plan.id)
    if preview:
        # Beside what is stopped, an empty plan has nothing to say.
        said = ordered if plan.writes or not (stopped or broken) else replace(ordered, figures={})
        return combine([said, *stopped, *(replace(each, preview=True) for each in broken)])
    orders = _open_orders(engine, chosen)
    parts = [
        _in_safety(engine, order, each, as_of, service=service, actor=actor, batch=batch, rest=rest, progress=progress)
        for order, each in orders
    ]
    counts = sum((part.counts for part in parts), Counts())
    reasons = tuple(reason for part in parts for reason in part.reasons)
    went = [(each, part.counts.changed) for (_, each), part in zip(orders, parts, strict=True) if part.counts.changed]
    worked = Report(done(counts), counts, reasons, tables=_cleaned(went))
    if ordered.outcome is Outcome.REFUSED:
        return combine([worked, ordered, *stopped, *broken])
    return combine([replace(worked, plan_id=plan.id), *stopped, *broken])


def _propose_orders(
    connection: sa.Connection, chosen: tuple[DataSet, ...], as_of: datetime
) -> tuple[list[DataSet], list[Report]]:
    """Put what is old into the temporary table ``proposed_order``. Returns the data sets with far more than usual, and
    what is told of those that could not be looked at."""
    connection.execute(
        sa.text("""
            CREATE TEMPORARY TABLE proposed_order (
                place bigint GENERATED ALWAYS AS IDENTITY, unusual boolean, action text, finding text, reason text,
                id bigint, dataset text, cutoff timestamptz, expected bigint, oldest timestamptz, newest timestamptz,
                ordered_at timestamptz) ON COMMIT DROP""")
    )
    broken = _look(connection, chosen, as_of)
    known = {each.key: each for each in chosen}
    found = connection.scalars(sa.text("SELECT dataset FROM proposed_order WHERE unusual ORDER BY place"))
    return [known[key] for key in found], broken


def _look(connection: sa.Connection, chosen: tuple[DataSet, ...], as_of: datetime) -> list[Report]:
    """What is old in all data sets at once; where the database refuses that, by halves, until the one is found that it
    is about."""
    try:
        with connection.begin_nested():
            connection.execute(
                sa.text(f"""
                    INSERT INTO proposed_order (unusual, action, finding, reason, id, dataset, cutoff, expected, oldest,
                                                newest, ordered_at)
                    SELECT coalesce({_UNUSUAL}, false), r.* FROM ({_orders(chosen)}) r"""),
                {"as_of": as_of},
            )
    except sa.exc.DBAPIError as error:
        if refusals.of_the_server(error):
            raise
        if len(chosen) > 1:
            half = len(chosen) // 2
            return _look(connection, chosen[:half], as_of) + _look(connection, chosen[half:], as_of)
        return [_refused(chosen[0], error)]
    return []


def _refused(each: DataSet, error: sa.exc.DBAPIError) -> Report:
    return Report.failed("data_set_failed", {"dataset": Term("data_set", each.key), "error": in_brief(error)})


def _stop(connection: sa.Connection, each: DataSet, service: str, as_of: datetime, *, preview: bool) -> Report:
    """Leave a plan of the one data set for a person, and say which."""
    scope = Scope(service, parameters={"dataset": each.key})
    only = _PROPOSED.format(which="unusual AND dataset = :dataset")
    plan = propose(connection, CLEANUP, scope, only, as_of=as_of)
    expected = _expected(connection, "unusual AND dataset = :dataset", dataset=each.key)
    reason = Reason(
        "far_more_than_usual",
        {"dataset": Term("data_set", each.key), "rows": Count("rows", expected.changed), "plan": plan.id},
    )
    if preview:
        return Report(Outcome.OK, expected, (reason,), plan_id=plan.id, preview=True)
    return Report(Outcome.REFUSED, reasons=(reason,), plan_id=plan.id)


def _expected(connection: sa.Connection, which: str, **values: object) -> Counts:
    """What working off those of the proposed orders comes to, counted as ``clean`` counts it."""
    found = connection.execute(sa.text(f"SELECT dataset, expected FROM proposed_order WHERE {which}"), values).all()
    blanked = {each.key for each in REGISTRY if each.blanked}
    return Counts(
        updated=sum(row.expected for row in found if row.dataset in blanked),
        retired=sum(row.expected for row in found if row.dataset not in blanked),
    )


def _what(connection: sa.Connection) -> tuple[Table, ...]:
    found = connection.execute(
        sa.text("SELECT dataset, expected, oldest, newest FROM proposed_order ORDER BY place")
    ).all()
    known = {each.key: each for each in REGISTRY}
    cells = tuple(
        (
            *_named(each, row.expected),
            row.oldest.astimezone(ROME).date(),
            row.newest.astimezone(ROME).date(),
            *_kept(each),
        )
        for row in found
        for each in (known[row.dataset],)
    )
    columns = ("dataset", "done_with_it", "rows", "since", "until", "days_kept", "why")
    return (Table("to_clean", columns, cells, len(cells)),) if cells else ()


def _cleaned(went: Sequence[tuple[DataSet, int]]) -> tuple[Table, ...]:
    cells = tuple((*_named(each, rows), *_kept(each)) for each, rows in went)
    columns = ("dataset", "done_with_it", "rows", "days_kept", "why")
    return (Table("cleaned", columns, cells, len(cells)),) if cells else ()


def _named(each: DataSet, rows: int) -> tuple[Value, ...]:
    return Term("data_set", each.key), Term("retention", "blank" if each.blanked else "delete"), rows


def _kept(each: DataSet) -> tuple[Value, ...]:
    return each.days, Term("data_set_why", each.key)


def _open_orders(engine: sa.Engine, chosen: tuple[DataSet, ...]) -> list[tuple[int, DataSet]]:
    known = {each.key: each for each in chosen}
    with engine.connect() as connection:
        found = connection.execute(
            sa.text("""SELECT id, dataset FROM cleanup WHERE finished_at IS NULL AND dataset = ANY(:known)
                       ORDER BY array_position(CAST(:known AS text[]), dataset)"""),
            {"known": list(known)},
        ).all()
    return [(row.id, known[row.dataset]) for row in found]


# Whatever instant an order was made for, what is young by the server's clock stays.
_OPEN = sa.text("""
    SELECT *, least(cutoff, now() - make_interval(days => :days)) AS bound
    FROM cleanup WHERE id = :id AND finished_at IS NULL FOR UPDATE""")


def _in_safety(engine: sa.Engine, order: int, each: DataSet, as_of: datetime, **how: Any) -> Report:
    """Work one order off; what is wrong with it is told, and stops no other. What is wrong with the server goes on."""
    try:
        return _work_off(engine, order, each, as_of, **how)
    except sa.exc.DBAPIError as error:
        if refusals.of_the_server(error):
            raise
        return _refused(each, error)


def _work_off(
    engine: sa.Engine,
    order: int,
    each: DataSet,
    as_of: datetime,
    *,
    service: str,
    actor: str,
    batch: int,
    rest: Rest | None,
    progress: Progress | None,
) -> Report:
    """Batch by batch; where the database refuses one, row by row past the row that something still refers to."""
    removed, kept, size = 0, 0, batch
    while True:
        try:
            step = _step(engine, order, each, as_of, service=service, actor=actor, size=size)
        except sa.exc.IntegrityError:
            if size == 1:
                kept += 1
                _pass_over(engine, order, each)
            size = 1
            continue
        if step is None:
            break
        rows, found = step
        removed, size = removed + rows, min(batch, 2 * size)
        if progress is not None:
            progress(found.removed + rows, found.expected, f"data_set.{each.key}")
        if rest is not None:
            rest()
    counts = Counts(updated=removed, failed=kept) if each.blanked else Counts(retired=removed, failed=kept)
    values = {"dataset": Term("data_set", each.key)}
    return Report(done(counts), counts, (Reason("rows_in_use", values, count=kept),) if kept else ())


def _step(
    engine: sa.Engine, order: int, each: DataSet, as_of: datetime, *, service: str, actor: str, size: int
) -> tuple[int, sa.Row[Any]] | None:
    """Remove the next rows of an order, in a transaction. Returns how many, and the order as it was; None when done."""
    with engine.begin() as connection:
        found = connection.execute(_OPEN, {"id": order, "days": each.days}).one_or_none()
        if found is None:
            return None
        keys = _remove(connection, each, found.bound, found.last_key, size)
        if not keys:
            _finish(connection, found, as_of, service=service, actor=actor)
            return None
        connection.execute(
            sa.text("""UPDATE cleanup SET removed = removed + :rows, last_key = :last, digest = :digest
                       WHERE id = :id"""),
            {"id": order, "rows": len(keys), "last": keys[-1], "digest": _digest(found.digest, keys)},
        )
        # A batch that a crash of the server takes back is only done again: nobody waits for its disk.
        connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
        return len(keys), found


def _pass_over(engine: sa.Engine, order: int, each: DataSet) -> None:
    """Leave the order's next row as it is; another night looks at it again."""
    with engine.begin() as connection:
        found = connection.execute(_OPEN, {"id": order, "days": each.days}).one()
        query = f"SELECT min(t.id) FROM {each.table} t WHERE t.id > :last AND {each.predicate}"
        key = connection.scalar(sa.text(query), {"last": found.last_key, "cutoff": found.bound})
        connection.execute(sa.text("UPDATE cleanup SET last_key = :key WHERE id = :id"), {"key": key, "id": order})


def _remove(connection: sa.Connection, each: DataSet, cutoff: datetime, last: int, batch: int) -> list[int]:
    """Take the next batch away, in the order of the primary key, so that no row is looked at twice. Returns its keys;
    what somebody is working on just now waits for the next night."""
    # Where the planner last saw an emptied table it would sort all that is left for every batch.
    connection.execute(sa.text("SET LOCAL enable_sort = off"))
    found = f"SELECT t.id FROM {each.table} t WHERE t.id > :last AND {each.predicate} ORDER BY t.id LIMIT :batch"
    values: dict[str, object] = {"last": last, "cutoff": cutoff, "batch": batch}
    chosen = f"({found} FOR UPDATE OF t SKIP LOCKED)"
    if each.first:
        values["keys"] = list(connection.scalars(sa.text(chosen), values))
        for statement in each.first:
            connection.execute(sa.text(statement), values)
        chosen = "(SELECT unnest(CAST(:keys AS bigint[])) AS id)"
    if each.blanked:
        assigned = ", ".join(f"{column} = {value}" for column, value in each.blanked.items())
        action = f"UPDATE {each.table} o SET {assigned} FROM {chosen} gone"
    else:
        action = f"DELETE FROM {each.table} o USING {chosen} gone"
    return sorted(connection.scalars(sa.text(f"{action} WHERE o.id = gone.id RETURNING o.id"), values))


def _digest(before: bytes, keys: list[int]) -> bytes:
    """A chain over the keys in the order in which they went."""
    return hashlib.sha256(bytes(before) + ",".join(map(str, keys)).encode()).digest()


def _finish(
    connection: sa.Connection, order: sa.Row[tuple[object, ...]], as_of: datetime, *, service: str, actor: str
) -> None:
    connection.execute(sa.text("UPDATE cleanup SET finished_at = :at WHERE id = :id"), {"id": order.id, "at": as_of})
    detail = {
        "order": order.id,
        "dataset": order.dataset,
        "cutoff": order.cutoff.isoformat(),
        "expected": order.expected,
        "removed": order.removed,
        "digest": bytes(order.digest).hex(),
    }
    audit.append(connection, as_of=as_of, actor=actor, action="cleanup", service=service, detail=detail)
