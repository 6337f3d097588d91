"""A record of a source, as it was written, told field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any

from polydesk_dagster.values import Value

if TYPE_CHECKING:
    from polydesk_dagster.told.speaking import Teller

MOST = 200
"""Fields of one record that are told."""
DEEPEST = 6


def fields(teller: Teller, record: Any) -> list[tuple[str, str]]:
    """Each field's name in words, what stands within another after it, with its value as people write it; a record
    that is none is one value without a name."""
    told = (
        (" › ".join(teller.term("field", step) for step in way), teller.value(value))
        for way, value in _leaves(record, ())
    )
    return list(islice(told, MOST))


def exported(
    teller: Teller, found: Mapping[str, tuple[str | None, list[dict[str, Any]]]]
) -> dict[str, dict[str, object]]:
    """A patient's data sets (by key: the rule that keeps it, and its rows) with what each is and why it stays."""
    return {
        key: {"what": teller.term("personal", key), "kept": law and teller.term("kept_by_law", law), "rows": rows}
        for key, (law, rows) in found.items()
    }


def _leaves(value: Any, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Value]]:
    if len(way) < DEEPEST and isinstance(value, dict) and value:
        for name, within in value.items():
            yield from _leaves(within, (*way, name))
    elif len(way) < DEEPEST and isinstance(value, list) and value:
        for number, within in enumerate(value, 1):
            yield from _leaves(within, (*way, str(number)) if len(value) > 1 else way)
    else:
        yield way, _written(value)


def _written(value: Any) -> Value:
    if isinstance(value, str):
        with suppress(ValueError):
            return date.fromisoformat(value) if len(value) == len("2026-01-31") else value
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    return "" if not value else str(value)
