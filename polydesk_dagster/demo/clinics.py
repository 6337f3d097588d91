"""The demo's clinics: where they are and when they are shut."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, time

from polydesk_dagster.demo.closures import central_closures
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.places import SEATS, Seat
from polydesk_dagster.demo.time_line import NOON


@dataclass(slots=True)
class Clinic:
    id: int
    code: str
    seat: Seat
    locations: list[int] = field(default_factory=list)
    agreements: list[int] = field(default_factory=list)
    services: dict[str, int] = field(default_factory=dict)
    """Service id by code."""
    quotes: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    """By service and agreement (0: none), what the patient pays: booked before this year, and since."""
    withdrawn: dict[int, int] = field(default_factory=dict)
    """Deleted services, and how many days ago."""
    closed: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By day of the time line, the minutes between which the clinic is shut."""


def add(draft: Draft, number: int) -> Clinic:
    """The clinic with this number, and its places."""
    seat = SEATS[number % len(SEATS)]
    code = f"{seat.code}{number // len(SEATS) + 1:02d}"
    town = seat.places[0]
    id_ = draft.sheets["clinic"].add(
        code=code,
        name=f"Poliambulatorio Aurora {town.name}",
        language=seat.language,
        region=seat.region,
        municipality_code=town.cadastral_code,
        phone=f"+39{seat.area_code}5550{number:03d}",
        email=f"accettazione.{code.lower()}@example.org",
        horizon_days=90,
        created_at=draft.line.ago(0),  # from now on services are expected to start by themselves
    )
    clinic = Clinic(id_, code, seat)
    for name, address in seat.addresses:
        clinic.locations.append(
            draft.sheets["location"].add(
                clinic_id=id_,
                name=f"Sede {name}",
                address=address,
                postal_code=town.postal_code,
                municipality_code=town.cadastral_code,
                phone=f"+39{seat.area_code}5550{number:03d}",
            )
        )
    return clinic


def opened(draft: Draft) -> str:
    """The instant of everything that has always been so."""
    return draft.line.ago((draft.line.today + 400) * 24 * 60)


def closures(draft: Draft, clinic: Clinic, *, by_hand: bool) -> None:
    """What shuts the clinic: the central server's closures, still to be imported, and those typed at the desk."""
    town = clinic.seat.places[0].cadastral_code
    parts = {"day": (0, 24 * 60), "morning": (0, NOON), "afternoon": (NOON, 24 * 60)}
    for year in range(draft.line.days[0].year, draft.line.days[-1].year + 1):
        for item in central_closures(year):
            if item["municipality"] in {None, town} and item["region"] in {None, clinic.seat.region}:
                _shut(draft, clinic, date.fromisoformat(str(item["date_from"])), *parts[str(item["part"])])
        for day in range(12, 19):
            _shut(draft, clinic, date(year, 8, day), 0, 24 * 60)
    if not by_hand:
        return
    year = draft.line.days[draft.line.today].year
    draft.sheets["closure"].add(
        layer="chain",
        effect="closed",
        name="Chiusura estiva",
        date_from=date(year, 8, 12),
        date_to=date(year, 8, 18),
        yearly=True,
        updated_at=opened(draft),
    )
    works = next(
        index for index in range(draft.line.today + 18, len(draft.line.days)) if draft.line.weekdays[index] == 4
    )
    draft.sheets["closure"].add(
        layer="clinic",
        effect="closed",
        name="Manutenzione degli impianti",
        date_from=draft.line.days[works],
        date_to=draft.line.days[works],
        from_time=time(13),
        to_time=time(20),
        yearly=False,
        clinic_id=clinic.id,
        updated_at=draft.line.ago(9 * 24 * 60),
    )
    _shut(draft, clinic, draft.line.days[works], NOON, 20 * 60)


def _shut(draft: Draft, clinic: Clinic, day: date, start: int, end: int) -> None:
    clinic.closed.setdefault(draft.line.index(day), []).append((start, end))


def external(kind: str, clinic: Clinic, number: int) -> str:
    """An id as the clinic's studiolab gives it."""
    return f"{kind}-{clinic.code}-{number:05d}"
