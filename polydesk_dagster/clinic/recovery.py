"""Services that were deleted by mistake: back with their id, prices, agendas, agreements and preparation.

A deleted service keeps its row, and its agendas and prices keep theirs; deletion only closed the prices of that day.
So recovery opens those prices again and takes the mark away. Online booking stays off: a person turns it on.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import Kind, Plan, Scope, propose
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.emergency import Press, press
from polydesk_dagster.outcome import Report, Table

DELETED_SERVICE = Kind(
    name="deleted_service",
    label="prestazioni eliminate",
    table="service",
    key="r.what",
    owned=("deleted_at", "active", "bookable_online"),
    carried={"what": "text", "list": "text", "reopened": "bigint[]", "closed_on": "date"},
    after=("UPDATE price SET valid_to = NULL, updated_at = :as_of FROM {rows} r WHERE price.id = ANY(r.reopened)",),
    undo_after=(
        """UPDATE price SET valid_to = r.closed_on, updated_at = :as_of FROM {rows} r
           WHERE r.action = 'update' AND price.id = ANY(r.reopened)""",
    ),
)

# A price comes back if the deletion closed it and nothing has taken its place since.
_DELETED = """
    SELECT CASE list WHEN 'restorable' THEN 'update' ELSE 'conflict' END AS action, CAST(NULL AS text) AS finding,
           why AS reason, id, CAST(NULL AS timestamptz) AS deleted_at, true AS active, false AS bookable_online,
           what, list, CASE list WHEN 'restorable' THEN reopened ELSE '{}' END AS reopened, closed_on
    FROM (
        SELECT d.*, CASE WHEN lost IS NOT NULL THEN 'lost' WHEN clash IS NOT NULL THEN 'conflict'
                         ELSE 'restorable' END AS list,
               coalesce(lost, clash, 'torna con ' || agendas || ' agende e ' || cardinality(reopened)
                                     || ' prezzi; la prenotazione online resta spenta') AS why
        FROM (
            SELECT v.id, c.code || ', ' || v.code || ' ' || v.name AS what,
                   CAST(v.deleted_at AT TIME ZONE c.time_zone AS date) AS closed_on,
                   (SELECT count(*) FROM agenda_service o JOIN agenda a ON a.id = o.agenda_id
                    WHERE o.service_id = v.id AND a.active) AS agendas,
                   ARRAY(SELECT p.id FROM price p
                         WHERE p.service_id = v.id
                           AND p.valid_to = CAST(v.deleted_at AT TIME ZONE c.time_zone AS date)
                           AND NOT EXISTS (SELECT FROM price n
                                           WHERE n.service_id = p.service_id AND n.id <> p.id
                                             AND n.agreement_id IS NOT DISTINCT FROM p.agreement_id
                                             AND n.specialist_id IS NOT DISTINCT FROM p.specialist_id
                                             AND (n.valid_to IS NULL OR n.valid_to > p.valid_to))
                         ORDER BY p.id) AS reopened,
                   CASE WHEN NOT c.active THEN 'la clinica è chiusa'
                        WHEN NOT EXISTS (SELECT FROM agenda_service o WHERE o.service_id = v.id)
                         AND NOT EXISTS (SELECT FROM agenda a WHERE a.service_id = v.id)
                         AND NOT EXISTS (SELECT FROM price p WHERE p.service_id = v.id)
                        THEN 'non ne restano né agende né prezzi: va creata di nuovo' END AS lost,
                   CASE WHEN EXISTS (SELECT FROM service n WHERE n.clinic_id = v.clinic_id AND n.code = v.code
                                                             AND n.deleted_at IS NULL)
                        THEN 'il codice ' || v.code || ' è ora di un''altra prestazione'
                        WHEN EXISTS (SELECT FROM service n WHERE n.clinic_id = v.clinic_id AND n.deleted_at IS NULL
                                                             AND lower(n.name) = lower(v.name))
                        THEN 'il nome «' || v.name || '» è ora di un''altra prestazione'
                        WHEN row_number() OVER (PARTITION BY v.clinic_id, v.code ORDER BY v.deleted_at DESC, v.id) > 1
                        THEN 'il codice ' || v.code || ' è anche di una prestazione eliminata dopo'
                        WHEN NOT EXISTS (SELECT FROM agenda a LEFT JOIN specialist s ON s.id = a.specialist_id
                                         WHERE a.active AND s.deleted_at IS NULL AND coalesce(s.active, true)
                                           AND (a.service_id = v.id
                                                OR a.id IN (SELECT agenda_id FROM agenda_service o
                                                            WHERE o.service_id = v.id)))
                        THEN 'nessun medico in servizio la esegue più' END AS clash
            FROM service v JOIN clinic c ON c.id = v.clinic_id
            WHERE v.deleted_at IS NOT NULL AND (CAST(:clinic_id AS bigint) IS NULL OR v.clinic_id = :clinic_id)
        ) d
    ) listed"""

_LISTS = {
    "restorable": "Recuperabili",
    "conflict": "In conflitto",
    "lost": "Non recuperabili",
}


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
    return replace(report, tables=_three_lists(connection, made[-1]))


def _three_lists(connection: sa.Connection, plan: Plan) -> tuple[Table, ...]:
    rows = connection.execute(sa.text(f"SELECT list, what, reason FROM {plan.rows} ORDER BY what")).all()
    tables = []
    for key, title in _LISTS.items():
        cells = tuple((row.what, row.reason) for row in rows if row.list == key)
        tables.append(Table(title, ("Prestazione", "Perché"), cells, len(cells)))
    return tuple(tables)
