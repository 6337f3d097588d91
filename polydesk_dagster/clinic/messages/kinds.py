"""The kinds of message, and the closed list of reasons for which one is not sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Channel = Literal["sms", "email"]
CHANNELS: tuple[Channel, ...] = ("sms", "email")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of message."""

    key: str
    channels: tuple[Channel, ...] = CHANNELS
    any_hour: bool = False
    """Whether it may go out in quiet hours and on rest days: somebody is waiting for it."""
    refusable: bool = True
    """Whether a patient's opt-out for it counts; a STOP to a number always does."""
    capped: bool = True
    """Whether it counts towards, and is held by, the daily cap of a person."""


REMINDER = Kind("reminder")
PREPARATION = Kind("preparation")
ACTIVATION = Kind("activation", channels=("email",), any_hour=True, capped=False)
VERIFICATION = Kind("verification_nudge", any_hour=True, capped=False)
REPORT_READY = Kind("report_ready")
CONFIRMATION = Kind("confirmation", any_hour=True, capped=False)
NOTICE = Kind("service_notice", refusable=False, capped=False)
OFFER = "offerta"
"""The value in a notice's context that says that a place is kept for its reader, who takes it by the link."""
PLACE = "posto"
"""The value in a notice's context that says that it is about a lost time: the hold of the place that is kept for its
reader, or null."""
QUESTION = Kind("cancel_question", channels=("sms",), any_hour=True, refusable=False, capped=False)
"""Whether somebody who answered «2» really wants to cancel."""
CANCELLATION = Kind("cancellation", any_hour=True, refusable=False, capped=False)

KINDS: dict[str, Kind] = {
    kind.key: kind
    for kind in (
        *(REMINDER, PREPARATION, CONFIRMATION, ACTIVATION, VERIFICATION, REPORT_READY, NOTICE, QUESTION, CANCELLATION),
    )
}
ABOUT_APPOINTMENTS = frozenset({REMINDER.key, PREPARATION.key, CONFIRMATION.key, QUESTION.key, CANCELLATION.key})
ANSWERABLE = (REMINDER.key, PREPARATION.key, CONFIRMATION.key, QUESTION.key)
"""Kinds of text that «1» and «2» answer."""
ANSWERING = (QUESTION.key, CANCELLATION.key)
"""Kinds for which somebody waits with the telephone in the hand: sent at once."""
PASSING = (CONFIRMATION.key, VERIFICATION.key, REPORT_READY.key, NOTICE.key, ACTIVATION.key, *ANSWERING)
"""Kinds that other parts of Polydesk put in the ledger, and what of them is to be tried again; whichever dispatcher
comes by first sends them."""


class Why(StrEnum):
    """Why a message was withheld or failed."""

    CANCELLED = "cancelled"
    NOT_CANCELLED = "not_cancelled"
    NOT_LOST = "not_lost"
    PLACE_OVER = "place_over"
    MOVED = "moved"
    PAST = "past"
    TOO_LATE = "too_late"
    QUIET_HOURS = "quiet_hours"
    JUST_BOOKED = "just_booked"
    ALREADY_TOLD = "already_told"
    NO_PREPARATION = "no_preparation"
    DECEASED = "deceased"
    GONE = "gone"
    OPTED_OUT = "opted_out"
    NO_ADDRESS = "no_address"
    PERSON_CAP = "person_cap"
    TEMPLATE = "template"
    VERIFIED = "verified"
    REPORT_WITHDRAWN = "report_withdrawn"
    ACCOUNT = "account"
    REFUSED = "refused"
    EXHAUSTED = "exhausted"
    OPERATOR = "operator"


TO_CALL: dict[str, tuple[Why, ...]] = {
    REMINDER.key: (
        Why.NO_ADDRESS,
        Why.TOO_LATE,
        Why.QUIET_HOURS,
        Why.REFUSED,
        Why.EXHAUSTED,
        Why.TEMPLATE,
        Why.PERSON_CAP,
        Why.DECEASED,
        Why.GONE,
    ),
}
"""Why somebody has to telephone, of an appointment that lives: nobody was told, and not because nobody wanted to be."""
TO_CALL[PREPARATION.key] = (*TO_CALL[REMINDER.key], Why.OPTED_OUT)
