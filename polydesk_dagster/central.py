"""The chain's central server: its default closures, a full set for each year."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import ValidationInfo, model_validator

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.remote import Policy, Remote
from polydesk_dagster.values import Term
from polydesk_dagster.wire import IsoDate, OptionalCadastral, OptionalText, Record, Rejected, Text, sort_records
from polydesk_dagster.wrong import bad

SYSTEM = Term("system", "central")


class Closure(Record):
    """One default closure; both dates are inclusive."""

    id: Text
    name: Text
    date_from: IsoDate
    date_to: IsoDate
    part: Literal["day", "morning", "afternoon"] = "day"
    """Morning ends and afternoon starts at 13:00 in the clinic's zone."""
    scope: Literal["national", "region", "municipality"]
    region: OptionalText = None
    municipality: OptionalCadastral = None

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if self.date_from > self.date_to:
            raise bad("date_from_after_to")
        if self.scope == "region" and self.region is None:
            raise bad("region_missing")
        if self.scope == "municipality" and self.municipality is None:
            raise bad("municipality_missing")
        if self.scope == "national" and (self.region or self.municipality):
            raise bad("national_with_place")
        year = (info.context or {}).get("year")
        if year is not None and not self.date_from.year <= year <= self.date_to.year:
            raise bad("no_day_in_year", year=year)
        return self


@dataclass(frozen=True, slots=True)
class ClosureSet:
    """All default closures of ``year``. Ids can repeat: whoever takes the set decides what that means."""

    year: int
    version: str
    items: tuple[Closure, ...]
    rejected: tuple[Rejected, ...]
    """A rejected item's ``key`` is its id, if it had one: it is not gone from the set, only unreadable."""


class Central:
    """The client; close it, or use ``with``."""

    def __init__(self, url: str, token: str, policy: Policy | None = None) -> None:
        self.remote = Remote(SYSTEM, url, token, policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remote.close()

    def closures(self, year: int) -> ClosureSet | None:
        """The full set of ``year``; None where the server has none of that year. Raises TransientError, or
        PermanentError where the answer has another shape or speaks of another year: an answer that cannot be trusted
        whole is no answer."""
        answer = self.remote.get("/closures", {"year": year}, expected=frozenset({404}))
        if answer.status == 404:
            return None
        body = answer.body
        if not isinstance(body, dict) or not isinstance(body.get("items"), list):
            raise PermanentError("central_shape", year=year)
        if body.get("year") != year or isinstance(body["year"], bool):
            raise PermanentError("central_other_year", year=year)
        version = body.get("version")
        if not isinstance(version, str) or not version.strip():
            raise PermanentError("central_no_version", year=year)
        records = sort_records(Closure, body["items"], "id", {"year": year})
        return ClosureSet(year, version.strip(), records.valid, records.rejected)
