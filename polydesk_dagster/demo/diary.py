"""What fills the demo's agendas: years of appointments, what is booked ahead, and the holds of this minute.

Written as COPY text straight away: this is where the chain has its rows by the hundred thousand.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field
from datetime import date

from polydesk_dagster.demo.agendas import BOOKABLE_DAYS, Agenda, Session
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.people import People
from polydesk_dagster.demo.practice import Practice

SLOT_DAYS = 60
"""How long a past slot is kept."""

MANUAL_DAYS = 30
"""How far ahead the desk has laid out by hand the agendas that are not generated."""

_NULL = r"\N"
_DAY = 24 * 60
_GAP = 45
"""Minutes between the starts of two appointments of one person on one day."""

_HOLD = 10
"""Minutes for which a slot is held."""

_VERIFICATION = 120
"""Minutes in which an online booking must be verified."""

_TABLE = 4096  # a power of two: chances are looked up in tables of this many equally likely outcomes


def _lead_times() -> list[int]:
    """Days between booking and appointment: most two or three weeks, a few the same day."""
    return [min(BOOKABLE_DAYS, int(-18 * math.log(1 - (at + 0.5) / _TABLE))) for at in range(_TABLE)]


_LEADS = _lead_times()
_CHANNELS = ("online",) * 34 + ("desk",) * 38 + ("phone",) * 25 + ("studiolab",) * 3


@dataclass(slots=True)
class _Tally:
    """What the agendas of one clinic share: how many bookings and free slots were seen, and who comes when."""

    booked: int = 0
    free: int = 0
    coming: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    """By day, the starts of each patient who is booked on it."""


def fill(draft: Draft, practice: Practice, people: People, seed: int) -> None:
    """Write slots, appointments, packages, holds and seats of every agenda, and a handful of bookings to move."""
    tallies = {clinic.id: _Tally() for clinic in practice.clinics}
    for agenda in practice.agendas:
        _Diary(draft, people, agenda, tallies[agenda.clinic.id], seed).fill()
    doctors = [agenda for agenda in practice.agendas if agenda.specialist_id and agenda.automatic]
    for agenda in (doctors[0], doctors[-1]):
        _leave(draft, agenda)
    late = doctors[1]
    _Diary(draft, people, late, tallies[late.clinic.id], seed + 1).outside_the_rules()


def _leave(draft: Draft, agenda: Agenda) -> None:
    """A day off approved after patients had been booked on it."""
    session = agenda.sessions[-1]
    index = _next(session, draft.line.today + 9)
    while index in agenda.clinic.closed:
        index = _next(session, index + 1)
    draft.sheets["closure"].add(
        layer="agenda",
        effect="closed",
        name="Congresso",
        date_from=draft.line.days[index],
        date_to=draft.line.days[index],
        yearly=False,
        agenda_id=agenda.id,
        updated_at=draft.line.ago(_DAY),
    )


def _next(session: Session, earliest: int) -> int:
    """The session's first day from ``earliest`` on."""
    step = 7 * session.every_weeks
    return session.first + -(-(max(earliest, session.first) - session.first) // step) * step


class _Diary:
    """One agenda's pages."""

    def __init__(self, draft: Draft, people: People, agenda: Agenda, tally: _Tally, seed: int) -> None:
        self.line = draft.line
        self.sheets = draft.sheets
        self.agenda = agenda
        self.clinic = agenda.clinic
        self.tally = tally
        self.died = people.died
        self.patients = people.by_clinic[agenda.clinic.id].of(agenda.patients)
        self.rng = random.Random(f"{seed}/{agenda.id}")  # noqa: S311 - repeatable on purpose
        self.new_year = self.line.index(date(self.line.days[self.line.today].year, 1, 1))
        self.services = self._by_demand()
        self.head = f"{self.clinic.id}\t{agenda.id}"
        self.specialist = str(agenda.specialist_id or _NULL)
        self.cycles: dict[int, tuple[int, int, int, int]] = {}
        """By start of the session's slot: the next visit of a package, its patient, the package, visits left."""

    def _by_demand(self) -> list[int]:
        """The agenda's services, each as often as it is asked for."""
        offered = self.agenda.services
        return [service for rank, service in enumerate(offered) for _ in range(12 // (rank + 1))]

    def fill(self) -> None:
        last = self.line.today + (BOOKABLE_DAYS if self.agenda.automatic else MANUAL_DAYS)
        length = self.agenda.slot_minutes
        for session in self.agenda.sessions:
            starts = range(session.start, session.end - length + 1, length)
            for index in range(session.first, min(session.last, last) + 1, 7 * session.every_weeks):
                shut = () if self.agenda.always_open else self.clinic.closed.get(index, ())
                for start in starts:
                    if any(start < to and from_ < start + length for from_, to in shut):
                        continue
                    if self.line.passed(index, start):
                        self._past(index, start)
                    else:
                        self._ahead(index, start)

    def outside_the_rules(self) -> None:
        """Two bookings at seven in the morning, from before the hours were changed."""
        for index in (_next(session, self.line.today + 6) for session in self.agenda.sessions[-2:]):
            slot = self._slot(index, 7 * 60)
            self._seat(slot, 1, appointment=self._booked(index, 7 * 60, slot))

    def _slot(self, index: int, start: int) -> int:
        agenda = self.agenda
        return self.sheets["slot"].add_text(
            f"{agenda.id}\t{self.line.at(index, start)}\t{self.line.at(index, start + agenda.slot_minutes)}\t"
            f"{self.line.dates[index]}\t{agenda.capacity}\t{not agenda.automatic}"
        )

    def _seat(
        self, slot: int, unit: int, *, appointment: int | None = None, hold: int | None = None, until: str = _NULL
    ) -> None:
        self.sheets["seat"].add_text(f"{slot}\t{unit}\t{hold or _NULL}\t{appointment or _NULL}\t{until}")

    def _past(self, index: int, start: int) -> None:
        slot = str(self._slot(index, start)) if index >= self.line.today - SLOT_DAYS else _NULL
        for _ in range(self.agenda.capacity):
            chance = self.rng.random()
            if chance < self.agenda.occupancy:
                self._visited(index, start, slot)
            elif chance > 0.94:
                self._called_off(index, start, slot)

    def _visited(self, index: int, start: int, slot: str) -> None:
        """An appointment that came: nearly always with its patient."""
        line, rng = self.line, self.rng
        booked, minute = self._booking_time(index)
        patient, package, service = self._who(index, start, booked)
        channel = _CHANNELS[int(rng.random() * 100)]
        created = line.at(booked, minute)
        agreement, price = self._price(service, patient, booked)
        moved = 2 if rng.random() < 0.04 else 1
        verified = line.at(booked, minute + 6) if channel == "online" else _NULL
        ends = line.at(index, start + self.agenda.slot_minutes)
        if rng.random() < 0.94:
            status = "completed"
            paid = ends if rng.random() < 0.92 else _NULL
            accepted = f"{line.at(index, start - 8)}\tSportello {patient % 3 + 1}"
        else:
            status, paid, accepted = "no_show", _NULL, f"{_NULL}\t{_NULL}"
        self.sheets["appointment"].add_text(
            f"{self.head}\t{slot}\t{service}\t{self.specialist}\t{patient}\t{package}\t{agreement}\t"
            f"{line.at(index, start)}\t{ends}\t{moved}\t{status}\t{channel}\t{price}\t{_NULL}\t{_NULL}\t{_NULL}\t"
            f"{verified}\t{_NULL}\t{paid}\t{accepted}\t{_NULL}\t{_NULL}\t{created}\t{ends}"
        )

    def _called_off(self, index: int, start: int, slot: str) -> None:
        """An appointment that its patient cancelled between booking and the day before (or yesterday)."""
        line, rng = self.line, self.rng
        booked, minute = self._booking_time(index)
        last = min(index, line.today) - 1
        if booked > last:
            return
        patient, _, service = self._who(index, start, booked, start_package=False)
        agreement, price = self._price(service, patient, booked)
        cancelled = line.at(rng.randint(booked, last), 21 * 60)
        self.sheets["appointment"].add_text(
            f"{self.head}\t{slot}\t{service}\t{self.specialist}\t{patient}\t{_NULL}\t{agreement}\t"
            f"{line.at(index, start)}\t{line.at(index, start + self.agenda.slot_minutes)}\t1\tcancelled\tdesk\t{price}"
            f"\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\t{cancelled}\t{_NULL}\t"
            f"{line.at(booked, minute)}\t{cancelled}"
        )

    def _ahead(self, index: int, start: int) -> None:
        agenda, days = self.agenda, index - self.line.today
        wanted = agenda.occupancy * math.exp(-days / 28)
        slot = 0 if agenda.automatic else self._slot(index, start)
        unit = 0
        for _ in range(agenda.capacity):
            chance = self.rng.random()
            due = self.cycles.get(start, (_DAY * 365,))[0] <= index
            if chance < wanted or due:
                slot = slot or self._slot(index, start)
                self.tally.booked += 1
                appointment = self._online(index, start, slot) or self._booked(index, start, slot)
                if appointment:
                    unit += 1
                    self._seat(slot, unit, appointment=appointment)
            elif chance > 1 - wanted * 0.06:
                slot = slot or self._slot(index, start)
                self._called_off(index, start, str(slot))
            elif agenda.online and days > 0:
                self.tally.free += 1
                state = {5: "live", 25: "stale"}.get(self.tally.free % 250)
                state = "confirming" if self.tally.free % 1000 == 45 else state
                if state:
                    slot = slot or self._slot(index, start)
                    unit += 1
                    self._held(slot, unit, state)

    def _online(self, index: int, start: int, slot: int) -> int | None:
        """Now and then a booking from the web that nobody has verified: in time, too late, or already expired.

        Returns None where this is an ordinary booking, 0 where its seat is free again.
        """
        line, rng = self.line, self.rng
        at = self.tally.booked % 450  # few are late: where most are, the desk is told to look at the gateway first
        kind = "stale" if at == 57 else {7: "live", 107: "expired"}.get(at % 150)
        if kind is None or index < line.today + 2 or start in self.cycles:
            return None
        minutes = {"live": (5, 110), "stale": (180, 2 * _DAY), "expired": (3 * _DAY, 12 * _DAY)}[kind]
        ago = rng.randrange(*minutes)
        created, expires = line.ago(ago), line.ago(ago - _VERIFICATION)
        by_staff = line.ago(ago - 90) if kind == "stale" and rng.random() < 0.3 else _NULL
        expired = line.ago(ago - _VERIFICATION - 20) if kind == "expired" else _NULL
        service = rng.choice(self.services)
        guest = self.sheets["appointment"].rows + 1
        appointment = self.sheets["appointment"].add_text(
            f"{self.head}\t{slot}\t{service}\t{self.specialist}\t{_NULL}\t{_NULL}\t{_NULL}\t{line.at(index, start)}\t"
            f"{line.at(index, start + self.agenda.slot_minutes)}\t1\t{'expired' if expired != _NULL else 'unverified'}"
            f"\tonline\t{self.clinic.quotes[service, 0][1]}\tospite.{guest}@example.org\t+39398{guest % 10**7:07d}\t"
            f"{expires}\t{_NULL}\t{by_staff}\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\t{expired}\t{created}\t"
            f"{created if expired == _NULL else expired}"
        )
        return 0 if kind == "expired" else appointment

    def _booked(self, index: int, start: int, slot: int) -> int:
        line, rng = self.line, self.rng
        booked, minute = self._booking_time(index)
        patient, package, service = self._who(index, start, booked)
        agreement, price = self._price(service, patient, booked)
        channel = _CHANNELS[int(rng.random() * 100)]
        created = line.at(booked, minute)
        verified = line.at(booked, minute + 6) if channel == "online" else _NULL
        status, accepted = "booked", f"{_NULL}\t{_NULL}"
        if index == line.today and start < line.minute + 20:
            status, accepted = "accepted", f"{line.ago(3)}\tSportello {patient % 3 + 1}"
        self.tally.coming.setdefault(index, {}).setdefault(patient, []).append(start)
        appointment = self.sheets["appointment"].add_text(
            f"{self.head}\t{slot}\t{service}\t{self.specialist}\t{patient}\t{package}\t{agreement}\t"
            f"{line.at(index, start)}\t{line.at(index, start + self.agenda.slot_minutes)}\t"
            f"{2 if rng.random() < 0.04 else 1}\t{status}\t{channel}\t{price}\t{_NULL}\t{_NULL}\t{_NULL}\t{verified}\t"
            f"{_NULL}\t{_NULL}\t{accepted}\t{_NULL}\t{_NULL}\t{created}\t{created}"
        )
        if channel == "online" and booked > line.today - 14:
            self._hold_of(slot, appointment, booked, minute)
        return appointment

    def _booking_time(self, index: int) -> tuple[int, int]:
        """Day and minute of booking; before today for what is still to come."""
        lead = _LEADS[int(self.rng.random() * _TABLE)]
        booked = max(0, min(index - lead, self.line.today - 1))
        if booked >= index:
            return booked, 6 * 60 + int(self.rng.random() * 60)
        return booked, 8 * 60 + int(self.rng.random() * 12 * 60)

    def _who(self, index: int, start: int, booked: int, *, start_package: bool = True) -> tuple[int, str, int]:
        """Patient, package (or null) and service of an appointment."""
        rng = self.rng
        if start_package and self.agenda.cycle:
            name, visits, weeks = self.agenda.cycle
            if start in self.cycles and self.cycles[start][0] <= index:
                _, patient, package, left = self.cycles[start]
                if left > 1:
                    self.cycles[start] = (index + 7 * weeks, patient, package, left - 1)
                else:
                    del self.cycles[start]
                return patient, str(package), self.agenda.services[0]
            if start not in self.cycles and rng.random() < 0.05:
                patient = self._patient(index, start, booked)
                package = self.sheets["package"].add_text(
                    f"{self.clinic.id}\t{patient}\t{name}\t{self.line.at(booked, 7 * 60 + 59)}"
                )
                self.cycles[start] = (index + 7 * weeks, patient, package, visits - 1)
                return patient, str(package), self.agenda.services[0]
        service = self.services[int(rng.random() * len(self.services))]
        if index < self.line.today - SLOT_DAYS and rng.random() < 0.01:
            service = tuple(self.clinic.withdrawn)[int(rng.random() * len(self.clinic.withdrawn))]
        return self._patient(index, start, booked), _NULL, service

    def _patient(self, index: int, start: int, booked: int) -> int:
        """Somebody alive when booking; for what is to come, not in two places at once, and some come twice a day."""
        rng, today = self.rng, self.line.today
        coming = self.tally.coming.get(index, {}) if index >= today else {}
        if today < index <= today + 2 and coming and rng.random() < 0.06:
            patient = rng.choice(list(coming))
            if self._fits(coming, patient, start):
                return patient
        patient = 0
        alive_until = index if index < today else booked  # some have died since they booked
        for _ in range(20):
            patient = self.patients[int(rng.random() * rng.random() * len(self.patients))]
            if self._fits(coming, patient, start) and self.died.get(patient, alive_until + 1) > alive_until:
                break
        return patient

    @staticmethod
    def _fits(coming: dict[int, list[int]], patient: int, start: int) -> bool:
        return all(abs(start - other) >= _GAP for other in coming.get(patient, ()))

    def _price(self, service: int, patient: int, booked: int) -> tuple[str, str]:
        """Agreement (or null) and what the patient was told to pay when booking."""
        quotes = self.clinic.quotes
        agreement = 0
        if patient % 4 == 0:
            agreement = self.clinic.agreements[patient // 4 % len(self.clinic.agreements)]
        quoted = quotes.get((service, agreement))
        if quoted is None:
            agreement, quoted = 0, quotes.get((service, 0), ("65", "65"))
        return str(agreement or _NULL), quoted[booked >= self.new_year]

    def _held(self, slot: int, unit: int, state: str) -> None:
        """A hold of this minute, or one whose time is over and that nobody has swept yet."""
        line = self.line
        ago = self.rng.randrange(15, 600) if state == "stale" else self.rng.randrange(1, _HOLD - 1)
        created, expires = line.ago(ago), line.ago(ago - _HOLD)
        confirming = line.ago(0.5) if state == "confirming" else _NULL
        hold = self._hold(
            f"{slot}", "confirming" if state == "confirming" else "live", f"{created}\t{expires}\t{created}",
            f"{confirming}\t{_NULL}\t{_NULL}",
        )  # fmt: skip
        self._seat(slot, unit, hold=hold, until=expires)

    def _hold_of(self, slot: int, appointment: int, booked: int, minute: int) -> None:
        """The hold that became this booking, and for some an earlier visitor's who let the time pass."""
        line = self.line
        ended = line.at(booked, minute)
        times = f"{line.at(booked, minute - 4)}\t{line.at(booked, minute + 6)}\t{line.at(booked, minute - 1)}"
        self._hold(f"{slot}", "confirmed", times, f"{_NULL}\t{ended}\t{appointment}")
        if appointment % 3 == 0:
            earlier = minute - 90
            times = f"{line.at(booked, earlier)}\t{line.at(booked, earlier + _HOLD)}\t{line.at(booked, earlier)}"
            state, swept = ("released", earlier + 3) if appointment % 2 else ("expired", earlier + _HOLD + 4)
            self._hold(f"{slot}", state, times, f"{_NULL}\t{line.at(booked, swept)}\t{_NULL}")

    def _hold(self, slot: str, state: str, times: str, end: str) -> int:
        number = self.sheets["hold"].rows + 1
        token, visitor = (
            hashlib.sha256(f"{what}/{self.clinic.code}/{number}".encode()).hexdigest() for what in ("token", "visitor")
        )
        return self.sheets["hold"].add_text(
            f"{self.clinic.id}\t{slot}\t\\\\x{token}\t\\\\x{visitor}\t{state}\t{times}\t{end}"
        )
