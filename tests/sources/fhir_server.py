"""A FHIR R4 server on a socket that searches as R4 says (bundles, absolute ``next`` links, ``_count``, ``_sort``,
``_lastUpdated``, ``_summary=count``, ``_include``), asks for SMART tokens, and misbehaves on request.

Resources have the shapes of the specification's examples (https://hl7.org/fhir/R4/patient-example.json,
practitioner-example.json, healthcareservice-example.json, insuranceplan-example.json,
chargeitemdefinition-ebm-example.json and appointment-example.json); only what the adapter reads differs.
"""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cache
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydesk_dagster.demo.simulators.faults import Reply
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, Handler, Simulator

Resource = dict[str, Any]
TYPES = ("Patient", "Practitioner", "HealthcareService", "InsurancePlan", "ChargeItemDefinition", "Appointment", "Slot")


@cache
def key() -> ECKey | RSAKey:
    """Of the client that the server knows."""
    return ECKey.generate_key("P-384")


class FhirServer(Simulator):
    """``held`` by type; ``bundles`` by type are answered as they stand, one after the other. ``totals``: whether
    bundles say their total. ``lasts``: requests that a token is good for. ``again``: pages after which every page is
    followed by the first one. ``page`` and ``most``: resources that an answer has at most, of a list and sorted."""

    name = "fhir"
    prefixes = ("/fhir",)

    def __init__(self) -> None:
        super().__init__(DEMO_TOKEN)
        self.held: dict[str, list[Resource]] = {name: [] for name in TYPES}
        self.totals = True
        self.page = 2
        self.most = 1000
        self.bundles: dict[str, list[Resource]] = {}
        self.next_link: str | None = None
        self.again: int | None = None
        self.following: tuple[str, list[Resource]] | None = None
        self.public_key = key()
        self.tokens = 0
        self.lasts: int | None = None

    def handlers(self) -> dict[tuple[str, str], Handler]:
        return {("GET", f"/{name}"): self._search for name in (*TYPES, "MedicationRequest", "Observation")}

    def admin(self) -> list[Route]:
        return [Route("/token", self._token, methods=["POST"])]

    async def _token(self, request: Request) -> Response:
        form = await request.form()
        claims = jwt.decode(str(form["client_assertion"]), self.public_key, algorithms=["RS384", "ES384"]).claims
        good = claims["iss"] == claims["sub"] == "polydesk" and claims["aud"] == str(request.url)
        if not good or form["grant_type"] != "client_credentials":
            return JSONResponse({"error": "invalid_client"}, 400)
        self.tokens += 1
        self.token = f"token-{self.tokens}"
        return JSONResponse({"access_token": self.token, "token_type": "bearer", "expires_in": 300})

    async def _search(self, request: Request) -> Reply:
        if self.lasts is not None and len(self.requests) % self.lasts == 0:
            self.token = "expired"
        name, asked = request.url.path.rsplit("/", 1)[-1], request.query_params
        if self.bundles.get(name):
            return Reply(self.bundles[name].pop(0))
        rows = self.held[name]
        if since := asked.get("_lastUpdated"):
            rows = [row for row in rows if row["meta"]["lastUpdated"] >= since.removeprefix("ge")]
        if order := asked.get("_sort"):
            rows = sorted(rows, key=lambda row: row.get("meta", {}).get("lastUpdated", ""), reverse=order[0] == "-")
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"}
        if self.totals:
            bundle["total"] = len(rows)
        if asked.get("_summary") == "count":
            return Reply(bundle)
        first, count = int(asked.get("_offset", 0)), int(asked.get("_count", 10))
        size = min(count, self.page if "_sort" not in asked else self.most)
        page = rows[first : first + size]
        bundle["entry"] = [{"fullUrl": f"urn:x:{n}", "resource": row} for n, row in enumerate(page)]
        if asked.get("_include") == "Appointment:slot":
            bundle["entry"] += [{"resource": slot, "search": {"mode": "include"}} for slot in self.held["Slot"]]
        base = str(request.base_url).rstrip("/") + "/fhir"
        bundle["link"] = [{"relation": "self", "url": str(request.url)}]
        if first + size < len(rows):
            sorting = "".join(f"&{key}={asked[key]}" for key in ("_sort", "_lastUpdated", "_include") if key in asked)
            more = f"{base}/{name}?_offset={first + size}&_count={count}{sorting}"
            bundle["link"].append({"relation": "next", "url": self.next_link or more})
        if self.again is not None and "_sort" not in asked:
            self.again -= 1
            if self.again < 0:
                bundle["link"][1:] = [{"relation": "next", "url": f"{base}/{name}?_offset=0&_count={count}"}]
        if self.following is not None and self.following[0] == name and "_sort" not in asked:
            (kind, rows), self.following = self.following, None
            self.held[kind] = rows
        return Reply(json.loads(json.dumps(bundle, default=_number)))


def _number(value: Any) -> float:
    assert isinstance(value, Decimal)
    return float(value)


def meta(number: int) -> dict[str, str]:
    return {"versionId": str(number), "lastUpdated": f"2026-03-01T10:00:{number % 60:02}.000+00:00"}


APPOINTMENT: Resource = {
    "resourceType": "Appointment",
    "id": "example",
    "meta": meta(2),
    "status": "booked",
    "slot": [{"reference": "Slot/example"}],
    "start": "2026-03-12T09:00:00+01:00",
    "end": "2026-03-12T09:30:00+01:00",
    "participant": [
        {"actor": {"reference": "Patient/P1", "display": "Peter James Chalmers"}, "status": "accepted"},
        {"actor": {"reference": "https://other.example/fhir/Practitioner/D1/_history/2"}, "status": "accepted"},
        {"actor": {"reference": "HealthcareService/S1"}, "status": "accepted"},
    ],
}
SLOT: Resource = {
    "resourceType": "Slot",
    "id": "example",
    "meta": meta(1),
    "schedule": {"reference": "Schedule/A1"},
    "status": "busy",
    "start": APPOINTMENT["start"],
    "end": APPOINTMENT["end"],
}
"""In the shapes of https://hl7.org/fhir/R4/appointment-example.json and slot-example.json."""


def booked(key: str) -> Resource:
    """An appointment by that name."""
    return APPOINTMENT | {"id": key}


def _coded(code: str) -> dict[str, Any]:
    return {"coding": [{"system": "http://example.org/codes", "code": code}]}


def _telecom(**points: str | None) -> list[dict[str, str]]:
    mobile = {"mobile": {"system": "phone", "use": "mobile"}, "email": {"system": "email"}}
    return [mobile[name] | {"value": value} for name, value in points.items() if value]


def _without_nothing(it: Any) -> Any:
    """FHIR has no null and nothing empty."""
    if isinstance(it, dict):
        kept = {key: _without_nothing(value) for key, value in it.items()}
        return {key: value for key, value in kept.items() if value not in (None, [], {}, "")}
    return [_without_nothing(value) for value in it if value != ""] if isinstance(it, list) else it


def _inclusive(until: str | None) -> str | None:
    from datetime import date, timedelta

    return None if until is None else str(date.fromisoformat(until) - timedelta(days=1))


def resource(kind: str, record: dict[str, Any], number: int) -> Resource:
    """A record of ours as its server would hold it."""
    it = record
    about = {"id": it.get("id"), "meta": meta(number)}
    code = {"system": "http://hl7.it/sid/codiceFiscale", "value": it.get("fiscal_code")}
    if kind == "patients":
        made = about | {
            "resourceType": "Patient",
            "identifier": [code] if it.get("fiscal_code") else [],
            "name": [{"use": "official", "family": it["last_name"], "given": [it["first_name"]]}],
            "gender": {"M": "male", "F": "female"}.get(it.get("sex") or "", "unknown"),
            "birthDate": it.get("birth_date"),
            "deceasedDateTime": it.get("deceased_on"),
            "address": [{"line": [it["address"]] if it.get("address") else [], "postalCode": it.get("postal_code")}],
            "telecom": _telecom(mobile=it.get("mobile"), email=it.get("email")),
            "meta": {"lastUpdated": it["updated_at"], "versionId": str(number)},
        }
    elif kind == "collaborators":
        made = about | {
            "resourceType": "Practitioner",
            "identifier": [code] if it.get("fiscal_code") else [],
            "name": [{"family": it["last_name"], "given": [it["first_name"]], "prefix": [it["title"] or ""]}],
            "qualification": [{"code": {"text": text}} for text in it["specialties"]],
            "telecom": _telecom(email=it.get("email")),
            "active": it["active"],
        }
    elif kind == "services":
        made = about | {
            "resourceType": "HealthcareService",
            "identifier": [{"system": "http://example.org/shared-ids", "value": it["code"]}],
            "name": it["name"],
            "extraDetails": it.get("preparation"),
            "active": it["active"],
        }
    elif kind == "agreements":
        until = _inclusive(it.get("valid_to"))
        made = about | {
            "resourceType": "InsurancePlan",
            "name": it["name"],
            "type": [_coded(it["kind"])],
            "period": {"start": it["valid_from"], "end": until},
        }
    else:
        plan, named = it.get("agreement_id"), {"code": "x", "system": "http://example.org/usage"}
        context = [{"code": named, "valueReference": {"reference": f"HealthcareService/{it['service_id']}"}}]
        context += [{"code": named, "valueReference": {"reference": f"InsurancePlan/{plan}"}}] if plan else []
        amount = {"value": Decimal(it["amount"]), "currency": it["currency"]}
        made = {
            "resourceType": "ChargeItemDefinition",
            "id": f"price-{number}",
            "meta": meta(number),
            "url": f"http://example.org/ChargeItemDefinition/{number}",
            "status": "active",
            "useContext": context,
            "propertyGroup": [{"priceComponent": [{"type": "base", "code": _coded("VK"), "amount": amount}]}],
            "effectivePeriod": {"start": it["valid_from"], "end": _inclusive(it.get("valid_to"))},
        }
    return _without_nothing(made)
