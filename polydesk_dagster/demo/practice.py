"""The demo's clinics: where they are, who works there, what they offer at what price, and when they can be booked."""

from __future__ import annotations

from dataclasses import dataclass

from polydesk_dagster.demo import clinics, offers, prices, staff
from polydesk_dagster.demo.agendas import Agenda, half_days, of_desk, of_doctor, of_machine
from polydesk_dagster.demo.clinics import Clinic
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.services import (
    BRANCHES,
    DESK_SERVICES,
    MACHINES,
)


@dataclass(frozen=True, slots=True)
class Practice:
    clinics: list[Clinic]
    agendas: list[Agenda]


def build(draft: Draft, how_many: int, specialists: int, agendas: int) -> Practice:
    """Fill the sheets of ``how_many`` clinics with ``specialists`` and ``agendas`` spread evenly over them."""
    practice = Practice([], [])
    for number in range(how_many):
        clinic = clinics.add(draft, number)
        practice.clinics.append(clinic)
        clinics.closures(draft, clinic, by_hand=number == 0)
        machines = _share(agendas // how_many, 3, len(MACHINES))
        desks = _share(agendas // how_many, 4, len(DESK_SERVICES))
        staffed = specialists // how_many
        branches = [BRANCHES[(number * 5 + at) % len(BRANCHES)] for at in range(staffed)]
        offers.add(draft, clinic, branches, desks, machines)
        doctors = [staff.add(draft, clinic, branch, at) for at, branch in enumerate(branches)]
        prices.add(draft, clinic, doctors)
        for at in range(machines):
            practice.agendas.append(of_machine(draft, clinic, at))
        for at in range(desks):
            practice.agendas.append(of_desk(draft, clinic, at))
        diaries = [half_days(draft) for _ in doctors]
        for at in range(agendas // how_many - machines - desks):
            doctor = at % staffed
            practice.agendas.append(of_doctor(draft, clinic, doctors[doctor], diaries[doctor], nth=at))
        prices.by_mistake(draft, clinic, practice.agendas[-1].id)
    return practice


def _share(agendas: int, in_thirty: int, most: int) -> int:
    """How many of a clinic's agendas are of a kind that makes ``in_thirty`` of thirty."""
    return min(most, max(1, agendas * in_thirty // 30))
