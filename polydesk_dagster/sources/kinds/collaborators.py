"""The doctors and technicians of a clinic: whoever has left stays on record, with the day."""

from __future__ import annotations

from polydesk_dagster.changes.kind import Kind, Limits, Source
from polydesk_dagster.clinic.bookings.unverified import AFTER_BOOKINGS, LEAVES_IN_USE
from polydesk_dagster.sources.kinds.names import RENUMBERED, again

_IN_FORCE = "c.deleted_at IS NULL AND c.external_id IS NOT NULL"
_SAME_NAME = "name_key(o.last_name) = name_key(s.last_name) AND name_key(o.first_name) = name_key(s.first_name)"
# Whoever has two different codes is two people.
_SAME = f"{_SAME_NAME} AND (o.fiscal_code = s.fiscal_code) IS NOT FALSE"

COLLABORATOR = Kind(
    name="collaborator",
    table="specialist",
    key="concat_ws(' ', r.title, r.last_name, r.first_name)",
    fixed=("clinic_id",),
    owned=(
        "external_id",
        "title",
        "last_name",
        "first_name",
        "fiscal_code",
        "specialties",
        "email",
        "active",
        "ends_on",
        "deleted_at",
    ),
    kept=("sort_name", "sort_name_manual"),
    derived=("sort_name",),
    masked=("fiscal_code", "email"),
    carried={"target": "bigint"},
    taken="t.clinic_id = r.clinic_id AND t.external_id = r.external_id",
    barred=f"""CASE WHEN {LEAVES_IN_USE.format(column="specialist_id")}
                    THEN 'has_bookings' END""",
    before=(AFTER_BOOKINGS.format(table="specialist"),),
    undo_before=(AFTER_BOOKINGS.format(table="specialist"),),
    limits=Limits(retired=0.2, changed=0.5),
    guards=(RENUMBERED,),
    called="concat_ws(' ', t.last_name, t.first_name)",
    source=Source(
        columns={
            "external_id": "text",
            "title": "text",
            "last_name": "text",
            "first_name": "text",
            "fiscal_code": "text",
            "specialties": "text[]",
            "email": "text",
            "active": "boolean",
            "ends_on": "date",
        },
        compared=("specialist",),
        prepare=lambda record: (
            record.id,
            record.title,
            record.last_name,
            record.first_name,
            record.fiscal_code.upper() if record.fiscal_code else None,
            list(record.specialties or ()),
            record.email,
            record.active,
            record.ends_on,
        ),
        label=lambda record: str(record.id),
        text=("last_name", "first_name"),
        key=("{}.external_id",),
        apart=("external_id",),
        join="d.target = c.id",
        desired=f"""
            SELECT s.n, CAST(:clinic_id AS bigint) AS clinic_id, s.external_id, s.title,
                   s.last_name, s.first_name, s.fiscal_code, s.specialties, s.email, s.active, s.ends_on,
                   CAST(NULL AS timestamptz) AS deleted_at, coalesce(known.id, ours.id, again.id) AS target,
                   CASE WHEN min(s.external_id) OVER same <> max(s.external_id) OVER same THEN 'duplicate'
                        ELSE s.problem END AS problem,
                   CASE WHEN min(s.external_id) OVER same <> max(s.external_id) OVER same
                        THEN 'several_for_one' ELSE s.reason END AS reason
            FROM {{stage}} s
            LEFT JOIN specialist known ON known.clinic_id = :clinic_id AND known.external_id = s.external_id
            LEFT JOIN LATERAL (
                SELECT min(o.id) AS id FROM specialist o
                WHERE known.id IS NULL AND o.clinic_id = :clinic_id AND o.external_id IS NULL AND o.deleted_at IS NULL
                  AND (o.fiscal_code = s.fiscal_code
                       OR (o.fiscal_code IS NULL OR s.fiscal_code IS NULL)
                          AND {_SAME_NAME})
                HAVING count(*) = 1) ours ON true
            {again("specialist", _IN_FORCE, _SAME)}
            WINDOW same AS (PARTITION BY coalesce(ours.id, again.id),
                                         CASE WHEN coalesce(ours.id, again.id) IS NULL THEN s.n END)
        """,
        current="SELECT t.*, t.external_id AS source_key FROM specialist t WHERE t.clinic_id = :clinic_id",
        retire={"active": "false", "deleted_at": ":as_of", "ends_on": "coalesce(c.ends_on, :today)"},
        retirable=_IN_FORCE,
        reason="""CASE WHEN d.n IS NULL THEN 'gone_at_source'
                       WHEN c.deleted_at IS NOT NULL THEN 'back_at_source'
                       WHEN c.external_id IS NULL AND c.id IS NOT NULL THEN 'linked_by_person'
                       WHEN NOT d.active AND c.active THEN 'no_longer_works_here' END""",
    ),
)
