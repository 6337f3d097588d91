"""The demo's agendas: of doctors, of instruments and of the desk, with their hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from polydesk_dagster.demo.clinics import Clinic, external, opened
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.services import (
    DESK_SERVICES,
    MACHINES,
    Offer,
)
from polydesk_dagster.demo.staff import Doctor
from polydesk_dagster.demo.time_line import clock

BOOKABLE_DAYS = 75
"""How far ahead of ``as_of`` the demo's patients have booked; shorter than every horizon."""


@dataclass(frozen=True, slots=True)
class Session:
    """One rule of an agenda, as minutes of the day and days of the time line (inclusive)."""

    weekday: int
    start: int
    end: int
    first: int
    last: int
    every_weeks: int = 1


@dataclass(frozen=True, slots=True)
class Agenda:
    id: int
    clinic: Clinic
    specialist_id: int | None
    services: tuple[int, ...]
    patients: str | None
    slot_minutes: int
    capacity: int
    automatic: bool
    online: bool
    occupancy: float
    sessions: tuple[Session, ...]
    cycle: tuple[str, int, int] | None
    """A package that its patients often take: name, number of sessions, weeks between two."""
    always_open: bool


def _agenda(
    draft: Draft,
    clinic: Clinic,
    *,
    name: str,
    location: int,
    offers: Sequence[Offer],
    sessions: Sequence[Session],
    slot_minutes: int,
    occupancy: float,
    doctor: Doctor | None = None,
    service: int | None = None,
    resource: int | None = None,
    capacity: int = 1,
    automatic: bool = True,
    online: bool = True,
    cycle: tuple[str, int, int] | None = None,
    always_open: bool = False,
) -> Agenda:
    leaves = doctor.leaves if doctor else None
    id_ = draft.sheets["agenda"].add(
        clinic_id=clinic.id,
        location_id=location,
        specialist_id=doctor.id if doctor else None,
        service_id=service,
        resource_id=resource,
        external_id=external("AGE", clinic, draft.sheets["agenda"].rows + 1),
        name=name,
        auto_generate=automatic,
        slot_minutes=slot_minutes,
        capacity=capacity,
        min_notice_minutes=120 if online else 0,
        online=online,
        valid_to=leaves,
        updated_at=opened(draft),
    )
    services = tuple(clinic.services[offer.code] for offer in offers)
    for offered in services:
        draft.sheets["agenda_service"].add(clinic_id=clinic.id, agenda_id=id_, service_id=offered)
    if leaves:
        last = draft.line.index(leaves)
        sessions = [replace(session, last=min(session.last, last)) for session in sessions]
    for session in sessions:
        _rule(draft, id_, session)
    return Agenda(
        id_,
        clinic,
        doctor.id if doctor else None,
        services,
        doctor.branch.patients if doctor else None,
        slot_minutes,
        capacity,
        automatic,
        online,
        occupancy,
        tuple(sessions),
        cycle,
        always_open,
    )


def _rule(draft: Draft, agenda: int, session: Session) -> None:
    """The session as a rule that begins on its own weekday, so that every other week is the same from either end."""
    end = session.end % (24 * 60)
    draft.sheets["agenda_rule"].add(
        agenda_id=agenda,
        weekday=session.weekday,
        starts_at=clock(session.start),
        ends_at=clock(end),
        crosses_midnight=end != session.end,
        every_weeks=session.every_weeks,
        valid_from=draft.line.days[session.first],
        valid_to=None if session.last >= len(draft.line.days) - 1 else draft.line.days[session.last],
        updated_at=opened(draft),
    )


def _sessions(draft: Draft, weekday: int, start: int, end: int, *, every_weeks: int = 1, from_day: int = 0) -> Session:
    first = from_day + (weekday - draft.line.weekdays[from_day]) % 7
    return Session(weekday, start, end, first, len(draft.line.days) - 1, every_weeks)


def half_days(draft: Draft) -> Iterator[tuple[int, bool]]:
    """A doctor's mornings and afternoons (True) from Monday to Friday, each once."""
    halves = [(weekday, afternoon) for weekday in range(1, 6) for afternoon in (False, True)]
    draft.rng.shuffle(halves)
    return iter(halves)


def of_doctor(
    draft: Draft,
    clinic: Clinic,
    doctor: Doctor,
    half_days: Iterator[tuple[int, bool]],
    *,
    nth: int,
) -> Agenda:
    sessions = []
    for weekday, afternoon in islice(half_days, draft.rng.choice((1, 2, 2))):
        start = draft.rng.choice((14 * 60, 14 * 60 + 30, 15 * 60) if afternoon else (8 * 60 + 30, 9 * 60))
        length = draft.rng.choice((180, 210, 210, 240, 250))  # the last leaves minutes that no slot fits in
        every = 2 if draft.rng.random() < 0.08 else 1
        session = _sessions(draft, weekday, start, start + length, every_weeks=every)
        if draft.rng.random() < 0.1:  # the hours were others until a while ago
            changed = draft.line.today - draft.rng.randrange(20, 100)
            sessions.append(replace(session, start=start - 30, end=start + length - 30, last=changed - 1))
            session = _sessions(draft, weekday, start, start + length, every_weeks=every, from_day=max(changed, 0))
        sessions.append(session)
    location = clinic.locations[nth % len(clinic.locations)]
    return _agenda(
        draft,
        clinic,
        name=f"{doctor.branch.name} – {doctor.title} {doctor.last_name} ({nth + 1})",
        location=location,
        offers=doctor.branch.offers,
        sessions=sessions,
        slot_minutes=doctor.branch.slot_minutes,
        occupancy=draft.rng.uniform(0.45, 0.9),
        doctor=doctor,
        automatic=nth % 10 != 7,
        online=nth % 6 != 5,
        cycle=_CYCLES.get(doctor.branch.name),
    )


_CYCLES = {
    "Fisiatria e riabilitazione": ("Ciclo di sei sedute di rieducazione motoria", 6, 1),
    "Ginecologia e ostetricia": ("Percorso gravidanza", 5, 4),
    "Psichiatria e psicologia": ("Percorso di dieci colloqui", 10, 2),
}


def of_machine(draft: Draft, clinic: Clinic, at: int) -> Agenda:
    machine = MACHINES[at]
    location = clinic.locations[0]
    resource = draft.sheets["resource"].add(
        clinic_id=clinic.id, location_id=location, kind="instrument", name=machine.name
    )
    every_day = at == 0
    if every_day:
        sessions = [_sessions(draft, weekday, 9 * 60, 12 * 60) for weekday in range(1, 8)]
    else:
        sessions = [_sessions(draft, weekday, 8 * 60 + 30, 12 * 60 + 30) for weekday in range(1, 6)]
        sessions += [_sessions(draft, weekday, 14 * 60, 18 * 60) for weekday in (2, 4)]
    agenda = _agenda(
        draft,
        clinic,
        name=machine.name,
        location=location,
        offers=machine.offers,
        sessions=sessions,
        slot_minutes=machine.slot_minutes,
        occupancy=0.55 if every_day else 0.8,
        resource=resource,
        always_open=every_day,
    )
    if every_day:
        _extraordinary_openings(draft, agenda)
    if at == 1 and clinic.id == 1:
        night = _sessions(draft, 6, 22 * 60, 24 * 60 + 4 * 60, from_day=draft.line.today - 30)
        _rule(draft, agenda.id, night)  # bookable through the hour that the clocks change; nobody has, yet
    return agenda


def _extraordinary_openings(draft: Draft, agenda: Agenda) -> None:
    for index, hours in sorted(agenda.clinic.closed.items()):
        shuts = any(start < session.end for start, _ in hours for session in agenda.sessions)
        if shuts and draft.line.today <= index <= draft.line.today + BOOKABLE_DAYS:
            draft.sheets["closure"].add(
                layer="agenda",
                effect="open",
                name="Apertura straordinaria",
                date_from=draft.line.days[index],
                date_to=draft.line.days[index],
                yearly=False,
                agenda_id=agenda.id,
                updated_at=opened(draft),
            )


def of_desk(draft: Draft, clinic: Clinic, at: int) -> Agenda:
    offer = DESK_SERVICES[at]
    blood = at == 0
    weekdays = (1, 3, 5, 6) if blood else (2, 4)
    hours = (7 * 60 + 30, 9 * 60 + 30) if blood else (9 * 60, 12 * 60)
    return _agenda(
        draft,
        clinic,
        name=offer.name,
        location=clinic.locations[-1],
        offers=[offer],
        sessions=[_sessions(draft, weekday, *hours) for weekday in weekdays],
        slot_minutes=offer.minutes,
        occupancy=0.5,
        service=clinic.services[offer.code],
        capacity=3 if blood else 1,
    )
