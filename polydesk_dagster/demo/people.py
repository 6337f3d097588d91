"""The demo's patients, as a front desk knows them (families, newcomers, data entry's slips), and the users."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from polydesk_dagster.demo import fiscal, names
from polydesk_dagster.demo.clinics import Clinic
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.places import Municipality


@dataclass(slots=True)
class Patients:
    """Patient ids of one clinic, by who books what."""

    everybody: list[int] = field(default_factory=list)
    women: list[int] = field(default_factory=list)
    men: list[int] = field(default_factory=list)

    def of(self, sex: str | None) -> list[int]:
        return {"F": self.women, "M": self.men}.get(sex or "", self.everybody)


@dataclass(frozen=True, slots=True)
class People:
    by_clinic: dict[int, Patients]
    died: dict[int, int]
    """Day of the time line by patient."""


@dataclass(frozen=True, slots=True)
class _Person:
    last_name: str
    first_name: str
    sex: str
    born: date
    birth_place: str
    language: str


@dataclass(frozen=True, slots=True)
class _Guardian:
    id: int
    last_name: str
    address: str
    place: int
    mobile: str | None
    language: str


def build(draft: Draft, clinics: Sequence[Clinic], towns: Sequence[Municipality], number: int) -> People:
    """Fill the sheets of ``number`` patients, spread over the clinics, and of the users of the chain."""
    people = People({clinic.id: Patients() for clinic in clinics}, {})
    birth_places = [town.cadastral_code for town in towns if town.valid_from.year < 1920]
    codes: set[str] = set()
    guardians: dict[int, _Guardian] = {}
    met: dict[int, _Person] = {}
    for at in range(number):
        clinic = clinics[at % len(clinics)]
        guardian = guardians.get(clinic.id)
        minor = guardian is not None and draft.rng.random() < 0.08
        person = _person(draft, clinic, birth_places, guardian if minor else None)
        if not minor:
            if clinic.id in met and draft.rng.random() < 0.004:
                person = met[clinic.id]  # typed in a second time, or somebody else with the same names and birth
            met[clinic.id] = person
        id_ = _patient(
            draft,
            people,
            clinic,
            person,
            codes=codes,
            guardian=guardian if minor else None,
            guardians=guardians,
        )
        group = people.by_clinic[clinic.id]
        group.everybody.append(id_)
        if not minor:
            (group.women if person.sex == "F" else group.men).append(id_)
    _staff(draft, clinics)
    return people


def _person(draft: Draft, clinic: Clinic, birth_places: Sequence[str], guardian: _Guardian | None) -> _Person:
    rng = draft.rng
    sex = "F" if rng.random() < 0.54 else "M"
    today = draft.line.days[draft.line.today]
    if guardian is not None:
        born = today - timedelta(days=rng.randrange(200, 17 * 365))
    else:
        born = today - timedelta(days=int(rng.triangular(18.1, 96, 55) * 365.25))
    chance = rng.random()
    if chance < 0.07 and guardian is None:
        country, last_name, his, hers = rng.choice(names.ABROAD)
        return _Person(last_name, hers if sex == "F" else his, sex, born, country, "it")
    german = clinic.seat.language == "de" and (guardian.language == "de" if guardian else rng.random() < 0.55)
    surnames = names.GERMAN_SURNAMES if german else names.SURNAMES
    given = (names.GERMAN_WOMEN, names.GERMAN_MEN) if german else (names.WOMEN, names.MEN)
    return _Person(
        guardian.last_name if guardian else rng.choice(surnames),
        rng.choice(given[sex == "M"]),
        sex,
        born,
        rng.choice(clinic.seat.places).cadastral_code if chance < 0.7 else rng.choice(birth_places),
        "de" if german else "it",
    )


def _patient(
    draft: Draft,
    people: People,
    clinic: Clinic,
    person: _Person,
    *,
    codes: set[str],
    guardian: _Guardian | None,
    guardians: dict[int, _Guardian],
) -> int:
    rng, line = draft.rng, draft.line
    at = draft.sheets["patient"].rows + 1
    code, canonical, kind = _identity(draft, person, codes, at)
    place = guardian.place if guardian else rng.randrange(len(clinic.seat.places))
    address = guardian.address if guardian else f"{rng.choice(names.STREETS)} {rng.randrange(1, 180)}"
    mobile = guardian.mobile if guardian else (_mobile(at) if rng.random() < 0.9 else None)
    landline = f"+39{clinic.seat.area_code}{rng.randrange(200_000, 999_999)}" if rng.random() < 0.25 else None
    email = rng.random() < 0.78 and guardian is None
    died = None
    if guardian is None and rng.random() < 0.006:
        died = line.today - (rng.randrange(1, 8) if rng.random() < 0.1 else rng.randrange(8, line.today))
        people.died[at] = died
    registered = line.ago((line.today + rng.randrange(1, 900)) * 24 * 60)
    id_ = draft.sheets["patient"].add(
        fiscal_code=code,
        fiscal_code_canonical=canonical,
        fiscal_code_kind=kind,
        last_name=person.last_name,
        first_name=person.first_name,
        sex=person.sex,
        birth_date=person.born,
        birth_place=person.birth_place,
        residence=clinic.seat.places[place].cadastral_code,
        address=address,
        postal_code=clinic.seat.places[place].postal_code,
        email=f"{_ascii(person.first_name)}.{_ascii(person.last_name)}.{at}@example.org" if email else None,
        phone=landline,
        mobile=mobile,
        language=person.language,
        preferred_channel=rng.choices((None, "sms", "email"), (60, 25, 15))[0],
        guardian_id=guardian.id if guardian else None,
        deceased_on=None if died is None else line.days[died],
        created_at=registered,
        updated_at=registered,
    )
    if guardian is None:
        guardians[clinic.id] = _Guardian(id_, person.last_name, address, place, mobile, person.language)
        if email and rng.random() < 0.3:
            _patient_user(draft, clinic, person, id_)
    return id_


def _mobile(at: int) -> str:
    """The number of the ``at``-th patient: its last four digits, which decide what the demo's gateway does with a
    text, are an ordinary number's."""
    block, rest = divmod(at, 9_000)
    return f"+39399{block:03d}{1_000 + rest:04d}"


def _identity(draft: Draft, person: _Person, codes: set[str], at: int) -> tuple[str | None, str | None, str | None]:
    """Fiscal code, its canonical form and its kind; now and then a temporary code, none, or an omocodia."""
    chance = draft.rng.random()
    if chance < 0.012:
        return None, None, None
    if person.birth_place.startswith("Z") and chance < 0.12:
        kind = "STP" if chance < 0.08 else "ENI"
        code = f"{kind}{at:013d}"
        return code, code, kind
    canonical = fiscal.encode(person.last_name, person.first_name, person.sex, person.born, person.birth_place)
    another_s = chance < 0.022 or (canonical in codes and chance < 0.5)
    codes.add(canonical)
    return fiscal.omocodia(canonical) if another_s else canonical, canonical, "CF"


def _ascii(name: str) -> str:
    folded = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return "".join(letter for letter in folded.lower() if letter.isalpha())


def _patient_user(draft: Draft, clinic: Clinic, person: _Person, patient: int) -> None:
    states = ("active", "invited", "never_invited", "disabled", "bounced")
    _user(
        draft,
        clinic,
        email=f"{_ascii(person.first_name)}.{_ascii(person.last_name)}.{patient}@example.org",
        name=f"{person.first_name} {person.last_name}",
        role="patient",
        state=draft.rng.choices(states, (80, 7, 7, 4, 2))[0],
        patient=patient,
    )


def _staff(draft: Draft, clinics: Sequence[Clinic]) -> None:
    for clinic in clinics:
        domain = f"{clinic.code.lower()}@example.org"
        for number in range(1, 6):
            state = "invited" if number == 5 else "active"
            name = f"Accettazione {number}"
            _user(draft, clinic, email=f"accettazione{number}.{domain}", name=name, role="desk", state=state)
        _user(draft, clinic, email=f"direzione.{domain}", name="Direzione", role="manager", state="active")
    _user(
        draft,
        clinics[0],
        email="sistemi@example.org",
        name="Sistemi informativi",
        role="superuser",
        state="active",
    )


def _user(
    draft: Draft, clinic: Clinic, *, email: str, name: str, role: str, state: str, patient: int | None = None
) -> None:
    invited = draft.rng.randrange(1, 60) if state == "invited" else draft.rng.randrange(60, 800)
    draft.sheets["app_user"].add(
        clinic_id=clinic.id,
        patient_id=patient,
        email=email,
        display_name=name,
        role=role,
        state=state,
        invited_at=None if state == "never_invited" else draft.line.ago(invited * 24 * 60),
        activated_at=draft.line.ago((invited - 1) * 24 * 60) if state in {"active", "disabled"} else None,
        created_at=draft.line.ago((invited + 1) * 24 * 60),
    )
