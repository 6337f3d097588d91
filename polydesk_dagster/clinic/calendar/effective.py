"""Which hours are closed for which agenda, once all layers of closures have spoken.

National < regional < municipal < chain < clinic < agenda: a more specific layer overrides the less specific ones, to
close or (effect ``open``) to open again. Computed in local wall time as one multirange an agenda.
"""

from __future__ import annotations

LAYERS = ("national", "region", "municipality", "chain", "clinic", "agenda")
"""From the least to the most specific."""

# Closures in force, one row a year for those that return every year (29 February only in leap years).
CLOSURE_IN_FORCE = """
    SELECT c.id, c.layer, c.effect, c.region, c.municipality_code, c.clinic_id, c.agenda_id, span.hours
    FROM closure c
    CROSS JOIN LATERAL (
        SELECT c.date_from AS first, c.date_to AS last WHERE NOT c.yearly
        UNION ALL
        SELECT (c.date_from + make_interval(years => y))::date, (c.date_to + make_interval(years => y))::date
        FROM generate_series(0, greatest(0, extract(year FROM CAST(:last_day AS date))::int
                                            - extract(year FROM c.date_from)::int)) AS y
        WHERE c.yearly AND extract(day FROM c.date_from + make_interval(years => y)) = extract(day FROM c.date_from)
    ) AS year
    CROSS JOIN LATERAL (
        SELECT tsrange(year.first + time '00:00', year.last + interval '1 day') AS hours WHERE c.from_time IS NULL
        UNION ALL
        SELECT tsrange(day + c.from_time, day + c.to_time)
        FROM generate_series(year.first::timestamp, year.last::timestamp, interval '1 day') AS day
        WHERE c.from_time IS NOT NULL
    ) AS span
    WHERE c.lifted_at IS NULL AND year.last >= :first_day AND year.first <= :last_day
"""

REACHES = """
    (c.layer IN ('national', 'chain')
     OR c.layer = 'region' AND name_key(c.region) = name_key(k.region)
     OR c.layer = 'municipality' AND c.municipality_code = k.municipality_code
     OR c.layer = 'clinic' AND c.clinic_id = k.id
     OR c.layer = 'agenda' AND c.agenda_id = a.id)
"""
"""Whether closure ``c`` reaches agenda ``a`` of clinic ``k``."""

MAY_REACH = """
    (c.clinic_id IS NULL AND c.agenda_id IS NULL OR c.clinic_id = ANY(:clinic_ids)
     OR c.agenda_id IN (SELECT id FROM agenda WHERE clinic_id = ANY(:clinic_ids)))
"""
"""Of closures ``c`` those that are for many clinics or for ``:clinic_ids``, found by index however many there are."""


def local_span(starts: str, ends: str, length: str) -> str:
    """SQL: the local hours that a slot touches, from its local start, its local end and its length. Where the clocks go
    back between the two, the end alone may lie before the start."""
    return f"tsrange({starts}, greatest({ends}, {starts} + ({length})))"


def slot_span(alias: str, zone: str = ":time_zone") -> str:
    """SQL: the same of a row of ``slot``."""
    starts, ends = (f"{alias}.{column} AT TIME ZONE {zone}" for column in ("starts_at", "ends_at"))
    return local_span(starts, ends, f"{alias}.ends_at - {alias}.starts_at")


def _folded() -> str:
    expression = "'{}'::tsmultirange"
    for layer in LAYERS:
        for effect, operator in (("closed", "+"), ("open", "-")):
            hours = f"range_agg(c.hours) FILTER (WHERE c.layer = '{layer}' AND c.effect = '{effect}')"
            expression = f"({expression} {operator} coalesce({hours}, '{{}}'))"
    return expression


CLOSED_HOURS = f"""
    SELECT a.id AS agenda_id, {_folded()} AS closed
    FROM agenda a
    JOIN clinic k ON k.id = a.clinic_id
    JOIN ({CLOSURE_IN_FORCE} AND {MAY_REACH}) c ON {REACHES}
    WHERE a.clinic_id = ANY(:clinic_ids)
    GROUP BY a.id
"""
"""Rows (agenda_id, closed tsmultirange in local time), for agendas of ``:clinic_ids`` that any closure reaches between
``:first_day`` and ``:last_day``."""
