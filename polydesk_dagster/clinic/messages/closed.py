"""Whom a closure touches is told, with the new place that is proposed, once somebody at the desk has looked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import replacing
from polydesk_dagster.clinic.messages import planning
from polydesk_dagster.clinic.messages.kinds import NOTICE
from polydesk_dagster.clinic.messages.text import day_in_words
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Instant

_WORDS = {
    "it": (
        "{day} alle {time}",
        "il suo appuntamento di {old} non può tenersi: saremo chiusi.",
        " Le proponiamo {new}.",
    ),
    "de": (
        "{day} um {time} Uhr",
        "Ihr Termin am {old} muss ausfallen: Wir haben geschlossen.",
        " Wir schlagen {new} vor.",
    ),
}


@dataclass(frozen=True, slots=True)
class Lost:
    """A booking that a closure has cost its slot; the patient's name is for people with access to the records."""

    appointment_id: int
    clinic: str
    start: Instant
    patient: str
    proposed: Instant | None
    notice: str
    """What its patient will read; it names neither her nor the service."""


_UNTOLD = sa.text("""
    SELECT DISTINCT a.id, coalesce(p.language, c.language) AS language
    FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
    JOIN appointment a ON a.id = t.appointment_id AND a.status = 'booked' AND a.starts_at > :as_of
    JOIN patient p ON p.id = a.patient_id JOIN clinic c ON c.id = a.clinic_id
    WHERE o.cause = 'closure' AND o.state = 'open' AND o.resolved_at IS NULL
      AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
      AND NOT EXISTS (SELECT FROM message_ledger l
                      WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = :kind
                        AND l.version = a.start_version)""")


def untold(connection: sa.Connection, as_of: datetime, clinic: str | None = None) -> list[Lost]:
    """Whose booking a closure touches and who has not been told, soonest first."""
    asked = {"as_of": as_of, "clinic": clinic, "kind": NOTICE.key}
    languages = {row.id: row.language for row in connection.execute(_UNTOLD, asked)}
    if not languages:
        return []
    return [
        _lost(each, languages[each.appointment_id])
        for each in replacing.proposals(connection, 0, as_of)
        if each.appointment_id in languages
    ]


def _lost(touched: replacing.Touched, language: str) -> Lost:
    moment, closed, propose = _WORDS.get(language, _WORDS["it"])

    def said(at: datetime) -> str:
        local = at.astimezone(ZoneInfo(touched.time_zone))
        return moment.format(day=day_in_words(local.date(), language), time=f"{local:%H:%M}")

    notice = closed.format(old=said(touched.starts_at))
    if touched.place is not None:
        notice += propose.format(new=said(touched.place.starts_at))
    return Lost(
        touched.appointment_id,
        touched.clinic,
        Instant(touched.starts_at, touched.time_zone),
        touched.patient,
        Instant(touched.place.starts_at, touched.time_zone) if touched.place is not None else None,
        notice,
    )


def seal(found: Sequence[Lost]) -> str:
    """What stands for all of ``found``, as somebody saw it: another word of one notice makes it another."""
    told = json.dumps([(each.appointment_id, each.notice) for each in found], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


def tell(connection: sa.Connection, seen: Sequence[Lost], as_of: datetime, clinic: str | None = None) -> int:
    """Put into the ledger, once each, the notice of those whom somebody has ``seen``; returns how many.

    Raises:
        PermanentError: where whom it touches, or what would be proposed, is no longer what she saw.
    """
    now = {each.appointment_id: each.notice for each in untold(connection, as_of, clinic)}
    if now != {each.appointment_id: each.notice for each in seen}:
        raise PermanentError("closed_changed", seen=len(seen), now=len(now))
    query = """
        SELECT a.clinic_id, 'appointment' AS subject, a.id AS subject_id, a.start_version AS version,
               'patient' AS recipient_type, a.patient_id AS recipient_id, a.starts_at AS expires_at, w.context
        FROM unnest(CAST(:ids AS bigint[]), CAST(:contexts AS jsonb[])) AS w (id, context)
        JOIN appointment a ON a.id = w.id"""
    given = {"ids": list(now), "contexts": [json.dumps({"avviso": notice}) for notice in now.values()]}
    return planning.enqueue(connection, NOTICE.key, query, given, as_of)
