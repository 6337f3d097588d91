"""What a clinic of the demo offers, with what it needs, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from polydesk_dagster.demo.clinics import Clinic, external, opened
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.services import (
    DESK_SERVICES,
    GROUPS,
    MACHINES,
    WITHDRAWN,
    Branch,
    Offer,
)

_PRICE_LEVEL = {"MI": Decimal("1.15"), "NA": Decimal("0.90"), "BZ": Decimal("1.10")}

SCANNERS = 4


def add(
    draft: Draft,
    clinic: Clinic,
    branches: Sequence[Branch],
    desks: int,
    machines: int,
) -> None:
    """The services of its branches, desks and machines, in groups, with the rooms and instruments they need."""
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
    # As many of each as can be needed at one time: nobody of the demo is in two places.
    scanners = _resources(draft, clinic, "instrument", "Ecografo", SCANNERS)
    technicians = _resources(draft, clinic, "technician", "Tecnico di radiologia", max(1, machines))
    for offer in offers:
        needed = scanners if offer.name.startswith("Eco") else []
        needed = needed + technicians if offer.code.startswith(("87.", "88.9", "88.2")) else []
        for resource in needed:
            draft.sheets["service_resource"].add(
                clinic_id=clinic.id, service_id=clinic.services[offer.code], resource_id=resource
            )


def _resources(draft: Draft, clinic: Clinic, kind: str, name: str, many: int) -> list[int]:
    return [
        draft.sheets["resource"].add(
            clinic_id=clinic.id, location_id=clinic.locations[0], kind=kind, name=f"{name} {number}"
        )
        for number in range(1, many + 1)
    ]


def _service(draft: Draft, clinic: Clinic, offer: Offer, *, deleted: int | None = None) -> int:
    preparation = offer.preparation
    return draft.sheets["service"].add(
        clinic_id=clinic.id,
        external_id=external("SRV", clinic, draft.sheets["service"].rows + 1),
        code=offer.code,
        name=offer.name,
        duration_minutes=offer.minutes,
        price=price(clinic, offer),
        preparation=preparation.text if preparation else None,
        preparation_lead_days=preparation.lead_days if preparation else None,
        preparation_last_hours=preparation.last_hours if preparation else None,
        sensitive=offer.sensitive,
        bookable_online=offer.online and deleted is None,
        active=deleted is None,
        deleted_at=None if deleted is None else draft.line.ago(deleted * 24 * 60),
        updated_at=opened(draft),
    )


def price(clinic: Clinic, offer: Offer) -> Decimal:
    """What the offer costs in this clinic now."""
    return (offer.price * _PRICE_LEVEL.get(clinic.seat.code, Decimal(1))).quantize(Decimal(1))
