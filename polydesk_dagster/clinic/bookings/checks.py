"""What must hold of bookings after every run, looked at again with queries of their own."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.checks import Finding

# Of two that collide each tells where it is; what the desk has allowed with a reason is no finding.
_COLLISIONS = """
    SELECT c.code || ' ' || g.name || ' '
           || to_char(a.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI') AS place
    FROM occupancy o JOIN appointment a ON a.id = o.appointment_id
    JOIN agenda g ON g.id = a.agenda_id JOIN clinic c ON c.id = a.clinic_id
    WHERE NOT o.exclusive AND upper(o.during) > :as_of AND (o.kind <> 'patient' OR a.overlap_reason IS NULL)
      AND EXISTS (SELECT FROM meeting(o.occupant, o.during, o.within))"""

_SEATED_WITHOUT_STANDING = """
    SELECT c.code || ' ' || g.name || ' '
           || to_char(s.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI') AS place
    FROM seat t JOIN appointment a ON a.id = t.appointment_id AND a.status IN ('cancelled', 'expired')
    JOIN slot s ON s.id = t.slot_id JOIN agenda g ON g.id = s.agenda_id JOIN clinic c ON c.id = g.clinic_id
    WHERE s.starts_at > :as_of"""


def _found(connection: sa.Connection, query: str, as_of: datetime) -> Finding:
    places = list(connection.scalars(sa.text(f"{query} ORDER BY 1"), {"as_of": as_of}))
    return Finding(len(places), "; ".join(places[:5]))


def collisions(connection: sa.Connection, as_of: datetime) -> Finding:
    """Bookings ahead of ``as_of`` that came from outside, or were paid, and have a doctor, a patient, a room, an
    instrument or a technician in two places."""
    return _found(connection, _COLLISIONS, as_of)


def seats_without_booking(connection: sa.Connection, as_of: datetime) -> Finding:
    """Slots ahead of ``as_of`` kept full by a booking that no longer stands."""
    return _found(connection, _SEATED_WITHOUT_STANDING, as_of)
