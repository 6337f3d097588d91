"""Where bookings that have lost their slot could go: a new place for each, worked out for all of them together.

The same doctor before the same service, then the time nearest to the old one; never two bookings on one place, never
where the patient is elsewhere, and never so soon that she could not come. The same records always give the same places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

COME_FROM = timedelta(days=1)
"""A patient who is told of a new place must be reached first: none is proposed before this has gone by."""

MOST = 60
"""Places that are looked at for one booking, the best ones: more than a day of one doctor."""


@dataclass(frozen=True, slots=True)
class Place:
    slot_id: int
    starts_at: datetime
    agenda: str
    same_doctor: bool


@dataclass(frozen=True, slots=True)
class Touched:
    """A booking without its slot. It names the patient and how to reach her."""

    appointment_id: int
    clinic: str
    time_zone: str
    agenda: str
    service: str
    starts_at: datetime
    patient: str
    phone: str | None
    place: Place | None


# Bookings of the orphans after a given one, each with its best places in order.
_PLACES = """
    SELECT p.id AS appointment_id, c.code AS clinic, c.time_zone, g.name AS agenda, v.name AS service, p.starts_at,
           coalesce(x.last_name || ' ' || x.first_name, p.contact_email, p.contact_phone, '') AS patient,
           coalesce(x.mobile, p.contact_phone) AS phone,
           place.slot_id, place.starts_at AS place_at, place.agenda AS place_agenda, place.same_doctor, place.room
    FROM (SELECT DISTINCT t.appointment_id FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
          WHERE o.id > :after AND o.resolved_at IS NULL AND t.appointment_id IS NOT NULL
            AND (CAST(:only AS bigint[]) IS NULL OR t.appointment_id = ANY(:only))) lost
    JOIN appointment p ON p.id = lost.appointment_id
    JOIN agenda g ON g.id = p.agenda_id JOIN clinic c ON c.id = p.clinic_id JOIN service v ON v.id = p.service_id
    LEFT JOIN patient x ON x.id = p.patient_id
    LEFT JOIN LATERAL (
        SELECT s.id AS slot_id, s.starts_at, a.name AS agenda,
               doctor.same AS same_doctor, s.capacity - taken.seats AS room
        FROM agenda a JOIN slot s ON s.agenda_id = a.id
        CROSS JOIN LATERAL (SELECT coalesce(a.specialist_id = p.specialist_id, false) AS same) doctor
        CROSS JOIN LATERAL (SELECT count(*) AS seats FROM seat t WHERE t.slot_id = s.id
                            AND (t.appointment_id IS NOT NULL OR t.held_until > :as_of)) taken
        WHERE a.clinic_id = p.clinic_id AND a.active AND s.state = 'free'
          AND s.starts_at > CAST(:as_of AS timestamptz)
                            + greatest(:come_from, a.min_notice_minutes * interval '1 minute')
          AND s.ends_at - s.starts_at >= p.ends_at - p.starts_at AND taken.seats < s.capacity
          AND (a.id = p.agenda_id OR a.service_id = p.service_id
               OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = a.id AND o.service_id = p.service_id))
          AND NOT EXISTS (SELECT FROM appointment q
                          WHERE q.patient_id = p.patient_id AND q.id <> p.id AND q.starts_at < s.ends_at
                            AND q.ends_at > s.starts_at AND q.status IN ('unverified', 'booked', 'accepted'))
        ORDER BY doctor.same DESC, abs(extract(epoch FROM s.starts_at - p.starts_at)), s.starts_at, s.id
        LIMIT :most) place ON true
    ORDER BY p.starts_at, p.id, place.same_doctor DESC,
             abs(extract(epoch FROM place.starts_at - p.starts_at)), place.starts_at, place.slot_id
"""


def proposals(
    connection: sa.Connection, after: int, as_of: datetime, only: Collection[int] | None = None
) -> list[Touched]:
    """The bookings on orphans newer than the orphan ``after``, soonest first, each with a place of its own if any;
    ``only`` those of these numbers (appointments), where it is given."""
    given = {"after": after, "as_of": as_of, "come_from": COME_FROM, "most": MOST, "only": only and list(only)}
    rows = connection.execute(sa.text(_PLACES), given)
    taken: Counter[int] = Counter()
    found: dict[int, Touched] = {}
    for row in rows:
        known = found.get(row.appointment_id)
        if known is not None and known.place is not None:
            continue
        place = None
        if row.slot_id is not None and taken[row.slot_id] < row.room:
            taken[row.slot_id] += 1
            place = Place(row.slot_id, row.place_at, row.place_agenda, row.same_doctor)
        if known is None or place is not None:
            found[row.appointment_id] = Touched(
                row.appointment_id,
                row.clinic,
                row.time_zone,
                row.agenda,
                row.service,
                row.starts_at,
                row.patient,
                row.phone,
                place,
            )
    return list(found.values())
