"""The municipalities of yesterday and today: each closed where it ended, never deleted."""

from __future__ import annotations

from typing import Any

from polydesk_dagster.changes.kind import Guard, Kind, Limits, Source
from polydesk_dagster.sources.kinds.validity import OTHERS, OVERLAPS


def one_layout(name: str, other_name: str | None) -> tuple[str, str | None]:
    """The Italian name and the other one, however the source lays them out: ``Aldino/Aldein`` and ``Aldein``, or the
    two apart. A hyphen inside an Italian name stays."""
    if other_name:
        head, tail = name[: -len(other_name)], name[-len(other_name) :]
        if tail == other_name and head != head.rstrip(" /-"):
            return head.rstrip(" /-"), other_name
        return name, other_name
    if "/" in name:
        first, _, second = name.partition("/")
        return first.strip(), second.strip() or None
    return name, None


def _municipality(record: Any) -> tuple[Any, ...]:
    name, other_name = one_layout(record.name, record.other_name)
    return (
        record.cadastral_code,
        record.valid_from,
        record.valid_to,
        record.istat_code,
        name,
        other_name,
        record.province,
        record.region,
        sorted(record.postal_codes or ()),
        record.successor,
    )


# An interval that the source has moved is closed empty here, so that the right one finds its place free.
_MOVED = """EXISTS (SELECT FROM wanted w WHERE w.cadastral_code = c.cadastral_code AND w.problem IS NULL
                    AND w.valid_from <> c.valid_from
                    AND daterange(w.valid_from, w.valid_to) && daterange(c.valid_from, c.valid_to))"""

_WHICH = "m.cadastral_code = r.cadastral_code AND m.valid_from = r.valid_from"

MUNICIPALITY = Kind(
    name="municipality",
    table="municipality",
    key="r.cadastral_code || ' ' || r.name || ' · ' || r.valid_from",
    identity=("cadastral_code", "valid_from"),
    owned=("valid_to", "istat_code", "name", "other_name", "province", "region", "postal_codes", "successor"),
    taken="t.cadastral_code = r.cadastral_code AND t.valid_from = r.valid_from",
    kept=("former_names",),
    derived=("former_names",),
    together="r.cadastral_code",
    limits=Limits(minimum=7500, shrink=0.05, retired=0.05, changed=0.05),
    # An older edition of the list would take back what a newer one has told.
    guards=(
        Guard(
            "reopened",
            rows="""r.action = 'update' AND r.was_valid_to <= :today AND r.was_valid_to > r.valid_from
                    AND (r.valid_to IS NULL OR r.valid_to > :today)""",
            noun="municipalities",
        ),
        Guard(
            "unnamed",
            rows=f"""r.action = 'update' AND r.valid_to IS NULL
                     AND (r.was_other_name IS NOT NULL AND r.other_name IS NULL
                          OR r.was_successor IS NOT NULL AND r.successor IS NULL
                          OR r.name <> r.was_name
                             AND EXISTS (SELECT FROM municipality m
                                         WHERE {_WHICH} AND r.name = ANY (m.former_names)))""",
            noun="municipalities",
        ),
    ),
    after=(
        f"""UPDATE municipality m SET former_names = array_remove(array_append(m.former_names, r.was_name), r.name)
            FROM {{rows}} r WHERE r.action = 'update' AND r.name <> r.was_name AND {_WHICH}""",
    ),
    undo_after=(
        f"""UPDATE municipality m SET former_names = array_remove(m.former_names, r.name)
            FROM {{rows}} r WHERE r.action = 'update' AND r.name <> r.was_name AND {_WHICH}""",
    ),
    source=Source(
        columns={
            "cadastral_code": "text",
            "valid_from": "date",
            "valid_to": "date",
            "istat_code": "text",
            "name": "text",
            "other_name": "text",
            "province": "text",
            "region": "text",
            "postal_codes": "text[]",
            "successor": "text",
        },
        compared=("municipality",),
        prepare=_municipality,
        label=lambda record: str(record.cadastral_code),
        text=("name", "other_name"),
        key=("{}.cadastral_code", "{}.valid_from"),
        apart=("cadastral_code", "valid_from"),
        indexed="cadastral_code",
        desired=f"""
            SELECT s.n, s.cadastral_code, s.valid_from, s.valid_to, s.istat_code, s.name, s.other_name, s.province,
                   s.region, s.postal_codes, s.successor,
                   CASE WHEN s.fault IS NOT NULL THEN coalesce(s.problem, s.failing) END AS problem, s.fault AS reason
            FROM (
                SELECT s.*, CASE WHEN s.valid_to < s.valid_from THEN 'invalid' ELSE 'overlapping' END AS failing,
                       CASE WHEN s.problem IS NOT NULL THEN s.reason
                            WHEN s.valid_to < s.valid_from THEN 'ends_before_start'
                            WHEN {OVERLAPS} THEN 'periods_overlap' END AS fault
                FROM {{stage}} s
                {OTHERS.format("s.cadastral_code")}
            ) s
        """,
        current="SELECT t.*, t.cadastral_code AS source_key FROM municipality t",
        retire={"valid_to": f"CASE WHEN {_MOVED} THEN c.valid_from ELSE greatest(c.valid_from, :today) END"},
        retirable=f"(c.valid_to IS NULL OR c.valid_to > c.valid_from AND {_MOVED})",
        in_force="c.valid_to IS NULL",
        blocked="""CASE WHEN d.n IS NULL AND EXISTS (SELECT FROM wanted w WHERE w.problem IS NOT NULL
                                                        AND w.cadastral_code = c.cadastral_code)
                        THEN 'source_contradicts_itself' END""",
        reason="""CASE WHEN d.n IS NULL THEN 'gone_at_source'
                       WHEN d.name <> c.name OR d.other_name IS DISTINCT FROM c.other_name THEN 'name_changed'
                       WHEN d.valid_to IS NOT NULL AND c.valid_to IS NULL THEN 'municipality_suppressed' END""",
    ),
)
