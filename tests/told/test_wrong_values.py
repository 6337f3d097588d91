"""What a model refuses is told in the reader's language, with its field, and never with the value."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.wrong import reason


class Colour(StrEnum):
    RED = "red"


class Inner(BaseModel):
    number: int


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")

    whole: Annotated[int, Field(ge=1, le=9)] = 1
    amount: Decimal = Decimal(1)
    share: float = 0.5
    flag: bool = True
    name: Annotated[str, Field(min_length=2, max_length=3, pattern="^[a-z]+$")] = "ab"
    day: date = date(2026, 1, 1)
    at: datetime = datetime(2026, 1, 1)
    which: Literal["one"] = "one"
    colour: Colour = Colour.RED
    folder: Path = Path()
    several: list[int] = []
    by_name: dict[str, int] = {}
    inner: Inner = Inner(number=1)


WRONG = [
    ("whole", "s3cret", "non è un numero intero"),
    ("whole", 1.5, "non è un numero intero"),
    ("whole", 0, "è minore di 1"),
    ("whole", 10, "è maggiore di 9"),
    ("amount", "s3cret", "non è un numero"),
    ("share", "s3cret", "non è un numero"),
    ("share", [], "non è un numero"),
    ("flag", "s3cret", "non è vero o falso"),
    ("name", 7, "non è un testo"),
    ("name", "a", "è troppo corto"),
    ("name", "s3cret", "è troppo lungo"),
    ("name", "S3C", "non ha la forma prevista"),
    ("day", "s3cret", "non è una data ISO (aaaa-mm-gg)"),
    ("at", "s3cret", "non è un istante RFC 3339"),
    ("which", "s3cret", "non è uno dei valori previsti"),
    ("colour", "s3cret", "non è uno dei valori previsti"),
    ("folder", 7, "non è un percorso"),
    ("several", "s3cret", "non è un elenco"),
    ("by_name", "s3cret", "non è un oggetto"),
    ("inner", "s3cret", "non è un oggetto"),
    ("stranger", "s3cret", "non è previsto"),
]


@pytest.mark.parametrize(("field", "value", "said"), WRONG)
def test_what_is_wrong_with_a_field_is_said_without_its_value(field: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Everything.model_validate({field: value})
    found = reason(refused.value)
    assert teller("it").reason(found) == f"{field} {said}"
    for language in LANGUAGES:
        told = teller(language).reason(found)
        assert told.startswith(f"{field} ")
        assert "s3cret" not in told
        assert "nput should" not in told


def test_each_of_several_problems_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        Everything.model_validate({"whole": "x", "inner": {}})
    assert teller("it").reason(reason(refused.value)) == "whole non è un numero intero e inner.number manca"
