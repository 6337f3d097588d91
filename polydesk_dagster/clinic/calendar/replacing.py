"""Where bookings that have lost their slot could go: a new place for each, worked out for all of them together.

The same doctor before the same service, then the time nearest to the old one; as many slots as the service lasts; never
two bookings on one place, nor a doctor, a patient or what a service needs in two at once; never where the patient is
elsewhere, never what she has declined, and never so soon that she could not come. The same records always give the same
places.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

COME_FROM = timedelta(days=1)
"""A patient who is told of a new place must be reached first: none is proposed before this has gone by."""

MOST = 60
"""Places that are looked at for one booking, the best ones: more than a day of one doctor."""


@dataclass(frozen=True, slots=True)
class Place:
    slot_id: int
    starts_at: datetime
    agenda_id: int
    agenda: str
    same_doctor: bool
    until: datetime | None = None
    """Until when it is kept for the patient; None: it is only free now."""


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


# Bookings of the orphans after a given one, each with the place that is kept for it, else with its best ones in order.
# Those are tried one after the other from the best on: the inner query is kept whole, so that few are.
_PLACES = """
    SELECT p.id AS appointment_id, c.code AS clinic, c.time_zone, g.name AS agenda, v.name AS service, p.starts_at,
           coalesce(x.last_name || ' ' || x.first_name, p.contact_email, p.contact_phone, '') AS patient,
           coalesce(x.mobile, p.contact_phone) AS phone, p.patient_id, place.*
    FROM (SELECT DISTINCT t.appointment_id FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
          WHERE o.id > :after AND o.resolved_at IS NULL AND t.appointment_id IS NOT NULL
            AND (CAST(:only AS bigint[]) IS NULL OR t.appointment_id = ANY(:only))) lost
    JOIN appointment p ON p.id = lost.appointment_id
    JOIN agenda g ON g.id = p.agenda_id JOIN clinic c ON c.id = p.clinic_id JOIN service v ON v.id = p.service_id
    LEFT JOIN patient x ON x.id = p.patient_id
    LEFT JOIN LATERAL (
        SELECT h.slot_id, s.starts_at AS place_at, h.ends_at AS place_ends, a.name AS place_agenda, a.id AS agenda_id,
               coalesce(a.specialist_id = p.specialist_id, false) AS same_doctor, CAST(NULL AS bigint) AS doctor,
               false AS takes_more, CAST(NULL AS bigint[]) AS slots, CAST(NULL AS bigint[]) AS room,
               h.expires_at AS until
        FROM hold h JOIN slot s ON s.id = h.slot_id JOIN agenda a ON a.id = s.agenda_id
        WHERE h.offered_to = p.id AND h.ended_at IS NULL AND h.expires_at > :as_of
        UNION ALL
        (SELECT b.slot_id, b.starts_at, run.ends_at, b.agenda, b.agenda_id, b.same_doctor, doctor_of(b.specialist_id),
                takes_more(b.agenda_id, p.service_id), run.slots, run.room, NULL
         FROM (
            SELECT s.id AS slot_id, s.starts_at, a.id AS agenda_id, a.name AS agenda, a.specialist_id,
                   coalesce(a.specialist_id = p.specialist_id, false) AS same_doctor
            FROM agenda a JOIN slot s ON s.agenda_id = a.id
            WHERE a.clinic_id = p.clinic_id AND a.active AND s.state = 'free'
              AND s.starts_at > CAST(:as_of AS timestamptz)
                                + greatest(:come_from, a.min_notice_minutes * interval '1 minute')
              AND (a.service_id = p.service_id
                   OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = a.id AND o.service_id = p.service_id))
            ORDER BY same_doctor DESC, abs(extract(epoch FROM s.starts_at - p.starts_at)), s.starts_at, s.id
            OFFSET 0) b
         CROSS JOIN LATERAL (
            SELECT max(s.ends_at) AS ends_at, array_agg(s.id) AS slots,
                   array_agg(s.capacity - (SELECT count(*) FROM seat t WHERE t.slot_id = s.id
                                           AND coalesce(t.held_until > :as_of, true))) AS room
            FROM slot s
            WHERE s.agenda_id = b.agenda_id AND s.starts_at >= b.starts_at AND s.state <> 'retired'
              AND s.starts_at < b.starts_at + v.duration_minutes * interval '1 minute') run
         WHERE can_be_placed(b.agenda_id, p.service_id, b.starts_at,
                             b.starts_at + v.duration_minutes * interval '1 minute', :as_of)
           AND NOT EXISTS (SELECT FROM appointment q
                           WHERE q.patient_id = p.patient_id AND q.id <> p.id AND q.starts_at < run.ends_at
                             AND q.ends_at > b.starts_at AND q.status IN ('unverified', 'booked', 'accepted'))
           AND NOT EXISTS (SELECT FROM appointment q JOIN hold h ON h.offered_to = q.id AND h.ended_at IS NULL
                           JOIN slot s ON s.id = h.slot_id
                           WHERE q.patient_id = p.patient_id AND h.expires_at > :as_of AND s.starts_at < run.ends_at
                             AND h.ends_at > b.starts_at)
           AND NOT EXISTS (SELECT FROM hold h
                           WHERE h.offered_to = p.id AND h.ended_at IS NULL AND h.expires_at > :as_of)
           AND NOT EXISTS (SELECT FROM hold h
                           WHERE h.offered_to = p.id AND h.slot_id = b.slot_id AND h.state = 'expired'
                             AND h.ended_at < h.expires_at)
         LIMIT :most)) place ON true
    ORDER BY p.starts_at, p.id, place.same_doctor DESC,
             abs(extract(epoch FROM place.place_at - p.starts_at)), place.place_at, place.slot_id
"""


@dataclass(slots=True)
class _Given:
    """The places given so far, so that the next one meets none of them."""

    seats: Counter[int] = field(default_factory=Counter)
    times: defaultdict[tuple[str, int], list[tuple[datetime, datetime, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def take(self, row: sa.Row[Any]) -> bool:
        """Give the place of ``row``, unless somebody whom it needs has been given another one at that time."""
        if row.slot_id is None or row.until is not None:
            return row.slot_id is not None
        # What services share at a clinic is taken to be one of each, and a doctor may have several on one agenda.
        who = [("doctor", row.doctor, row.agenda_id), ("patient", row.patient_id, -row.appointment_id)]
        if row.takes_more:
            who.append(("needs", row.clinic, -row.appointment_id))
        if any(self.seats[slot] >= room for slot, room in zip(row.slots, row.room, strict=True)) or any(
            subject is not None and place != other and start < row.place_ends and end > row.place_at
            for kind, subject, place in who
            for start, end, other in self.times[kind, subject]
        ):
            return False
        self.seats.update(row.slots)
        for kind, subject, place in who:
            self.times[kind, subject].append((row.place_at, row.place_ends, place))
        return True


def proposals(
    connection: sa.Connection, after: int, as_of: datetime, only: Collection[int] | None = None
) -> list[Touched]:
    """The bookings on orphans newer than the orphan ``after``, soonest first, each with the place that is kept for it
    or else one of its own if any; ``only`` those of these numbers (appointments), where it is given."""
    given = {"after": after, "as_of": as_of, "come_from": COME_FROM, "most": MOST, "only": only and list(only)}
    so_far = _Given()
    found: dict[int, Touched] = {}
    for row in connection.execute(sa.text(_PLACES), given):
        known = found.get(row.appointment_id)
        if known is not None and known.place is not None:
            continue
        place = None
        if so_far.take(row):
            place = Place(row.slot_id, row.place_at, row.agenda_id, row.place_agenda, row.same_doctor, row.until)
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
