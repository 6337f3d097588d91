"""The demo's prices: two lists, the agreements of each clinic, and what was left by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from polydesk_dagster.database.bulk import Cell
from polydesk_dagster.demo.clinics import Clinic, external, opened
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.offers import price
from polydesk_dagster.demo.services import (
    WITHDRAWN,
    all_offers,
)
from polydesk_dagster.demo.staff import Doctor

AGREEMENTS = (
    # name, kind, what of the private price is agreed, what the patient pays of it (None: all)
    ("Fondo Salute Metalmeccanici", "fund", Decimal("0.80"), Decimal(0)),
    ("Assicurazioni Adriatiche – rete diretta", "insurance", Decimal("0.85"), Decimal("0.25")),
    ("Mutua Artigiani e Commercianti", "fund", Decimal("0.90"), None),
    ("Cassa Dipendenti Trasporti", "company", Decimal("0.82"), Decimal("0.15")),
)


def add(draft: Draft, clinic: Clinic, staff: Sequence[Doctor]) -> None:
    """Two price lists, until and since the new year; agreements on most services; professors cost more."""
    new_year = date(draft.line.days[draft.line.today].year, 1, 1)
    first = date(draft.line.days[0].year - 1, 1, 1)
    for name, kind, _, _ in AGREEMENTS:
        clinic.agreements.append(
            draft.sheets["agreement"].add(
                clinic_id=clinic.id,
                external_id=external("CNV", clinic, draft.sheets["agreement"].rows + 1),
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
                updated_at=opened(draft),
            )

    offers = {offer.code: offer for offer in all_offers()}
    for at, (code, service) in enumerate(clinic.services.items()):
        now = price(clinic, offers[code])
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
            now = price(clinic, visit) + 40
            interval(clinic.services[visit.code], now - 10, now, specialist=doctor.id)


def by_mistake(draft: Draft, clinic: Clinic, agenda: int) -> None:
    """One deleted service still has its agenda, and a price that the night after the deletion closed."""
    service, days = next(iter(clinic.withdrawn.items()))
    draft.sheets["agenda_service"].add(clinic_id=clinic.id, agenda_id=agenda, service_id=service)
    draft.sheets["price"].add(
        clinic_id=clinic.id,
        service_id=service,
        amount=price(clinic, WITHDRAWN[0]),
        valid_from=date(draft.line.days[0].year - 1, 1, 1),
        valid_to=draft.line.days[draft.line.today - days + 1],
        updated_at=draft.line.ago((days - 1) * 24 * 60),
    )


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"))
