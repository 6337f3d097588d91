"""The calendar's invariants, each looked at again with a query of its own that shares nothing with generation but the
definition of what is closed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes.plans import ITALY
from polydesk_dagster.clinic.calendar.effective import CLOSED_HOURS, slot_span
from polydesk_dagster.clinic.calendar.orphans import SAID, SEATED


@dataclass(frozen=True, slots=True)
class Finding:
    """How many places break an invariant, and a few of them by clinic, agenda and local time."""

    count: int
    examples: str


def _finding(connection: sa.Connection, query: str, values: dict[str, object]) -> Finding:
    count, examples = connection.execute(
        sa.text(f"""
            WITH broken AS ({query})
            SELECT (SELECT count(*) FROM broken),
                   (SELECT string_agg(place, '; ') FROM (SELECT place FROM broken ORDER BY place LIMIT 5) p)"""),
        values,
    ).one()
    return Finding(int(count), examples or "")


PLACE = """c.code || ' ' || a.name || ' ' || to_char(s.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI')"""


def free_on_closure(connection: sa.Connection, as_of: datetime) -> Finding:
    """Free slots ahead of ``as_of`` that an effective closure covers."""
    clinics = connection.scalars(sa.text("SELECT id FROM clinic WHERE active ORDER BY id")).all()
    return _finding(
        connection,
        f"""
        SELECT {PLACE} AS place
        FROM ({CLOSED_HOURS}) h JOIN slot s ON s.agenda_id = h.agenda_id
        JOIN agenda a ON a.id = s.agenda_id AND a.auto_generate JOIN clinic c ON c.id = a.clinic_id
        WHERE s.state = 'free' AND NOT s.manual AND s.starts_at > :as_of
          AND h.closed && {slot_span("s", "c.time_zone")}""",
        {
            "clinic_ids": clinics,
            "as_of": as_of,
            "first_day": as_of.date() - timedelta(days=1),
            "last_day": as_of.date() + timedelta(days=740),
        },
    )


def overlapping(connection: sa.Connection, as_of: datetime) -> Finding:
    """Slots ahead of ``as_of`` whose successor in the same agenda starts before they end."""
    return _finding(
        connection,
        f"""
        SELECT {PLACE} AS place
        FROM (SELECT agenda_id, starts_at, ends_at,
                     lead(starts_at) OVER (PARTITION BY agenda_id ORDER BY starts_at) AS following
              FROM slot WHERE state <> 'retired' AND starts_at > :as_of) s
        JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
        WHERE s.following < s.ends_at""",
        {"as_of": as_of},
    )


def bookings_without_slot(connection: sa.Connection, as_of: datetime) -> Finding:
    """Standing appointments ahead of ``as_of`` that lack a seat for all or a part of their time, or whose slot was
    retired under them."""
    return _finding(
        connection,
        f"""
        SELECT {PLACE} AS place
        FROM appointment p JOIN slot s ON s.id = p.slot_id
        JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
        LEFT JOIN (SELECT t.appointment_id, range_agg(tstzrange(n.starts_at, n.ends_at)) AS seated
                   FROM seat t JOIN slot n ON n.id = t.slot_id AND n.state <> 'retired' AND n.ends_at > :as_of
                   WHERE t.appointment_id IS NOT NULL GROUP BY t.appointment_id) k ON k.appointment_id = p.id
        WHERE p.status IN ('unverified', 'booked', 'accepted') AND p.starts_at > :as_of
          AND NOT coalesce(k.seated @> tstzrange(p.starts_at, p.ends_at), false)""",
        {"as_of": as_of},
    )


def open_orphans(connection: sa.Connection, as_of: datetime) -> Finding:
    """Booked slots ahead of ``as_of`` that the rules no longer produce and nobody has taken in hand."""
    return _finding(
        connection,
        f"""
        SELECT {PLACE} AS place
        FROM orphan o JOIN slot s ON s.id = o.slot_id AND s.starts_at > :as_of {SEATED}
        JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
        WHERE o.resolved_at IS NULL AND {SAID} = 'open'""",
        {"as_of": as_of},
    )


PUBLISHED_BY = 10
"""The month from which the central server should have next year's closures."""


def next_year_unpublished(connection: sa.Connection, as_of: datetime) -> Finding:
    """From October on: next year, where none of its central closures is known here."""
    today = as_of.astimezone(ITALY).date()
    if today.month < PUBLISHED_BY:
        return Finding(0, "")
    known = connection.scalar(
        sa.text("SELECT EXISTS (SELECT FROM closure WHERE source = 'central' AND source_year = :year)"),
        {"year": today.year + 1},
    )
    return Finding(0, "") if known else Finding(1, str(today.year + 1))


def agendas_behind(connection: sa.Connection, as_of: datetime) -> Finding:
    """Active automatic agendas that the last generation left as they were, or has not reached for two days."""
    return _finding(
        connection,
        """
        SELECT c.code || ' ' || a.name AS place
        FROM agenda a JOIN clinic c ON c.id = a.clinic_id AND c.active
        LEFT JOIN agenda_state g ON g.agenda_id = a.id
        WHERE a.active AND a.auto_generate
          AND (g.outcome IS DISTINCT FROM 'ok'
               OR g.derived_through IS NULL
               OR g.derived_through < CAST(:as_of AS date) + coalesce(a.horizon_days, c.horizon_days) - 3)""",
        {"as_of": as_of},
    )
