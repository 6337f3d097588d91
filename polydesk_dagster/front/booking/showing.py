"""A time as the front end is shown it: found, held or booked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import availability
from polydesk_dagster.clinic.bookings.availability import Place
from polydesk_dagster.clinic.bookings.holds import hashed
from polydesk_dagster.clinic.bookings.quotes import Visit, quoted
from polydesk_dagster.front.booking.schema import Appointment, CodeableConcept, Money, Participant
from polydesk_dagster.front.wire import Reference

Status = Literal["proposed", "pending", "booked", "cancelled"]


@dataclass(frozen=True, slots=True)
class Time:
    """What is shown: a service on an agenda from an instant on."""

    status: Status
    slot_id: int | None
    agenda_id: int
    service_id: int
    starts_at: datetime
    ends_at: datetime | None = None
    """None: when the service is over."""
    price: Decimal | None = None
    """What it was quoted; None: what it costs today."""
    expires_at: datetime | None = None


def shown(connection: sa.Connection, times: Sequence[Time], agreement_id: int | None = None) -> list[Appointment]:
    """In the order of ``times``."""
    places = availability.places(connection, {(each.agenda_id, each.service_id) for each in times})
    visits = [Visit(each.service_id, each.agenda_id, each.starts_at) for each in times]
    prices = quoted(connection, visits, agreement_id)
    return [
        _appointment(each, places[each.agenda_id, each.service_id], price)
        for each, price in zip(times, prices, strict=True)
    ]


def _appointment(time: Time, place: Place, price: Decimal | None) -> Appointment:
    zone = ZoneInfo(place.time_zone)
    cost = price if time.price is None else time.price
    actors = [
        Reference(reference=f"HealthcareService/{place.service_id}", display=place.service),
        Reference(reference=f"Location/{place.location_id}", display=place.location),
    ]
    if place.specialist_id is not None:
        actors.append(Reference(reference=f"Practitioner/{place.specialist_id}", display=place.specialist))
    ends_at = time.ends_at or time.starts_at + timedelta(minutes=place.lasts)
    return Appointment(
        status=time.status,
        start=time.starts_at.astimezone(zone),
        end=ends_at.astimezone(zone),
        service_type=CodeableConcept(code=place.code, text=place.service),
        slot=None if time.slot_id is None else Reference(reference=f"Slot/{time.slot_id}"),
        participant=[Participant(actor=actor) for actor in actors],
        price=None if cost is None else Money(value=f"{cost:.2f}"),
        expires=time.expires_at.astimezone(zone) if time.expires_at else None,
    )


_ZONE = sa.text("""
    SELECT c.time_zone FROM hold h JOIN clinic c ON c.id = h.clinic_id WHERE h.token_hash = :key
    UNION ALL
    SELECT c.time_zone FROM front_booking b JOIN appointment a ON a.id = b.appointment_id
    JOIN clinic c ON c.id = a.clinic_id WHERE b.key_hash = :key
    LIMIT 1""")


def local(connection: sa.Connection, key: str, at: datetime | None) -> datetime | None:
    """An instant about what ``key`` holds or has booked, as the clinic's clocks show it."""
    if at is None:
        return None
    zone = connection.scalar(_ZONE, {"key": hashed(key)})
    return at.astimezone(ZoneInfo(zone)) if zone else at


_BOOKED = sa.text("""
    SELECT status, slot_id, agenda_id, service_id, starts_at, ends_at, quoted_price, verify_by(a) AS verify_by,
           agreement_id
    FROM appointment a WHERE id = :appointment""")

_STATUSES: dict[str, Status] = {"cancelled": "cancelled", "expired": "cancelled"}


def booked(connection: sa.Connection, appointment_id: int) -> Appointment:
    """A booking as it stands; it must be on an agenda."""
    row = connection.execute(_BOOKED, {"appointment": appointment_id}).one()
    status = _STATUSES.get(row.status, "booked" if row.verify_by is None else "pending")
    time = Time(
        status,
        row.slot_id,
        row.agenda_id,
        row.service_id,
        row.starts_at,
        row.ends_at,
        row.quoted_price,
        row.verify_by if status == "pending" else None,
    )
    return shown(connection, [time], row.agreement_id)[0]
