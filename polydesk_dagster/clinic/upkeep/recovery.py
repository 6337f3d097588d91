"""Services that were deleted by mistake: back with their id, prices, agendas, agreements and preparation.

A deleted service keeps its row, and its agendas and prices keep theirs; deletion only closed the prices, on that day
or, where studiolab deleted it, with the next sync of prices. So recovery opens those prices again, as far as their
agreement lasts, and takes the mark away. Online booking stays off: a person turns it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import Kind, Plan, Scope, propose
from polydesk_dagster.changes.why import read, why
from polydesk_dagster.clinic.bookings.emergency import Press, press
from polydesk_dagster.clinic.bookings.unverified import AFTER_BOOKINGS, LEAVES_IN_USE
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.outcome import Report, Table
from polydesk_dagster.values import Reason

# What stands in the way of the service ``{v}``, worded for the desk; nothing of it may have come up by the time of the
# press, and in a list of several services each is judged by itself.
_LOST = """CASE WHEN NOT (SELECT active FROM clinic WHERE id = {v}.clinic_id) THEN 'clinic_is_closed'
                WHEN NOT EXISTS (SELECT FROM agenda_service o WHERE o.service_id = {v}.id)
                 AND NOT EXISTS (SELECT FROM agenda a WHERE a.service_id = {v}.id)
                 AND NOT EXISTS (SELECT FROM price p WHERE p.service_id = {v}.id)
                THEN 'nothing_left_of_it' END"""

_CLASH = f"""
    CASE WHEN EXISTS (SELECT FROM service n WHERE n.clinic_id = {{v}}.clinic_id AND n.code = {{v}}.code
                                              AND n.deleted_at IS NULL)
         THEN {why("code_is_anothers", code="{v}.code")}
         WHEN EXISTS (SELECT FROM service n WHERE n.clinic_id = {{v}}.clinic_id AND n.deleted_at IS NULL
                                              AND lower(n.name) = lower({{v}}.name))
         THEN {why("name_is_anothers", name="{v}.name")}
         WHEN EXISTS (SELECT FROM service n WHERE n.clinic_id = {{v}}.clinic_id AND n.deleted_at IS NOT NULL
                                              AND (n.deleted_at, n.id) > ({{v}}.deleted_at, {{v}}.id)
                                              AND (n.code = {{v}}.code OR lower(n.name) = lower({{v}}.name))
                                              AND {_LOST.format(v="n")} IS NULL)
         THEN {why("deleted_again_later", code="{v}.code")}
         WHEN NOT EXISTS (SELECT FROM agenda a LEFT JOIN specialist s ON s.id = a.specialist_id
                          WHERE a.active AND s.deleted_at IS NULL AND coalesce(s.active, true)
                            AND (a.service_id = {{v}}.id
                                 OR a.id IN (SELECT agenda_id FROM agenda_service o WHERE o.service_id = {{v}}.id)))
         THEN 'nobody_performs_it' END"""

_PRICES_MOVED = """EXISTS (SELECT FROM unnest(r.reopened, r.closed) AS u (id, closed) LEFT JOIN price p USING (id)
                           WHERE p.valid_to IS DISTINCT FROM u.closed)"""

DELETED_SERVICE = Kind(
    name="deleted_service",
    whole=True,
    table="service",
    key="r.what",
    owned=("deleted_at", "active", "bookable_online"),
    carried={"what": "text", "list": "text", "reopened": "bigint[]", "closed": "date[]", "until": "date[]"},
    barred=f"""CASE WHEN r.list = 'restorable' AND t.deleted_at IS NOT NULL
                    THEN coalesce({_LOST.format(v="t")}, {_CLASH.format(v="t")},
                                  CASE WHEN {_PRICES_MOVED} THEN 'price_has_changed' END)
                    WHEN {LEAVES_IN_USE.format(column="service_id")} THEN 'has_bookings' END""",
    undo_before=(AFTER_BOOKINGS.format(table="service"),),
    after=(
        """UPDATE price SET valid_to = u.until, updated_at = :as_of
           FROM {rows} r, unnest(r.reopened, r.until) AS u (id, until)
           WHERE r.action = 'update' AND price.id = u.id""",
    ),
    # A price that was given another end, or a successor, since then keeps it.
    undo_after=(
        """UPDATE price SET valid_to = u.closed, updated_at = :as_of
           FROM {rows} r, unnest(r.reopened, r.closed, r.until) AS u (id, closed, until)
           WHERE r.action = 'update' AND price.id = u.id AND price.valid_to IS NOT DISTINCT FROM u.until""",
    ),
)

_WITH = {
    "agendas": "jsonb_build_object('count', agendas, 'noun', 'agendas')",
    "prices": "jsonb_build_object('count', prices, 'noun', 'prices')",
}

# A price comes back if the deletion closed it, at once or by a later sync, and nothing has taken its place since; one
# that was planned and closed before it began has taken nobody's.
_DELETED = f"""
    SELECT CASE list WHEN 'restorable' THEN 'update' ELSE 'conflict' END AS action, CAST(NULL AS text) AS finding,
           why AS reason, id, CAST(NULL AS timestamptz) AS deleted_at, true AS active, false AS bookable_online,
           what, list, CASE list WHEN 'restorable' THEN reopened ELSE '{{}}' END AS reopened, closed, until
    FROM (
        SELECT d.*, CASE WHEN lost IS NOT NULL THEN 'lost' WHEN clash IS NOT NULL THEN 'conflict'
                         ELSE 'restorable' END AS list,
               coalesce(lost, clash, CASE WHEN from_studiolab THEN {why("comes_back_of_studiolab", **_WITH)}
                                          ELSE {why("comes_back", **_WITH)} END) AS why
        FROM (
            SELECT v.id, c.code || ', ' || v.code || ' ' || v.name AS what, p.reopened, p.closed, p.until,
                   cardinality(p.reopened) + p.in_force AS prices,
                   (SELECT count(*) FROM agenda a
                    WHERE a.active AND (a.service_id = v.id
                                        OR a.id IN (SELECT agenda_id FROM agenda_service o
                                                    WHERE o.service_id = v.id))) AS agendas,
                   {_LOST.format(v="v")} AS lost,
                   coalesce({_CLASH.format(v="v")},
                            CASE WHEN cardinality(p.reopened) + p.in_force = 0 AND p.known > 0 AND NOT linked
                                 THEN 'no_price_in_force'
                                 END) AS clash,
                   linked AS from_studiolab
            FROM service v JOIN clinic c ON c.id = v.clinic_id
            CROSS JOIN LATERAL (
                SELECT CAST(v.deleted_at AT TIME ZONE c.time_zone AS date) AS closed_on,
                       CAST(CAST(:as_of AS timestamptz) AT TIME ZONE c.time_zone AS date) AS today,
                       v.external_id IS NOT NULL
                       AND EXISTS (SELECT FROM integration i WHERE i.clinic_id = c.id AND i.active) AS linked) k
            CROSS JOIN LATERAL (
                SELECT coalesce(array_agg(id ORDER BY id) FILTER (WHERE back), '{{}}') AS reopened,
                       coalesce(array_agg(valid_to ORDER BY id) FILTER (WHERE back), '{{}}') AS closed,
                       coalesce(array_agg(agreed_to ORDER BY id) FILTER (WHERE back), '{{}}') AS until,
                       count(*) FILTER (WHERE valid_from <= k.today AND coalesce(valid_to > k.today, true)) AS in_force,
                       count(*) AS known
                FROM (SELECT p.*, a.valid_to AS agreed_to,
                             p.valid_from < p.valid_to
                             AND (p.valid_to = k.closed_on
                                  OR p.valid_to BETWEEN k.closed_on AND k.today AND p.updated_at >= v.deleted_at)
                             AND coalesce(a.valid_to > k.today, true) AND s.deleted_at IS NULL
                             AND coalesce(s.active, true)
                             AND NOT EXISTS (SELECT FROM price n
                                             WHERE n.service_id = p.service_id AND n.id <> p.id
                                               AND n.valid_from IS DISTINCT FROM n.valid_to
                                               AND n.agreement_id IS NOT DISTINCT FROM p.agreement_id
                                               AND n.specialist_id IS NOT DISTINCT FROM p.specialist_id
                                               AND (n.valid_to IS NULL OR n.valid_to > p.valid_to)) AS back
                      FROM price p
                      LEFT JOIN agreement a ON a.id = p.agreement_id
                      LEFT JOIN specialist s ON s.id = p.specialist_id
                      WHERE p.service_id = v.id) own) p
            WHERE v.deleted_at IS NOT NULL AND (CAST(:clinic_id AS bigint) IS NULL OR v.clinic_id = :clinic_id)
        ) d
    ) listed"""

_LISTS = {"restorable": "restorable_services", "conflict": "conflicting_services", "lost": "lost_services"}
"""The table of each list."""


def recover(
    connection: sa.Connection, as_of: datetime, given: Press, *, clinic: str | None = None, preview: bool = False
) -> Report:
    """Restore what can be restored, behind the gate of :mod:`clinic.emergency`, in the caller's transaction.

    The preview has three tables: restorable, in conflict and why, not recoverable and why.

    Raises:
        PermanentError: for an unknown clinic.
    """
    scope = Scope("recover_deleted_services", clinic, clinic_id(connection, clinic))
    made: list[Plan] = []

    def propose_all() -> Plan:
        made.append(propose(connection, DELETED_SERVICE, scope, _DELETED, as_of=as_of))
        return made[-1]

    report = press(
        connection,
        given,
        scope=scope,
        kind=DELETED_SERVICE,
        propose=propose_all,
        as_of=as_of,
        preview=preview,
    )
    if not made or not made[-1].rows_kept:
        return report
    tables = _three_lists(connection, made[-1])
    return replace(report, reasons=_two_kinds(report.reasons, lost=tables[-1].total), tables=tables)


def _two_kinds(reasons: Sequence[Reason], *, lost: int) -> tuple[Reason, ...]:
    """The rows that wait, by the table in which they stand: in conflict, or not recoverable."""
    told = []
    for reason in reasons:
        if reason.code != "conflict" or not lost:
            told.append(reason)
            continue
        told += [replace(reason, count=reason.count - lost)] if reason.count > lost else []
        told.append(replace(reason, code="not_recoverable", count=lost))
    return tuple(told)


def _three_lists(connection: sa.Connection, plan: Plan) -> tuple[Table, ...]:
    rows = connection.execute(sa.text(f"SELECT list, what, reason FROM {plan.rows} ORDER BY what")).all()
    tables = []
    for which, key in _LISTS.items():
        cells = tuple((row.what, read(row.reason)) for row in rows if row.list == which)
        tables.append(Table(key, ("treatment", "why"), cells, len(cells)))
    return tuple(tables)
