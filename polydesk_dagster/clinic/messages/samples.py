"""What the texts look like on real appointments, with the people's names masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours, judging, planning, templates
from polydesk_dagster.clinic.messages.facts import facts
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import Candidate, Ready
from polydesk_dagster.clinic.messages.kinds import ABOUT_APPOINTMENTS, CHANNELS, Channel
from polydesk_dagster.clinic.messages.sandbox import BrokenTemplateError
from polydesk_dagster.clinic.messages.templates import Need, Shelf, Text
from polydesk_dagster.clinic.messages.text import Segments, segments
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Reason


@dataclass(frozen=True, slots=True)
class Sample:
    """One text as one patient would get it. ``problem`` instead, where it cannot be written."""

    clinic: str
    channel: Channel
    subject: str | None
    body: str
    size: Segments | None
    problem: Reason | None = None


def samples(connection: sa.Connection, kind: str, as_of: datetime, clinic: str | None, many: int = 3) -> list[Sample]:
    """The next appointments' texts of ``kind`` ('reminder' or 'preparation') over every channel; nothing is kept.

    Raises:
        PermanentError: where no active clinic has that code.
    """
    shelf = Shelf.load(connection)
    found = []
    for message, hours_of in _next(connection, kind, as_of, clinic, many):
        for channel in CHANNELS:
            masked = _masked(message, channel)
            verdict = judging.judge(masked, hours_of, as_of, frozenset(CHANNELS))
            if isinstance(verdict, Ready):
                found.append(_sample(masked, verdict, shelf.find(_need(masked, verdict))))
    return found


def of_draft(
    connection: sa.Connection,
    kind: str,
    variant: str,
    channel: Channel,
    language: str,
    text: Text,
    as_of: datetime,
    clinic: str | None,
    many: int = 3,
) -> list[Sample]:
    """``text``, which is nowhere in force, as the next appointments' patients would get it; for a kind that is about
    no appointment, on an invented example. Nothing is kept.

    Raises:
        PermanentError: where no active clinic has that code.
    """
    if kind not in ABOUT_APPOINTMENTS:
        example = Ready(channel, "", language, variant, dict(templates.example(kind, variant)))
        return [_written(clinic or "", example, text)]
    found = []
    for message, hours_of in _next(connection, kind, as_of, clinic, many):
        masked = _masked(message, channel, language)
        items = tuple(replace(item, sensitive=variant == "neutral") for item in masked.items)
        verdict = judging.judge(replace(masked, items=items), hours_of, as_of, frozenset(CHANNELS))
        if isinstance(verdict, Ready):
            found.append(_sample(masked, verdict, text))
    return found


def _next(
    connection: sa.Connection, kind: str, as_of: datetime, clinic: str | None, many: int
) -> list[tuple[Candidate, Hours]]:
    """The next messages of ``kind`` with their clinics' hours, worked out in a transaction that is rolled back."""
    clinics = {each.clinic_id: each for each in hours.load(connection, as_of, clinic)}
    if not clinics:
        raise PermanentError("message_unknown_clinic", code=clinic)
    attempt = connection.begin_nested()
    try:
        ids = _as_if_due(connection, kind, as_of, list(clinics), many)
        return [(message, clinics[message.clinic_id]) for message in facts(connection, ids, as_of)]
    finally:
        attempt.rollback()


def _as_if_due(connection: sa.Connection, kind: str, as_of: datetime, clinics: list[int], many: int) -> list[int]:
    """Messages for the next appointments, as if nobody had been told yet."""
    chosen = connection.scalars(
        sa.text("""
            SELECT a.id FROM appointment a JOIN service s ON s.id = a.service_id
            WHERE a.clinic_id = ANY (:clinics) AND a.status = 'booked' AND a.starts_at > :as_of
              AND (:kind <> 'preparation' OR s.preparation IS NOT NULL)
            ORDER BY a.starts_at, a.id LIMIT :many"""),
        {"clinics": clinics, "as_of": as_of, "kind": kind, "many": many},
    ).all()
    connection.execute(
        sa.text("""DELETE FROM message_ledger
                   WHERE subject = 'appointment' AND subject_id = ANY (:ids) AND kind = :kind"""),
        {"ids": list(chosen), "kind": kind},
    )
    before = connection.scalar(sa.text("SELECT coalesce(max(id), 0) FROM message"))
    planning.enqueue(
        connection,
        kind,
        """SELECT clinic_id, 'appointment' AS subject, id AS subject_id, start_version AS version,
                  'patient' AS recipient_type, patient_id AS recipient_id, starts_at AS expires_at,
                  CAST(NULL AS jsonb) AS context
           FROM appointment WHERE id = ANY (:ids)""",
        {"ids": list(chosen)},
        as_of,
    )
    return list(connection.scalars(sa.text("SELECT id FROM message WHERE id > :before"), {"before": before}))


def _masked(message: Candidate, channel: Channel, language: str | None = None) -> Candidate:
    """The same message for somebody with initials only, who can be reached on ``channel`` alone, and reads
    ``language``."""
    if message.person is None:
        return message
    person = replace(
        message.person,
        first_name=f"{message.person.first_name[:1]}.",
        last_name=f"{message.person.last_name[:1]}.",
        mobile="+393330000000" if channel == "sms" else None,
        email="nessuno@example.org" if channel == "email" else None,
        refusals=frozenset(),
        blocked={},
        shared=frozenset(),
        told_today=0,
        language=language or message.person.language,
    )
    return replace(message, person=person)


def _need(message: Candidate, ready: Ready) -> Need:
    return Need(
        message.kind, ready.variant, ready.channel, ready.language, message.clinic_id, message.template_revision
    )


def _sample(message: Candidate, ready: Ready, template: Text | None) -> Sample:
    if template is None:
        return Sample(message.clinic, ready.channel, None, "", None, Reason("template_missing"))
    return _written(message.clinic, ready, template)


def _written(clinic: str, ready: Ready, template: Text) -> Sample:
    try:
        text = templates.write(template.subject, template.body, ready.context)
    except BrokenTemplateError as error:
        return Sample(clinic, ready.channel, None, "", None, Reason(error.code, {"value": error.value}))
    size = segments(text.body) if ready.channel == "sms" else None
    return Sample(clinic, ready.channel, text.subject, text.body, size)
