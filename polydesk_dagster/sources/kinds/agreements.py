"""Insurances, funds and agreements that a clinic has prices with."""

from __future__ import annotations

from polydesk_dagster.changes.kind import Kind, Limits, Source
from polydesk_dagster.sources.kinds.names import RENUMBERED, again

_IN_FORCE = "c.external_id IS NOT NULL AND (c.valid_to IS NULL OR c.valid_to > greatest(c.valid_from, :today))"

AGREEMENT = Kind(
    name="agreement",
    table="agreement",
    key="r.name",
    fixed=("clinic_id",),
    owned=("external_id", "name", "kind", "valid_from", "valid_to"),
    carried={"target": "bigint"},
    taken="t.clinic_id = r.clinic_id AND t.external_id = r.external_id",
    # A clinic may have no agreement at all.
    limits=Limits(minimum=0, retired=0.2, changed=0.5),
    guards=(RENUMBERED,),
    called="t.name",
    source=Source(
        columns={"external_id": "text", "name": "text", "kind": "text", "valid_from": "date", "valid_to": "date"},
        compared=("agreement",),
        prepare=lambda record: (record.id, record.name, record.kind, record.valid_from, record.valid_to),
        label=lambda record: str(record.id),
        text=("name",),
        key=("{}.external_id",),
        apart=("external_id",),
        join="d.target = c.id",
        desired=f"""
            SELECT s.n, CAST(:clinic_id AS bigint) AS clinic_id, s.external_id, s.name, s.kind, s.valid_from,
                   s.valid_to, coalesce(known.id, ours.id, again.id) AS target,
                   CASE WHEN s.valid_to < s.valid_from THEN 'invalid'
                        WHEN min(s.external_id) OVER same <> max(s.external_id) OVER same THEN 'duplicate'
                        ELSE s.problem END AS problem,
                   CASE WHEN s.valid_to < s.valid_from THEN 'ends_before_start'
                        WHEN min(s.external_id) OVER same <> max(s.external_id) OVER same
                        THEN 'several_for_one' ELSE s.reason END AS reason
            FROM {{stage}} s
            LEFT JOIN agreement known ON known.clinic_id = :clinic_id AND known.external_id = s.external_id
            LEFT JOIN LATERAL (
                SELECT min(o.id) AS id FROM agreement o
                WHERE known.id IS NULL AND o.clinic_id = :clinic_id AND o.external_id IS NULL
                  AND name_key(o.name) = name_key(s.name) HAVING count(*) = 1) ours ON true
            {again("agreement", _IN_FORCE, "o.kind = s.kind AND name_key(o.name) = name_key(s.name)")}
            WINDOW same AS (PARTITION BY coalesce(ours.id, again.id),
                                         CASE WHEN coalesce(ours.id, again.id) IS NULL THEN s.n END)
        """,
        current="SELECT t.*, t.external_id AS source_key FROM agreement t WHERE t.clinic_id = :clinic_id",
        retire={"valid_to": "greatest(c.valid_from, :today)"},
        retirable=_IN_FORCE,
        reason="CASE WHEN d.n IS NULL THEN 'gone_at_source' END",
    ),
)
