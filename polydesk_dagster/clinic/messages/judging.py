"""The last look before a message leaves: is what it says still true, may this person be written to, where and how.

The judgement is pure; what it is told comes from ``facts``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.kinds import (
    ABOUT_APPOINTMENTS,
    ACTIVATION,
    ANSWERABLE,
    CANCELLATION,
    CONFIRMATION,
    KINDS,
    NOTICE,
    PLACE,
    PREPARATION,
    REPORT_READY,
    VERIFICATION,
    Channel,
    Why,
)
from polydesk_dagster.clinic.messages.text import day_in_words, initials, readable_number


@dataclass(frozen=True, slots=True)
class Item:
    """One ledger row of a message with what it speaks of as that stands now. A missing record leaves its fields
    None."""

    subject: str
    subject_id: int
    version: int
    useful_until: datetime | None
    status: str | None = None
    start_version: int | None = None
    starts_at: datetime | None = None
    patient_id: int | None = None
    first_name: str | None = None
    last_name: str | None = None
    deceased: bool = False
    suspended: bool = False
    """Whether the source no longer means the person that this patient is: a person decides first."""
    service: str | None = None
    sensitive: bool = False
    """So it was decided, or its name says so and nobody has decided."""
    preparation: str | None = None
    specialist: str | None = None
    location: str | None = None
    verification_expires_at: datetime | None = None
    in_flight: bool = False
    """Whether a message that told this very start may be on its way right now."""
    told: datetime | None = None
    """The start that the last message that went out told."""
    report_version: int | None = None
    report_withdrawn: bool = False
    ends_at: datetime | None = None
    step: int = 0
    resent: int = 0
    lost: bool = False
    """Of a notice: whether the appointment has lost its time."""
    place: int | None = None
    """Of a notice: the hold of the place that is kept for its patient."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who a message is for: a patient, a user, or the contacts of an online booking."""

    first_name: str
    last_name: str
    language: str
    mobile: str | None = None
    """A number that can receive a text; None for a landline."""
    email: str | None = None
    preferred: str | None = None
    deceased: bool = False
    user_state: str | None = None
    shared: frozenset[str] = frozenset()
    """Channels whose address other patients have too."""
    refusals: frozenset[tuple[str, str]] = frozenset()
    """(channel, kind or 'any') that the person does not want."""
    blocked: Mapping[str, str] = field(default_factory=dict)
    """Channels whose address is blocked, with the cause: a STOP, a bounce, a refusal."""
    told_today: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A message that is due, with everything known about it."""

    id: int
    clinic_id: int
    clinic: str
    clinic_name: str
    phone: str | None
    kind: str
    recipient_type: str
    recipient_id: int
    about_day: date | None
    context: Mapping[str, Any]
    template_revision: int
    attempts: int
    refused_channels: frozenset[str]
    key: str | None
    address: str | None
    subject: str | None
    body: str | None
    person: Person | None
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """To be sent so. ``dropped`` ledger rows are left out, each with its reason."""

    channel: Channel
    address: str
    language: str
    variant: str
    context: dict[str, Any]
    dropped: tuple[tuple[Item, Why], ...] = ()
    items: tuple[Item, ...] = ()
    """What it tells."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """Not to be sent. ``failed``: it should have been and cannot."""

    why: Why
    failed: bool = False
    dropped: tuple[tuple[Item, Why], ...] = ()
    text: tuple[str, Channel, str] | None = None
    """(variant, channel, language) of the text that could not be written."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: a message that told the same start is on its way or in doubt, its carrier is not configured, or it is
    not sure who the patient is."""

    missing: Channel | None = None
    suspended: bool = False


Verdict = Ready | Withheld | Wait


def judge(
    message: Candidate, hours: Hours, now: datetime, configured: frozenset[str], told_in_this_batch: int = 0
) -> Verdict:
    """What is to be done with ``message`` at ``now``."""
    kind = KINDS[message.kind]
    if any(item.in_flight for item in message.items):
        return Wait()
    dropped = tuple((item, why) for item in message.items if (why := _untrue(message, item, now)))
    out = {id(item) for item, _ in dropped}
    kept = [item for item in message.items if id(item) not in out]
    if not kept:
        return Withheld(dropped[0][1] if dropped else Why.GONE)
    if any(item.suspended for item in kept):
        return Wait(suspended=True)
    person = message.person
    if person is None:
        return Withheld(Why.GONE, dropped=dropped)
    if person.deceased:
        return Withheld(Why.DECEASED, dropped=dropped)
    if kind.capped and person.told_today + told_in_this_batch >= hours.person_daily_cap:
        return Withheld(Why.PERSON_CAP, dropped=dropped)
    place = _channel(message, person)
    if not isinstance(place, tuple):
        return Withheld(place, failed=place is Why.REFUSED, dropped=dropped)
    channel, address = place
    if channel not in configured:
        return Wait(channel)
    # On an address that a family shares a reminder needs no service; a preparation has to say what to do.
    cautious = any(item.sensitive for item in kept) or (channel in person.shared and message.kind != PREPARATION.key)
    neutral = cautious and message.kind in ABOUT_APPOINTMENTS
    context = _context(message, person, kept, hours, channel=channel, neutral=neutral)
    return Ready(channel, address, person.language, "neutral" if neutral else "plain", context, dropped, tuple(kept))


def by_mail(
    message: Candidate,
    ready: Ready,
    hours: Hours,
    now: datetime,
    configured: frozenset[str],
    told_in_this_batch: int = 0,
) -> Ready | None:
    """The same message by e-mail, where ``ready`` is a text and that is possible."""
    if ready.channel != "sms":
        return None
    without = replace(message, refused_channels=message.refused_channels | {"sms"})
    verdict = judge(without, hours, now, configured, told_in_this_batch)
    return verdict if isinstance(verdict, Ready) else None


def _untrue(message: Candidate, item: Item, now: datetime) -> Why | None:
    """Why ``item`` is not, or no longer, to be told."""
    if item.useful_until is not None and item.useful_until <= now:
        return Why.PAST if item.starts_at is not None and item.starts_at <= now else Why.TOO_LATE
    if message.kind == ACTIVATION.key:
        state = message.person.user_state if message.person else None
        return None if state in {"never_invited", "invited"} else Why.ACCOUNT
    if message.kind == VERIFICATION.key:
        return None if item.status == "unverified" else Why.VERIFIED
    if item.subject == "report" and item.report_version is None:
        return Why.GONE
    if item.report_withdrawn or item.report_version not in (None, item.version):
        return Why.REPORT_WITHDRAWN
    if item.deceased:
        return Why.DECEASED
    of_appointment = message.kind == NOTICE.key and item.subject == "appointment"
    if message.kind not in ABOUT_APPOINTMENTS and not of_appointment:
        return None
    if item.status is None:
        return Why.GONE
    if message.kind == CANCELLATION.key:
        return None if item.status == "cancelled" else Why.NOT_CANCELLED
    if item.status != "booked":
        return Why.CANCELLED
    if item.start_version != item.version:
        return Why.MOVED
    if item.starts_at is None or item.starts_at <= now:
        return Why.PAST
    if of_appointment and PLACE in message.context:
        if not item.lost:
            return Why.NOT_LOST
        if message.context[PLACE] not in (None, item.place):
            return Why.PLACE_OVER
    if message.kind == PREPARATION.key and not item.preparation:
        return Why.NO_PREPARATION
    told_now = message.kind != CONFIRMATION.key and item.told == item.starts_at
    return Why.ALREADY_TOLD if told_now else None


def _channel(message: Candidate, person: Person) -> tuple[Channel, str] | Why:
    """The first channel on which this person can and may be written to, or why there is none."""
    kind = KINDS[message.kind]
    unwanted = False
    for channel in sorted(kind.channels, key=lambda channel: channel != (person.preferred or "sms")):
        address = person.mobile if channel == "sms" else person.email
        if address is None or channel in message.refused_channels:
            continue
        if channel in person.blocked:
            unwanted = unwanted or person.blocked[channel] == "stop"
            continue
        if kind.refusable and person.refusals & {(channel, kind.key), (channel, "any")}:
            unwanted = True
            continue
        if channel == "sms" and not can_receive_texts(address):
            continue
        return channel, address
    if unwanted:
        return Why.OPTED_OUT
    return Why.REFUSED if message.refused_channels else Why.NO_ADDRESS


_ITALIAN_MOBILE = re.compile(r"\+393[0-9]{8,9}")


def can_receive_texts(number: str) -> bool:
    """Whether an E.164 number may be a mobile: landlines and nonsense are not written to."""
    if _ITALIAN_MOBILE.fullmatch(number):
        return True
    if number.startswith("+39"):
        return False
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return False
    mobile = {phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE}
    return phonenumbers.is_valid_number(parsed) and phonenumbers.number_type(parsed) in mobile


def _context(
    message: Candidate, person: Person, items: Sequence[Item], hours: Hours, *, channel: Channel, neutral: bool
) -> dict[str, Any]:
    """The variables of the text. On an address that a family shares only initials are named."""
    anonymous = channel in person.shared
    name = initials(person.first_name, person.last_name) if anonymous else f"{person.first_name} {person.last_name}"
    context: dict[str, Any] = {
        "clinica": message.clinic_name,
        "telefono": readable_number(message.phone) if message.phone else "",
        "nome": name.strip(),
        **({"risposte": False, "collegamento": ""} if message.kind in ANSWERABLE else {}),
        **({"collegamento": ""} if message.kind == NOTICE.key else {}),
        **message.context,
    }
    first = min((item.starts_at for item in items if item.starts_at), default=None)
    if first is not None:
        context["giorno"] = day_in_words(hours.local_day(first), person.language)
    if message.kind == VERIFICATION.key and items[0].verification_expires_at is not None:
        context["scadenza"] = f"{items[0].verification_expires_at.astimezone(hours.zone):%H:%M}"
    if message.kind == REPORT_READY.key:
        context["iniziali"] = next(iter(_who(message, items).values()), "")
    if message.kind == CONFIRMATION.key:
        context["spostato"] = any(item.version > 1 for item in items)
    if message.kind in ABOUT_APPOINTMENTS:
        who = _who(message, items)
        context["appuntamenti"] = [
            _appointment(message, item, hours, neutral, who)
            for item in sorted(items, key=lambda item: (str(item.starts_at), item.subject_id))
        ]
    return context


def _who(message: Candidate, items: Sequence[Item]) -> dict[int | None, str]:
    """How each patient who is not the recipient is called: initials, or the first name and an initial where two have
    the same."""
    people = {
        item.patient_id: (item.first_name or "", item.last_name or "")
        for item in items
        if item.patient_id != message.recipient_id
    }
    short = {number: initials(*names) for number, names in people.items()}
    twice = {called for called, times in Counter(short.values()).items() if times > 1}
    return {
        number: f"{people[number][0]} {initials('', people[number][1])}".strip() if called in twice else called
        for number, called in short.items()
    }


def _appointment(
    message: Candidate, item: Item, hours: Hours, neutral: bool, who: Mapping[int | None, str]
) -> dict[str, str]:
    assert item.starts_at is not None
    shown = {
        "ora": f"{item.starts_at.astimezone(hours.zone):%H:%M}",
        "iniziali": who.get(item.patient_id, ""),
        "sede": item.location or "",
    }
    if not neutral:
        shown["prestazione"] = item.service or ""
        shown["specialista"] = item.specialist or ""
        if message.kind == PREPARATION.key:
            shown["preparazione"] = " ".join((item.preparation or "").split())
    return shown
