"""The demo's clinics: where they are, who works there, what they offer at what price, and when they can be booked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice

from polydesk_dagster.database.bulk import Cell
from polydesk_dagster.demo import fiscal, names
from polydesk_dagster.demo.closures import central_closures
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.places import SEATS, Seat
from polydesk_dagster.demo.services import (
    BRANCHES,
    DESK_SERVICES,
    GROUPS,
    MACHINES,
    WITHDRAWN,
    Branch,
    Offer,
    all_offers,
)
from polydesk_dagster.demo.time_line import NOON, clock

BOOKABLE_DAYS = 75
"""How far ahead of ``as_of`` the demo's patients have booked; shorter than every horizon."""

AGREEMENTS = (
    # name, kind, what of the private price is agreed, what the patient pays of it (None: all)
    ("Fondo Salute Metalmeccanici", "fund", Decimal("0.80"), Decimal(0)),
    ("Assicurazioni Adriatiche – rete diretta", "insurance", Decimal("0.85"), Decimal("0.25")),
    ("Mutua Artigiani e Commercianti", "fund", Decimal("0.90"), None),
    ("Cassa Dipendenti Trasporti", "company", Decimal("0.82"), Decimal("0.15")),
)
_PRICE_LEVEL = {"MI": Decimal("1.15"), "NA": Decimal("0.90"), "BZ": Decimal("1.10")}


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


@dataclass(frozen=True, slots=True)
class Practice:
    clinics: list[Clinic]
    agendas: list[Agenda]


def build(draft: Draft, clinics: int, specialists: int, agendas: int) -> Practice:
    """Fill the sheets of ``clinics`` clinics with ``specialists`` and ``agendas`` spread evenly over them."""
    practice = Practice([], [])
    for number in range(clinics):
        clinic = _clinic(draft, number)
        practice.clinics.append(clinic)
        _closures(draft, clinic, by_hand=number == 0)
        machines = _share(agendas // clinics, 3, len(MACHINES))
        desks = _share(agendas // clinics, 4, len(DESK_SERVICES))
        doctors = specialists // clinics
        branches = [BRANCHES[(number * 5 + at) % len(BRANCHES)] for at in range(doctors)]
        _offer(draft, clinic, branches, desks, machines)
        staff = [_specialist(draft, clinic, branch, at) for at, branch in enumerate(branches)]
        _prices(draft, clinic, staff)
        for at in range(machines):
            practice.agendas.append(_machine(draft, clinic, at))
        for at in range(desks):
            practice.agendas.append(_desk(draft, clinic, at))
        diaries = [_half_days(draft) for _ in staff]
        for at in range(agendas // clinics - machines - desks):
            doctor = at % doctors
            practice.agendas.append(_doctor(draft, clinic, staff[doctor], diaries[doctor], nth=at))
        _by_mistake(draft, clinic, practice.agendas[-1].id)
    return practice


def _share(agendas: int, in_thirty: int, most: int) -> int:
    """How many of a clinic's agendas are of a kind that makes ``in_thirty`` of thirty."""
    return min(most, max(1, agendas * in_thirty // 30))


def _clinic(draft: Draft, number: int) -> Clinic:
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
        created_at=_opened(draft),
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


def _opened(draft: Draft) -> str:
    return draft.line.ago((draft.line.today + 400) * 24 * 60)


def _closures(draft: Draft, clinic: Clinic, *, by_hand: bool) -> None:
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
        updated_at=_opened(draft),
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


def _offer(
    draft: Draft,
    clinic: Clinic,
    branches: Sequence[Branch],
    desks: int,
    machines: int,
) -> None:
    offers = [offer for branch in dict.fromkeys(branches) for offer in branch.offers]
    offers += DESK_SERVICES[:desks]
    offers += [offer for machine in MACHINES[:machines] for offer in machine.offers]
    for offer in offers:
        clinic.services[offer.code] = _service(draft, clinic, offer)
    for offer in WITHDRAWN:
        days = draft.rng.randrange(2, 20)
        clinic.withdrawn[_service(draft, clinic, offer, deleted=days)] = days
    for name, part in GROUPS.items():
        members = [clinic.services[offer.code] for offer in offers if part in offer.name]
        if members:
            group = draft.sheets["service_group"].add(clinic_id=clinic.id, name=name)
            for member in members:
                draft.sheets["service_group_member"].add(clinic_id=clinic.id, service_group_id=group, service_id=member)
    for number, location in enumerate(clinic.locations, 1):
        for room in range(1, 5):
            draft.sheets["resource"].add(
                clinic_id=clinic.id, location_id=location, kind="room", name=f"Ambulatorio {number}.{room}"
            )
    scanner = draft.sheets["resource"].add(
        clinic_id=clinic.id, location_id=clinic.locations[0], kind="instrument", name="Ecografo"
    )
    technician = draft.sheets["resource"].add(
        clinic_id=clinic.id, location_id=clinic.locations[0], kind="technician", name="Tecnico di radiologia"
    )
    for offer in offers:
        needed = [scanner] if offer.name.startswith("Eco") else []
        needed += [technician] if offer.code.startswith(("87.", "88.9", "88.2")) else []
        for resource in needed:
            draft.sheets["service_resource"].add(
                clinic_id=clinic.id, service_id=clinic.services[offer.code], resource_id=resource
            )


def _service(draft: Draft, clinic: Clinic, offer: Offer, *, deleted: int | None = None) -> int:
    preparation = offer.preparation
    return draft.sheets["service"].add(
        clinic_id=clinic.id,
        external_id=_external("SRV", clinic, draft.sheets["service"].rows + 1),
        code=offer.code,
        name=offer.name,
        duration_minutes=offer.minutes,
        price=_price(clinic, offer),
        preparation=preparation.text if preparation else None,
        preparation_lead_days=preparation.lead_days if preparation else None,
        preparation_last_hours=preparation.last_hours if preparation else None,
        sensitive=offer.sensitive,
        bookable_online=offer.online and deleted is None,
        active=deleted is None,
        deleted_at=None if deleted is None else draft.line.ago(deleted * 24 * 60),
        updated_at=_opened(draft),
    )


def _external(kind: str, clinic: Clinic, number: int) -> str:
    """An id as the clinic's studiolab gives it."""
    return f"{kind}-{clinic.code}-{number:05d}"


def _price(clinic: Clinic, offer: Offer) -> Decimal:
    return (offer.price * _PRICE_LEVEL.get(clinic.seat.code, Decimal(1))).quantize(Decimal(1))


@dataclass(frozen=True, slots=True)
class _Doctor:
    id: int
    title: str
    last_name: str
    branch: Branch
    leaves: date | None


def _specialist(draft: Draft, clinic: Clinic, branch: Branch, number: int) -> _Doctor:
    german = clinic.seat.language == "de" and draft.rng.random() < 0.6
    sex = draft.rng.choice("MF")
    last_name = draft.rng.choice(names.GERMAN_SURNAMES if german else names.SURNAMES)
    given = (names.GERMAN_MEN, names.GERMAN_WOMEN) if german else (names.MEN, names.WOMEN)
    first_name = draft.rng.choice(given[sex == "F"])
    professor = number % 7 == 3
    title = {("M", False): "Dott.", ("F", False): "Dott.ssa", ("M", True): "Prof.", ("F", True): "Prof.ssa"}[
        sex, professor
    ]
    born = date(1955, 1, 1) + timedelta(days=draft.rng.randrange(12_000))
    leaves = draft.line.days[draft.line.today] + timedelta(days=40) if number == 9 else None
    set_by_hand = number == 5
    id_ = draft.sheets["specialist"].add(
        clinic_id=clinic.id,
        external_id=_external("COL", clinic, draft.sheets["specialist"].rows + 1),
        title=title,
        last_name=last_name,
        first_name=first_name,
        fiscal_code=fiscal.encode(last_name, first_name, sex, born, clinic.seat.places[0].cadastral_code),
        specialties=(branch.name,),
        email=f"medico{draft.sheets['specialist'].rows + 1}.{clinic.code.lower()}@example.org",
        sort_name=f"{last_name} {first_name[0]}." if set_by_hand else None,
        sort_name_manual=set_by_hand,
        active=True,
        ends_on=leaves,
        updated_at=_opened(draft),
    )
    return _Doctor(id_, title, last_name, branch, leaves)


def _prices(draft: Draft, clinic: Clinic, staff: Sequence[_Doctor]) -> None:
    """Two price lists, until and since the new year; agreements on most services; professors cost more."""
    new_year = date(draft.line.days[draft.line.today].year, 1, 1)
    first = date(draft.line.days[0].year - 1, 1, 1)
    for name, kind, _, _ in AGREEMENTS:
        clinic.agreements.append(
            draft.sheets["agreement"].add(
                clinic_id=clinic.id,
                external_id=_external("CNV", clinic, draft.sheets["agreement"].rows + 1),
                name=name,
                kind=kind,
                valid_from=first,
            )
        )

    def interval(service: int, before: Decimal, now: Decimal, **more: Cell) -> None:
        for amount, start, end in ((before, first, new_year), (now, new_year, None)):
            share = more.get("share")
            draft.sheets["price"].add(
                clinic_id=clinic.id,
                service_id=service,
                agreement_id=more.get("agreement"),
                specialist_id=more.get("specialist"),
                amount=amount,
                patient_share=None if share is None else _cents(amount * Decimal(str(share))),
                valid_from=start,
                valid_to=end,
                updated_at=_opened(draft),
            )

    offers = {offer.code: offer for offer in all_offers()}
    for at, (code, service) in enumerate(clinic.services.items()):
        now = _price(clinic, offers[code])
        before = (now * Decimal("0.96")).quantize(Decimal(1))
        interval(service, before, now)
        clinic.quotes[service, 0] = str(before), str(now)
        for agreement, (_, _, level, share) in zip(clinic.agreements, AGREEMENTS, strict=True):
            if (at + agreement) % 10 < 7:
                agreed = _cents(before * level), _cents(now * level)
                interval(service, *agreed, agreement=agreement, share=share)
                clinic.quotes[service, agreement] = (
                    str(_cents(agreed[0] * (1 if share is None else share))),
                    str(_cents(agreed[1] * (1 if share is None else share))),
                )
    for doctor in staff:
        if doctor.title.startswith("Prof"):
            visit = doctor.branch.offers[0]
            now = _price(clinic, visit) + 40
            interval(clinic.services[visit.code], now - 10, now, specialist=doctor.id)


def _by_mistake(draft: Draft, clinic: Clinic, agenda: int) -> None:
    """One deleted service still has its agenda, and a price that the night after the deletion closed."""
    service, days = next(iter(clinic.withdrawn.items()))
    draft.sheets["agenda_service"].add(clinic_id=clinic.id, agenda_id=agenda, service_id=service)
    draft.sheets["price"].add(
        clinic_id=clinic.id,
        service_id=service,
        amount=_price(clinic, WITHDRAWN[0]),
        valid_from=date(draft.line.days[0].year - 1, 1, 1),
        valid_to=draft.line.days[draft.line.today - days + 1],
        updated_at=draft.line.ago((days - 1) * 24 * 60),
    )


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"))


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
    doctor: _Doctor | None = None,
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
        external_id=_external("AGE", clinic, draft.sheets["agenda"].rows + 1),
        name=name,
        auto_generate=automatic,
        slot_minutes=slot_minutes,
        capacity=capacity,
        min_notice_minutes=120 if online else 0,
        online=online,
        valid_to=leaves,
        updated_at=_opened(draft),
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
        updated_at=_opened(draft),
    )


def _sessions(draft: Draft, weekday: int, start: int, end: int, *, every_weeks: int = 1, from_day: int = 0) -> Session:
    first = from_day + (weekday - draft.line.weekdays[from_day]) % 7
    return Session(weekday, start, end, first, len(draft.line.days) - 1, every_weeks)


def _half_days(draft: Draft) -> Iterator[tuple[int, bool]]:
    """A doctor's mornings and afternoons (True) from Monday to Friday, each once."""
    halves = [(weekday, afternoon) for weekday in range(1, 6) for afternoon in (False, True)]
    draft.rng.shuffle(halves)
    return iter(halves)


def _doctor(
    draft: Draft,
    clinic: Clinic,
    doctor: _Doctor,
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


def _machine(draft: Draft, clinic: Clinic, at: int) -> Agenda:
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
                updated_at=_opened(draft),
            )


def _desk(draft: Draft, clinic: Clinic, at: int) -> Agenda:
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
