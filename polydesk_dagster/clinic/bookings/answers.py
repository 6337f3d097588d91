"""What a visitor who holds a slot is told: every answer to a request about a hold; said as ``answer.hold.<answer>``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Answer(StrEnum):
    """What became of a request."""

    PLACED = "placed"
    RENEWED = "renewed"
    CONFIRMING = "confirming"
    CONFIRMED = "confirmed"
    RELEASED = "released"

    FULL = "full"
    NOT_OFFERED = "not_offered"
    TOO_SOON = "too_soon"
    TOO_MANY = "too_many"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NO_MORE_RENEWALS = "no_more_renewals"
    SLOT_CLOSED = "slot_closed"
    SERVICE_NOT_OFFERED = "service_not_offered"
    ELSEWHERE = "elsewhere"
    PAID_TOO_LATE = "paid_too_late"
    TOO_LATE_TO_VERIFY = "too_late_to_verify"
    NO_CONTACT = "no_contact"
    NO_LONGER_BOOKED = "no_longer_booked"


DONE = frozenset({Answer.PLACED, Answer.RENEWED, Answer.CONFIRMING, Answer.CONFIRMED, Answer.RELEASED})


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request about one hold."""

    answer: Answer
    hold_id: int | None = None
    expires_at: datetime | None = None
    """Until when the slot is kept, after a placed or renewed hold."""
    appointment_id: int | None = None

    @property
    def done(self) -> bool:
        """Whether what was asked has been done. A hold found released answers RELEASED to any request: compare the
        answer where that matters."""
        return self.answer in DONE
