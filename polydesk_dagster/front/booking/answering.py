"""What the rules answer to a booking, as a status and a problem in the visitor's language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polydesk_dagster.clinic.bookings import answers, appointments, unverified
from polydesk_dagster.front.refusals import problem
from polydesk_dagster.front.wire import Problem, Reference
from polydesk_dagster.told import Teller
from polydesk_dagster.values import Value

AnyAnswer = answers.Answer | appointments.Answer | unverified.Answer

_DOMAINS: tuple[tuple[type[AnyAnswer], str], ...] = (
    (answers.Answer, "hold"),
    (appointments.Answer, "appointment"),
    (unverified.Answer, "booking"),
)

_STATUSES: Mapping[str, int] = {
    "unknown": 404,
    "gone": 410,
    "expired": 410,
    "revoked": 410,
    "released": 410,
    "replaced": 410,
    "used": 410,
    "no_longer_booked": 410,
    "too_many_tries": 410,
    "no_contact": 422,
    "wrong_code": 422,
}
"""Of an answer that is a refusal; any other is a conflict with how things stand: 409."""


def told(t: Teller, answer: AnyAnswer, **values: Value) -> str:
    """An answer of the rules as a sentence for the visitor."""
    domain = next(domain for kind, domain in _DOMAINS if isinstance(answer, kind))
    return t.text(f"answer.{domain}.{answer.value}", **values)


def of_answer(
    t: Teller, answer: AnyAnswer, *, alternatives: Sequence[int] = (), **values: Value
) -> tuple[int, Problem]:
    """What a refusal of the rules is as a problem: its status and body."""
    status = _STATUSES.get(answer.value, 409)
    others = [Reference(reference=f"Slot/{slot}") for slot in alternatives] or None
    return status, problem(status, answer.value, told(t, answer, **values), alternatives=others)
