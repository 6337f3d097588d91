"""What a clinic offers: found by the source's id, or else by a code that no other source holds."""

from __future__ import annotations

from polydesk_dagster.changes.kind import Kind, Limits, Source
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.bookings.unverified import AFTER_BOOKINGS, LEAVES_IN_USE
from polydesk_dagster.clinic.messages.text import CLINICAL
from polydesk_dagster.sources.kinds.names import RENUMBERED, again

_IN_FORCE = "c.deleted_at IS NULL AND c.external_id IS NOT NULL"

# A code belongs to one service in use: one that the plan leaves as it is keeps its code, and so does one that becomes a
# conflict here, which may then stop the next.
_CODE_TAKEN = f"""
    WITH RECURSIVE wanting AS MATERIALIZED (
        SELECT ordinal, code, CASE WHEN was_deleted_at IS NULL THEN was_code END AS freed
        FROM {{rows}} WHERE action IN ('create', 'update') AND deleted_at IS NULL
    ), stopped AS (
        SELECT w.* FROM wanting w
        JOIN service s ON s.clinic_id = :clinic_id AND s.code = w.code AND s.deleted_at IS NULL
        WHERE NOT EXISTS (SELECT FROM {{rows}} r WHERE r.id = s.id AND r.action <> 'conflict')
        UNION
        SELECT w.* FROM stopped s JOIN wanting w ON w.code = s.freed AND w.ordinal <> s.ordinal
    )
    UPDATE {{rows}} r
    SET action = 'conflict', finding = 'duplicate', id = CASE action WHEN 'create' THEN NULL ELSE id END,
        reason = {why("code_of_another", code="r.code")}
    FROM stopped s WHERE s.ordinal = r.ordinal
"""

_TELLS_OF_HEALTH = f"d.name ~* '{CLINICAL}'"
"""What is proposed as sensitive: until somebody decides, messages do not name it."""

SERVICE = Kind(
    name="service",
    table="service",
    key="r.code || ' ' || r.name",
    fixed=("clinic_id",),
    owned=("external_id", "code", "name", "duration_minutes", "preparation", "active", "deleted_at"),
    kept=(
        "price",
        "preparation_lead_days",
        "preparation_last_hours",
        "sensitive",
        "sensitive_decided_by",
        "sensitive_decided_at",
        "bookable_online",
        "pause_before_minutes",
        "pause_after_minutes",
    ),
    carried={"target": "bigint"},
    taken="t.clinic_id = r.clinic_id AND t.external_id = r.external_id",
    barred=f"CASE WHEN {LEAVES_IN_USE.format(column='service_id')} THEN 'has_bookings' END",
    before=(AFTER_BOOKINGS.format(table="service"),),
    undo_before=(AFTER_BOOKINGS.format(table="service"),),
    undo_reconsider=(_CODE_TAKEN,),
    limits=Limits(retired=0.1, changed=0.3),
    guards=(RENUMBERED,),
    called="t.code",
    source=Source(
        columns={
            "external_id": "text",
            "code": "text",
            "name": "text",
            "duration_minutes": "integer",
            "preparation": "text",
            "active": "boolean",
        },
        compared=("service",),
        prepare=lambda record: (
            record.id,
            record.code,
            record.name,
            record.duration_minutes,
            record.preparation,
            record.active,
        ),
        label=lambda record: str(record.id),
        text=("name", "preparation"),
        key=("{}.external_id",),
        apart=("external_id",),
        join="d.target = c.id",
        # A renamed service is the same one: found by its external id, or else by the code of one that has none, or by
        # code and name of one whose external id is gone.
        desired=f"""
            SELECT s.n, CAST(:clinic_id AS bigint) AS clinic_id, s.external_id, s.code, s.name, s.duration_minutes,
                   s.preparation, s.active, CAST(NULL AS timestamptz) AS deleted_at,
                   coalesce(known.id, ours.id, again.id) AS target,
                   CASE WHEN s.problem IS NULL AND min(s.external_id) OVER alike <> max(s.external_id) OVER alike
                        THEN 'duplicate' ELSE s.problem END AS problem,
                   CASE WHEN s.problem IS NULL AND min(s.external_id) OVER alike <> max(s.external_id) OVER alike
                        THEN 'several_with_code' ELSE s.reason END AS reason
            FROM {{stage}} s
            LEFT JOIN service known ON known.clinic_id = :clinic_id AND known.external_id = s.external_id
            LEFT JOIN service ours ON known.id IS NULL AND ours.clinic_id = :clinic_id AND ours.code = s.code
                 AND ours.external_id IS NULL AND ours.deleted_at IS NULL
            {again("service", _IN_FORCE, "o.code = s.code AND name_key(o.name) = name_key(s.name)")}
            WINDOW alike AS (PARTITION BY s.code)
        """,
        current="""SELECT t.*, t.external_id AS source_key FROM service t
                   WHERE t.clinic_id = :clinic_id""",
        retire={"active": "false", "deleted_at": ":as_of"},
        retirable=_IN_FORCE,
        reason=f"""CASE WHEN d.n IS NULL THEN 'gone_at_source'
                       WHEN c.deleted_at IS NOT NULL AND d.n IS NOT NULL THEN 'back_at_source'
                       WHEN c.external_id IS NULL AND c.id IS NOT NULL THEN 'linked_by_code'
                       WHEN d.code <> c.code THEN 'code_changed'
                       WHEN c.id IS NULL AND {_TELLS_OF_HEALTH} THEN 'sensitive_proposed'
                       WHEN d.name <> c.name AND NOT c.sensitive AND c.sensitive_decided_at IS NULL
                            AND {_TELLS_OF_HEALTH} THEN 'sensitive_proposed'
                       WHEN d.name <> c.name THEN 'name_changed' END""",
        reconsider=(_CODE_TAKEN,),
    ),
)
