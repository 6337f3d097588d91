"""Who works in a clinic of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from polydesk_dagster.demo import fiscal, names
from polydesk_dagster.demo.clinics import Clinic, external, opened
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.services import (
    Branch,
)


@dataclass(frozen=True, slots=True)
class Doctor:
    id: int
    title: str
    last_name: str
    branch: Branch
    leaves: date | None


def add(draft: Draft, clinic: Clinic, branch: Branch, number: int) -> Doctor:
    """A doctor of the branch, the clinic's ``number``th."""
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
        external_id=external("COL", clinic, draft.sheets["specialist"].rows + 1),
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
        updated_at=opened(draft),
    )
    return Doctor(id_, title, last_name, branch, leaves)
