"""What a model has to say about values that it refuses, as reasons: which field, and what is wrong; never the value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

from polydesk_dagster.values import Reason, Several, Value

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

OURS = "polydesk"

PLAIN = {
    "missing": "missing",
    "model_type": "not_an_object",
    "model_attributes_type": "not_an_object",
    "dict_type": "not_an_object",
    "list_type": "not_a_list",
    "int_type": "not_whole",
    "int_parsing": "not_whole",
    "int_from_float": "not_whole",
    "float_type": "not_number",
    "float_parsing": "not_number",
    "decimal_type": "not_number",
    "decimal_parsing": "not_number",
    "bool_type": "not_a_flag",
    "bool_parsing": "not_a_flag",
    "string_type": "not_text",
    "path_type": "not_a_path",
    "date_type": "not_iso_date",
    "date_parsing": "not_iso_date",
    "date_from_datetime_parsing": "not_iso_date",
    "datetime_type": "not_an_instant",
    "datetime_parsing": "not_an_instant",
    "datetime_from_date_parsing": "not_an_instant",
    "timezone_aware": "no_offset",
    "string_pattern_mismatch": "other_shape",
    "string_too_short": "too_short",
    "string_too_long": "long",
    "literal_error": "not_foreseen",
    "enum": "not_foreseen",
    "extra_forbidden": "unknown",
    "greater_than_equal": "below",
    "less_than_equal": "above",
}
"""By pydantic's type of error, the rest of ``reason.wire_…``; what is not here is ``not_valid``."""


def stated(code: str, /, **values: Value) -> PydanticCustomError:
    """What a validator raises to be told as ``reason.<code>``."""
    return PydanticCustomError(OURS, code, dict(values))  # pyrefly: ignore[bad-argument-type] - no literal, but one of ours


def bad(code: str, **values: int) -> PydanticCustomError:
    """The same for what the validators of records share, ``reason.wire_<code>``."""
    return stated(f"wire_{code}", **values)


def reason(error: ValidationError) -> Reason:
    """What is wrong, field by field."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False):
        where, what = ".".join(str(step) for step in problem["loc"]), what_is_wrong(problem)
        parts.append(Reason("field_wrong", {"field": where, "what": what}) if where else what)
    return parts[0] if len(parts) == 1 else Reason("fields_wrong", {"problems": Several(tuple(parts))})


def what_is_wrong(problem: ErrorDetails) -> Reason:
    """The same of one problem, the field not named."""
    given = problem.get("ctx", {})
    if problem["type"] == OURS:
        count = given.get("count", 1)
        return Reason(problem["msg"], given, count=count)
    code = PLAIN.get(problem["type"], "not_valid")
    return Reason(f"wire_{code}", {name: given[name] for name in ("ge", "le") if name in given})
