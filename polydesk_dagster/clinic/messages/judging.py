"""The last look before a message leaves: is what it says still true, may this person be written to, where and how.

Facts come from one query a batch; the judgement itself is pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.kinds import ACTIVATION, KINDS, PREPARATION, REMINDER, VERIFICATION, Channel, Why
from polydesk_dagster.clinic.messages.text import day_in_words, initials, readable_number

ABOUT_APPOINTMENTS = frozenset({REMINDER.key, PREPARATION.key})


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
    service: str | None = None
    sensitive: bool = False
    preparation: str | None = None
    specialist: str | None = None
    location: str | None = None
    verification_expires_at: datetime | None = None
    in_flight: bool = False
    """Whether a message about another start of the same appointment may be on its way right now."""
    told: datetime | None = None
    """The start that the last message that went out told."""
    report_version: int | None = None
    report_withdrawn: bool = False


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
    shared_mobile: bool = False
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


@dataclass(frozen=True, slots=True)
class Withheld:
    """Not to be sent. ``failed``: it should have been and cannot."""

    why: Why
    failed: bool = False
    dropped: tuple[tuple[Item, Why], ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: another message about the same appointment is on its way, or its carrier is not configured."""

    missing: Channel | None = None


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
    sensitive = any(item.sensitive for item in kept)
    neutral = sensitive and message.kind in ABOUT_APPOINTMENTS
    context = _context(message, person, kept, hours, channel=channel, neutral=neutral)
    return Ready(channel, address, person.language, "neutral" if neutral else "plain", context, dropped)


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
    if message.kind not in ABOUT_APPOINTMENTS:
        return None
    if item.status is None:
        return Why.GONE
    if item.status != "booked":
        return Why.CANCELLED
    if item.start_version != item.version:
        return Why.MOVED
    if item.starts_at is None or item.starts_at <= now:
        return Why.PAST
    if message.kind == PREPARATION.key and not item.preparation:
        return Why.NO_PREPARATION
    return Why.ALREADY_TOLD if item.told == item.starts_at else None


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
    """The variables of the text. On a telephone that a family shares only initials are named."""
    anonymous = channel == "sms" and person.shared_mobile
    name = initials(person.first_name, person.last_name) if anonymous else f"{person.first_name} {person.last_name}"
    context: dict[str, Any] = {
        "clinica": message.clinic_name,
        "telefono": readable_number(message.phone) if message.phone else "",
        "nome": name.strip(),
        **message.context,
    }
    first = min((item.starts_at for item in items if item.starts_at), default=None)
    if first is not None:
        context["giorno"] = day_in_words(hours.local_day(first), person.language)
    if message.kind == VERIFICATION.key and items[0].verification_expires_at is not None:
        context["scadenza"] = f"{items[0].verification_expires_at.astimezone(hours.zone):%H:%M}"
    if message.kind in ABOUT_APPOINTMENTS:
        context["appuntamenti"] = [
            _appointment(message, item, hours, neutral) for item in sorted(items, key=lambda item: str(item.starts_at))
        ]
    return context


def _appointment(message: Candidate, item: Item, hours: Hours, neutral: bool) -> dict[str, str]:
    assert item.starts_at is not None
    somebody_else = item.patient_id != message.recipient_id
    shown = {
        "ora": f"{item.starts_at.astimezone(hours.zone):%H:%M}",
        "iniziali": initials(item.first_name or "", item.last_name or "") if somebody_else else "",
        "sede": item.location or "",
    }
    if not neutral:
        shown["prestazione"] = item.service or ""
        shown["specialista"] = item.specialist or ""
        if message.kind == PREPARATION.key:
            shown["preparazione"] = " ".join((item.preparation or "").split())
    return shown


_MOBILE = r"'^\+(393[0-9]{8,9}|[124-9][0-9]{6,14}|3[0-8][0-9]{6,13})$'"
"""What may be a mobile number, seen from SQL: not an Italian landline."""

_PEOPLE = sa.text(rf"""
    WITH m AS (
        SELECT m.id, m.clinic_id, c.code, c.name, c.phone, c.language, m.kind, m.recipient_type, m.recipient_id,
               m.about_day, m.context, m.template_revision, m.attempts, m.refused_channels,
               CAST(m.idempotency_key AS text) AS key, m.address, m.subject, m.body,
               date_trunc('day', CAST(:now AS timestamptz) AT TIME ZONE c.time_zone) AT TIME ZONE c.time_zone AS today
        FROM message m JOIN clinic c ON c.id = m.clinic_id WHERE m.id = ANY (:ids)
    ), person AS (
        SELECT m.id AS message_id, p.first_name, p.last_name, p.language AS speech,
               CASE WHEN p.mobile ~ {_MOBILE} THEN p.mobile WHEN p.phone ~ {_MOBILE} THEN p.phone END AS mobile,
               p.email, p.preferred_channel AS preferred, p.deceased_on IS NOT NULL AS deceased,
               NULL AS user_state,
               EXISTS (SELECT FROM patient o WHERE o.mobile = p.mobile AND o.id <> p.id) AS shared,
               (SELECT array_agg(o.channel || ':' || o.kind) FROM message_opt_out o
                WHERE o.patient_id = p.id) AS refusals
        FROM m JOIN patient p ON p.id = m.recipient_id WHERE m.recipient_type = 'patient'
        UNION ALL
        SELECT m.id, u.display_name, '', m.language, NULL, u.email, 'email', false, u.state, false, NULL
        FROM m JOIN app_user u ON u.id = m.recipient_id WHERE m.recipient_type = 'user'
        UNION ALL
        SELECT m.id, '', '', m.language, CASE WHEN a.contact_phone ~ {_MOBILE} THEN a.contact_phone END,
               a.contact_email, NULL, false, NULL, false, NULL
        FROM m JOIN appointment a ON a.id = m.recipient_id WHERE m.recipient_type = 'booking'
    )
    SELECT m.*, person.*, person.message_id IS NOT NULL AS known,
           (SELECT cause FROM message_block b WHERE b.channel = 'sms' AND b.address = person.mobile) AS sms_blocked,
           (SELECT cause FROM message_block b
            WHERE b.channel = 'email' AND b.address = lower(person.email)) AS email_blocked,
           (SELECT count(*) FROM message t
            WHERE t.recipient_id = m.recipient_id AND t.recipient_type = m.recipient_type AND t.sent_at >= m.today
              AND t.kind = ANY (:capped)) AS told_today
    FROM m LEFT JOIN person ON person.message_id = m.id
    ORDER BY m.id""")

_ITEMS = sa.text("""
    SELECT l.message_id, l.subject, l.subject_id, l.version, l.useful_until,
           a.status, a.start_version, a.starts_at, a.patient_id, p.first_name, p.last_name,
           coalesce(p.deceased_on IS NOT NULL, false) AS deceased, s.name AS service,
           coalesce(s.sensitive, false) AS sensitive, s.preparation,
           concat_ws(' ', sp.title, sp.last_name) AS specialist, lo.name AS location, a.verification_expires_at,
           coalesce(other.in_flight, false) AS in_flight, other.told,
           r.version AS report_version, r.withdrawn_at IS NOT NULL AS report_withdrawn
    FROM message_ledger l
    LEFT JOIN report r ON l.subject = 'report' AND r.id = l.subject_id
    LEFT JOIN appointment a ON l.subject = 'appointment' AND a.id = l.subject_id
    LEFT JOIN patient p ON p.id = a.patient_id
    LEFT JOIN service s ON s.id = a.service_id
    LEFT JOIN specialist sp ON sp.id = a.specialist_id
    LEFT JOIN agenda ag ON ag.id = a.agenda_id
    LEFT JOIN location lo ON lo.id = ag.location_id
    LEFT JOIN LATERAL (
        -- what was or may have been said about other starts of the same appointment
        SELECT bool_or(o.state IN ('claimed', 'unknown')) AS in_flight,
               (array_agg(x.starts_at ORDER BY x.version DESC) FILTER (WHERE o.state = 'sent'))[1] AS told
        FROM message_ledger x JOIN message o ON o.id = x.message_id
        WHERE x.subject_id = l.subject_id AND x.kind = l.kind AND x.version < l.version AND x.subject = l.subject
          AND x.recipient_id = l.recipient_id AND x.recipient_type = l.recipient_type AND x.withheld IS NULL
    ) other ON l.version > 1 AND l.subject = 'appointment'
    WHERE l.message_id = ANY (:ids) AND l.withheld IS NULL
    ORDER BY l.message_id, a.starts_at, l.subject_id""")


def facts(connection: sa.Connection, ids: Sequence[int], now: datetime) -> list[Candidate]:
    """Everything that :func:`judge` needs to know about the messages ``ids``, by id."""
    items: dict[int, list[Item]] = {}
    for row in connection.execute(_ITEMS, {"ids": list(ids)}):
        items.setdefault(row[0], []).append(Item(*row[1:]))
    capped = [kind.key for kind in KINDS.values() if kind.capped]
    rows = connection.execute(_PEOPLE, {"ids": list(ids), "now": now, "capped": capped})
    return [
        Candidate(
            row.id,
            row.clinic_id,
            row.code,
            row.name,
            row.phone,
            row.kind,
            row.recipient_type,
            row.recipient_id,
            row.about_day,
            row.context or {},
            row.template_revision,
            row.attempts,
            frozenset(row.refused_channels),
            row.key,
            row.address,
            row.subject,
            row.body,
            _person(row) if row.known else None,
            tuple(items.get(row.id, ())),
        )
        for row in rows
    ]


def _person(row: Any) -> Person:
    pairs = (refusal.split(":", 1) for refusal in row.refusals or ())
    return Person(
        row.first_name,
        row.last_name,
        row.speech,
        row.mobile,
        row.email,
        row.preferred,
        row.deceased,
        row.user_state,
        row.shared,
        frozenset((channel, kind) for channel, kind in pairs),
        {
            channel: cause
            for channel, cause in (("sms", row.sms_blocked), ("email", row.email_blocked))
            if cause is not None
        },
        row.told_today,
    )
