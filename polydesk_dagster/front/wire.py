"""What every application of the front writes on the wire alike: names as FHIR has them, references, and problems."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", serialize_by_alias=True)


class Reference(Wire):
    """Another resource: its kind and number."""

    reference: str
    display: str | None = None

    @property
    def number(self) -> int:
        return int(self.reference.partition("/")[2])


class Fault(Wire):
    """What is wrong with a request, and where; never what was sent."""

    at: str
    code: str


class Problem(Wire):
    """RFC 9457; `code` is stable, `title` is for people in the language that they ask for."""

    type: str
    title: str
    status: int
    code: str
    errors: list[Fault] | None = None
    alternatives: list[Reference] | None = None
