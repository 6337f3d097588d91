"""What a guard said of a plan: whether it stops it, and how much of it it has set aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polydesk_dagster.values import SAID, Reason, Value, mapping_from_json, to_json


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one guard said."""

    name: str
    passed: bool
    value: float
    limit: float
    values: Mapping[str, Value] = field(default_factory=dict)
    """What its sentence is filled in with."""
    held: int = 0
    """Rows that it has set aside instead of stopping all of them."""

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "passed": self.passed,
            "value": self.value,
            "limit": self.limit,
            "values": to_json(self.values),
            "held": self.held,
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Verdict:
        """A verdict out of JSON; those from before there were values hold their sentence."""
        values = {SAID: kept["message"]} if "message" in kept else mapping_from_json(kept["values"])
        return cls(kept["name"], kept["passed"], kept["value"], kept["limit"], values, kept.get("held", 0))

    @property
    def reason(self) -> Reason:
        """What it found, as a reason."""
        return Reason(f"guard_{self.name}", {"name": self.name, **self.values})
