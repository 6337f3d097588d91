"""FHIR R4 resources as our records: what each field is taken from, and what FHIR leaves open.

Shapes: https://hl7.org/fhir/R4/patient.html, practitioner.html, healthcareservice.html, insuranceplan.html,
chargeitemdefinition.html and appointment.html with their examples. The Italian fiscal code's system is that of HL7
Italia.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from polydesk_dagster.values import Reason

FISCAL_CODE = "http://hl7.it/sid/codiceFiscale"
ALWAYS = "1900-01-01"
"""Since when what has no beginning is valid."""
NEVER_SAID = "1970-01-01T00:00:00+00:00"


class Unfit(Exception):  # noqa: N818 -- a verdict on one resource
    """A resource that is well formed and says something that no record of ours can hold."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.why = Reason(code)


def model(resource: str) -> type[BaseModel]:
    """The class that checks a resource. Importing one takes a third of a second, so only when it is used."""
    from importlib import import_module

    found: type[BaseModel] = getattr(import_module(f"fhir.resources.R4B.{resource.lower()}"), resource)
    return found


def referred(reference: Mapping[str, Any] | None, resource: str) -> str | None:
    """The id that a reference to ``resource`` holds, relative or absolute, of whatever version."""
    said = (reference or {}).get("reference")
    parts = said.split("/_history/")[0].split("/") if isinstance(said, str) else []
    return parts[-1] if len(parts) >= 2 and parts[-2] == resource else None


def replaced_by(patient: Mapping[str, Any]) -> str | None:
    """The patient whose record this one was merged into."""
    return next(iter(_linked(patient, "replaced-by")), None)


def replaces(patient: Mapping[str, Any]) -> list[str]:
    """The patients whose records were merged into this one, as it says itself."""
    return _linked(patient, "replaces")


def _linked(patient: Mapping[str, Any], kind: str) -> list[str]:
    links = patient.get("link") or []
    found = (referred(link.get("other"), "Patient") for link in links if link.get("type") == kind)
    return [name for name in found if name]


def patient(it: Mapping[str, Any], options: Options) -> dict[str, Any]:
    name = _name(it)
    address: Mapping[str, Any] = next(iter(it.get("address") or []), {})
    updated = (it.get("meta") or {}).get("lastUpdated") or NEVER_SAID
    lines = [*(address.get("line") or []), *([address["city"]] if address.get("city") else [])]
    return {
        "id": it["id"],
        "fiscal_code": _identifier(it, options.fiscal_code_system),
        "last_name": name.get("family"),
        "first_name": " ".join(name.get("given") or []),
        "sex": {"male": "M", "female": "F"}.get(it.get("gender") or ""),
        "birth_date": _whole_day(it.get("birthDate")),
        "address": ", ".join(lines) or None,
        "postal_code": address.get("postalCode"),
        "email": _contact(it, "email"),
        "phone": _contact(it, "phone", lambda use: use != "mobile"),
        "mobile": _contact(it, "phone", lambda use: use == "mobile") or _contact(it, "sms"),
        "deceased_on": _death(it, updated),
        "updated_at": updated,
    }


def collaborator(it: Mapping[str, Any], options: Options) -> dict[str, Any]:
    name = _name(it)
    return {
        "id": it["id"],
        "title": " ".join(name.get("prefix") or []) or None,
        "last_name": name.get("family"),
        "first_name": " ".join(name.get("given") or []),
        "fiscal_code": _identifier(it, options.fiscal_code_system),
        "specialties": [text for each in it.get("qualification") or [] if (text := _said(each.get("code")))],
        "email": _contact(it, "email"),
        "active": it.get("active", True),
    }


def service(it: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """FHIR knows no duration of a service: the integration's settings say one for all that are new."""
    codes = [each.get("value") for each in it.get("identifier") or []]
    codes += [coding.get("code") for each in it.get("type") or [] for coding in each.get("coding") or []]
    return {
        "id": it["id"],
        "code": next(filter(None, codes), None),
        "name": it.get("name"),
        "duration_minutes": options.duration_minutes,
        "preparation": it.get("extraDetails"),
        "active": it.get("active", True),
    }


def agreement(it: Mapping[str, Any], options: Options) -> dict[str, Any]:
    period = it.get("period") or {}
    return {
        "id": it["id"],
        "name": it.get("name"),
        "kind": options.agreement_kinds.get(code(next(iter(it.get("type") or []), None)) or "", "insurance"),
        "valid_from": _whole_day(period.get("start")) or ALWAYS,
        "valid_to": _day_after(period.get("end")),
    }


def price(it: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """One price a definition: its base component. For which service, and under which insurance plan, its contexts say.

    Raises:
        Unfit: it depends on expressions, or has several prices.
    """
    groups = it.get("propertyGroup") or []
    if it.get("applicability") or any(group.get("applicability") for group in groups):
        raise Unfit("fhir_applicability")
    parts = [part for group in groups for part in group.get("priceComponent") or []]
    base = [part for part in parts if part.get("type") == "base" and part.get("amount")]
    if len(base) != 1:
        raise Unfit("fhir_prices")
    taxes = [part["factor"] for part in parts if part.get("type") == "tax" and part.get("factor") is not None]
    contexts = [context.get("valueReference") for context in it.get("useContext") or []]
    named = _reference(contexts, "HealthcareService") or options.services.get(code(it.get("code")) or "")
    period = it.get("effectivePeriod") or {}
    return {
        "service_id": named or code(it.get("code")),
        "agreement_id": _reference(contexts, "InsurancePlan"),
        "collaborator_id": None,
        "amount": money(base[0]["amount"].get("value")),
        "currency": base[0]["amount"].get("currency"),
        "vat_rate": money(_tax(taxes[0]) * 100) if len(taxes) == 1 else None,
        "valid_from": _whole_day(period.get("start")) or ALWAYS,
        "valid_to": _day_after(period.get("end")),
    }


class Options(BaseModel):
    """What the settings say of what FHIR leaves open, and what was looked up on the way."""

    fiscal_code_system: str = FISCAL_CODE
    duration_minutes: int = 30
    agreement_kinds: dict[str, str] = {}
    services: dict[str, str] = {}
    """Ids of services by code."""


MAKE: Mapping[str, tuple[str, Callable[[Mapping[str, Any], Options], dict[str, Any]]]] = {
    "patients": ("Patient", patient),
    "collaborators": ("Practitioner", collaborator),
    "services": ("HealthcareService", service),
    "agreements": ("InsurancePlan", agreement),
    "prices": ("ChargeItemDefinition", price),
}
"""By list: the resource that it is made of, and how."""


_DIGITS = 20
"""Of an amount; with more there is no room left for cents."""


def money(amount: Any) -> str | None:
    """An amount to the cent, without what a binary fraction adds; one with more decimals is left as it is, to be
    refused."""
    if amount is None:
        return None
    exact = Decimal(amount)
    if not exact.is_finite() or exact.adjusted() > _DIGITS:
        return str(exact)
    rounded = exact.quantize(Decimal("0.01"))
    return str(rounded) if abs(exact - rounded) < Decimal("0.000001") else str(exact)


def _name(it: Mapping[str, Any]) -> Mapping[str, Any]:
    names = it.get("name") or []
    official: list[Mapping[str, Any]] = [name for name in names if name.get("use") == "official"]
    return next(iter(official or names), {})


def _identifier(it: Mapping[str, Any], system: str) -> str | None:
    return next((each.get("value") for each in it.get("identifier") or [] if each.get("system") == system), None)


def _contact(it: Mapping[str, Any], system: str, fits: Callable[[Any], bool] = lambda _: True) -> str | None:
    points = it.get("telecom") or []
    return next((p.get("value") for p in points if p.get("system") == system and fits(p.get("use"))), None)


def _said(concept: Mapping[str, Any] | None) -> str | None:
    concept = concept or {}
    return concept.get("text") or next((c.get("display") for c in concept.get("coding") or []), None)


def code(concept: Mapping[str, Any] | None) -> str | None:
    """The first code of a concept."""
    return next((coding.get("code") for coding in (concept or {}).get("coding") or []), None)


def _reference(references: list[Any], resource: str) -> str | None:
    return next(filter(None, (referred(each, resource) for each in references)), None)


def _whole_day(said: Any) -> str | None:
    """The day of a date or a moment; a year or a month alone is no day."""
    return said[:10] if isinstance(said, str) and len(said) >= 10 else None


def _death(patient: Mapping[str, Any], updated: str) -> str | None:
    """The day of a death; where only the year is said, or only that it was, the day on which the record said so."""
    said = patient.get("deceasedDateTime")
    return _whole_day(said) or (_whole_day(updated) if said or patient.get("deceasedBoolean") is True else None)


def _tax(factor: Any) -> Any:
    """The part of the price that is tax. FHIR leaves open whether 19 % is 0.19 or, as in its own examples, 1.19."""
    return factor - 1 if factor >= 1 else factor


def _day_after(said: Any) -> str | None:
    """FHIR's periods include their last day, ours do not."""
    last = _whole_day(said)
    return None if last is None else (date.fromisoformat(last) + timedelta(days=1)).isoformat()
