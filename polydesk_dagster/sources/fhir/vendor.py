"""FHIR R4 as a vendor: an address, a token or a SMART client, and what FHIR leaves open."""

from __future__ import annotations

from typing import Literal

import httpx
from pydantic import Field

from polydesk_dagster.remote import Policy, base_url
from polydesk_dagster.sources.access import Address, Settings, TokenName
from polydesk_dagster.sources.fhir.records import FISCAL_CODE, Options
from polydesk_dagster.sources.fhir.server import DIALECT
from polydesk_dagster.sources.fhir.source import Fhir
from polydesk_dagster.sources.fhir.tokens import SmartTokens
from polydesk_dagster.sources.port import Numbers, Secret
from polydesk_dagster.values import Reason


class Smart(Settings):
    """A client of SMART Backend Services; its private key (PEM) is what ``token`` of the settings names."""

    client_id: str
    token_url: Address
    key_id: str | None = None
    scope: str = "system/*.read"


class FhirSettings(Settings):
    """What an integration says of its FHIR server."""

    url: Address
    token: TokenName
    smart: Smart | None = None
    fiscal_code_system: str = FISCAL_CODE
    duration_minutes: int = Field(30, ge=1, le=480)
    """Of every service: FHIR's have none."""
    agreement_kinds: dict[str, Literal["insurance", "fund", "company", "public"]] = Field(default_factory=dict)
    """By the code of an insurance plan's type; what is not named is an insurance."""


class FhirVendor:
    """Opens a clinic's FHIR server."""

    settings = FhirSettings
    news = Numbers.OURS

    def epoch(self, settings: FhirSettings) -> str:
        return f"fhir {base_url(settings.url, DIALECT.root)}"

    def open(self, clinic: str, settings: FhirSettings, secret: Secret, policy: Policy | None = None) -> Fhir:
        system = Reason("system_source", {"of": clinic})
        auth: str | httpx.Auth = secret(settings.token)
        if (smart := settings.smart) is not None:
            auth = SmartTokens(
                system, smart.token_url, smart.client_id, str(auth), smart.scope, smart.key_id, policy or Policy()
            )
        options = Options.model_validate(settings.model_dump(include=set(Options.model_fields)))
        return Fhir(self.epoch(settings), settings.url, auth, options, system, policy)


VENDOR = FhirVendor()
