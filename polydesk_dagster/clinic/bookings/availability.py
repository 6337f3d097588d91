"""Where and when a service can be booked: the first free starts, for whoever chooses a time.

What is found was free when it was looked for; only ``holds.place`` keeps it. Two tables that the schema keeps say where
to look, so that what is full is not read: ``bookable``, what each agenda gives online, and ``open_day``, where it has
room.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

MOST = 100
"""Starts of one search."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A service by its code, from ``earliest`` on and before ``before``, at most ``most`` starts."""

    service: str
    earliest: datetime
    before: datetime
    most: int = 20
    clinics: Sequence[int] | None = None
    """Ids of the clinics that whoever asks may see; None: all."""
    location_id: int | None = None
    municipality: str | None = None
    """A cadastral code, of the location's municipality or, where that is not known, of the clinic's."""
    specialist_id: int | None = None
    """A doctor, in whichever clinic she works."""
    agreement_id: int | None = None
    """Only where a price under this agreement is in force on the day."""


class Start(NamedTuple):
    """A time at which a service can be placed."""

    slot_id: int
    starts_at: datetime
    agenda_id: int
    service_id: int


_COLUMNS = ("slot", "starts_at", "agenda", "service")

# Columns are named, so that SQLAlchemy works out how to read a row once and not at every request.
_FIRST_STARTS = sa.text(f"""
    SELECT {", ".join(_COLUMNS)}
    FROM first_starts(:service, :clinics, :city, :place, :doctor, :agreement, :earliest, :before, :as_of, :most)
""").columns(*map(sa.column, _COLUMNS))


def first_starts(connection: sa.Connection, wanted: Wanted, as_of: datetime) -> tuple[Start, ...]:
    """The first starts, in order of time. A hold or an unverified booking that is over at ``as_of`` is in nobody's way;
    the agendas' booking notice is kept."""
    found = connection.execute(
        _FIRST_STARTS,
        {
            "service": wanted.service,
            "clinics": None if wanted.clinics is None else list(wanted.clinics),
            "city": wanted.municipality,
            "place": wanted.location_id,
            "doctor": wanted.specialist_id,
            "agreement": wanted.agreement_id,
            "earliest": wanted.earliest,
            "before": wanted.before,
            "as_of": as_of,
            "most": min(wanted.most, MOST),
        },
    )
    return tuple(map(Start._make, found))


@dataclass(frozen=True, slots=True)
class Place:
    """With whom and where a service is given on an agenda, by their names."""

    agenda_id: int
    service_id: int
    code: str
    service: str
    lasts: int
    """Minutes."""
    clinic_id: int
    time_zone: str
    location_id: int
    location: str
    specialist_id: int | None
    specialist: str | None


_PLACES = sa.text("""
    SELECT a.id, v.id, v.code, v.name, v.duration_minutes, c.id, c.time_zone, l.id, l.name, p.id,
           nullif(concat_ws(' ', p.title, p.first_name, p.last_name), '')
    FROM (SELECT DISTINCT * FROM unnest(CAST(:agendas AS bigint[]), CAST(:services AS bigint[])) w) w (agenda, service)
    JOIN agenda a ON a.id = w.agenda JOIN service v ON v.id = w.service JOIN clinic c ON c.id = a.clinic_id
    JOIN location l ON l.id = a.location_id LEFT JOIN specialist p ON p.id = a.specialist_id""")


def places(connection: sa.Connection, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], Place]:
    """By agenda and service, what of them people read."""
    given = {"agendas": [agenda for agenda, _ in wanted], "services": [service for _, service in wanted]}
    return {(row[0], row[1]): Place(*row) for row in connection.execute(_PLACES, given)} if wanted else {}


def tidy(connection: sa.Connection) -> int:
    """Put right what is offered by clinics that changed it, and the summaries of days that changed under two hands at
    once; how many of both there were. Searches are right without it, only slower."""
    clinics = connection.scalars(sa.text("SELECT refresh_bookable()")).one()
    days = connection.execute(
        sa.text("""
            SELECT refresh_open_days(array_agg(d.agenda_id), array_agg(d.day))
            FROM (SELECT DISTINCT agenda_id, day FROM open_day_stale) d HAVING count(*) > 0""")
    ).rowcount
    return int(clinics) + days
