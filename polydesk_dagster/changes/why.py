"""Why a row is what it is: reasons that SQL makes, kept as text, and read again, also from before they had codes."""

from __future__ import annotations

import json
import re

from polydesk_dagster.values import SAID, Reason, mapping_from_json, to_json

# Of one word alone nobody could tell whether it is a code or was written before there were any.
_CODE = re.compile(r"[a-z]+(_[a-z0-9]+)+")


def why(code: str, /, **values: str) -> str:
    """SQL for the reason ``code`` as text; ``values`` are SQL expressions, texts or the JSON of typed values."""
    if not values and _CODE.fullmatch(code):
        return f"'{code}'"
    given = ", ".join(f"'{name}', {expression}" for name, expression in values.items())
    return f"CAST(jsonb_build_object('code', '{code}', 'values', jsonb_build_object({given})) AS text)"


def nested(code: str, /, **values: str) -> str:
    """SQL for a reason among the values of ``why``."""
    return f"jsonb_build_object('reason', CAST({why(code, **values)} AS jsonb))"


def money(amount: str, currency: str = "'EUR'") -> str:
    """SQL for an amount among the values of ``why``."""
    return f"jsonb_build_object('money', CAST({amount} AS text), 'currency', {currency})"


def day(expression: str) -> str:
    """SQL for a date among the values of ``why``."""
    return f"jsonb_build_object('date', CAST({expression} AS text))"


def term(domain: str, expression: str) -> str:
    """SQL for one of a closed list among the values of ``why``."""
    return f"jsonb_build_object('term', {expression}, 'domain', '{domain}')"


def kept(reason: Reason) -> str:
    """``reason`` as a text column holds it."""
    if not reason.values and reason.count == 1 and _CODE.fullmatch(reason.code):
        return reason.code
    counted = {} if reason.count == 1 else {"count": reason.count}
    return json.dumps({"code": reason.code, "values": to_json(reason.values)} | counted, ensure_ascii=False)


def read(text: str | None) -> Reason | None:
    """The reason that a text column holds; what was written before there were codes is its own sentence."""
    if text is None:
        return None
    if text.startswith('{"'):
        found = json.loads(text)
        return Reason(found["code"], mapping_from_json(found["values"]), count=found.get("count", 1))
    return Reason(text) if _CODE.fullmatch(text) else Reason("as_written", {SAID: text})
