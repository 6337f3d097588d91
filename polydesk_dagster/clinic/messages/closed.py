"""Whose appointment has lost its time is told, with the new place that is kept for her, once the desk has looked; of a
place that is kept later she is told by a notice of its own. Nobody is told twice of one loss, nor of one place."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import replacing
from polydesk_dagster.clinic.calendar.orphans import SAID
from polydesk_dagster.clinic.messages import planning
from polydesk_dagster.clinic.messages.kinds import NOTICE, OFFER, PLACE, Why
from polydesk_dagster.clinic.messages.text import day_in_words
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Instant

_WORDS = {
    "it": (
        "{day} alle {time}",
        "il suo appuntamento di {old} non può tenersi{why}.",
        ": saremo chiusi",
        " Le teniamo un posto {new}, fino a {until}.",
        "per il suo appuntamento di {old}, che non può tenersi, le teniamo un posto {new}, fino a {until}.",
    ),
    "de": (
        "{day} um {time} Uhr",
        "Ihr Termin am {old} muss ausfallen{why}.",
        ": Wir haben geschlossen",
        " Wir halten Ihnen {new} frei, bis {until}.",
        "für Ihren Termin am {old}, der ausfallen muss, halten wir Ihnen {new} frei, bis {until}.",
    ),
}


@dataclass(frozen=True, slots=True)
class Lost:
    """A booking that has lost its slot; the patient's name is for people with access to the records."""

    appointment_id: int
    clinic: str
    start: Instant
    patient: str
    proposed: Instant | None
    notice: str
    """What its patient will read; it names neither her nor the service."""
    step: int
    """How many notices of this loss there were before."""
    place: int | None
    """The hold of the place that is kept for her."""


# What was withheld because the loss or the place was over has told nobody anything.
_UNTOLD = sa.text(f"""
    SELECT a.id, c.code, coalesce(p.language, c.language) AS language,
           bool_or(o.cause = 'closure' AND shut.layer IS DISTINCT FROM 'agenda') AS closed,
           k.told OR NOT bool_or({SAID} = 'open') AS told, k.entries AS step, h.id AS place,
           CASE WHEN there.id <> g.location_id THEN there.name END AS location
    FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
    JOIN appointment a ON a.id = t.appointment_id AND a.status = 'booked' AND a.starts_at > :as_of
    JOIN patient p ON p.id = a.patient_id JOIN clinic c ON c.id = a.clinic_id
    LEFT JOIN closure shut ON shut.id = o.closure_id
    LEFT JOIN hold h ON h.offered_to = a.id AND h.ended_at IS NULL AND h.expires_at > :as_of
    LEFT JOIN agenda g ON g.id = a.agenda_id LEFT JOIN slot s ON s.id = h.slot_id
    LEFT JOIN agenda other ON other.id = s.agenda_id LEFT JOIN location there ON there.id = other.location_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS entries,
               count(*) FILTER (WHERE coalesce(m.reason, '') NOT IN ('{Why.NOT_LOST}', '{Why.PLACE_OVER}')) > 0 AS told,
               coalesce(bool_or(CASE WHEN m.context ? '{PLACE}' THEN CAST(m.context ->> '{PLACE}' AS bigint) = h.id
                                     ELSE m.context ? '{OFFER}' END), false) AS of_place
        FROM message_ledger l LEFT JOIN message m ON m.id = l.message_id
        WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = :kind AND l.version = a.start_version
          AND l.resent = 0) k
    WHERE o.resolved_at IS NULL AND {SAID} <> 'kept'
      AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
    GROUP BY a.id, p.id, c.id, h.id, g.location_id, there.id, k.entries, k.told, k.of_place
    HAVING NOT k.told AND bool_or({SAID} = 'open') OR h.id IS NOT NULL AND NOT k.of_place""")


def untold(connection: sa.Connection, as_of: datetime, clinic: str | None = None) -> list[Lost]:
    """Whose booking has lost its time and who has not been told, of that or of the place that has been kept for her
    since, soonest first. A place is proposed where one is kept: of any other somebody else may have it by then."""
    asked = {"as_of": as_of, "clinic": clinic, "kind": NOTICE.key}
    found = {row.id: row for row in connection.execute(_UNTOLD, asked)}
    if not found:
        return []
    touched = replacing.proposals(connection, 0, as_of, found.keys())
    return [_lost(each, found[each.appointment_id]) for each in touched]


def waiting(connection: sa.Connection, as_of: datetime) -> Counter[str]:
    """How many have lost their time and were not told, by clinic code."""
    asked = {"as_of": as_of, "clinic": None, "kind": NOTICE.key}
    return Counter(row.code for row in connection.execute(_UNTOLD, asked))


def _lost(touched: replacing.Touched, row: sa.Row[Any]) -> Lost:
    language = row.language
    moment, lost, closed, propose, later = _WORDS.get(language, _WORDS["it"])
    place = touched.place if touched.place is not None and touched.place.until is not None else None

    def said(at: datetime) -> str:
        local = at.astimezone(ZoneInfo(touched.time_zone))
        return moment.format(day=day_in_words(local.date(), language), time=f"{local:%H:%M}")

    old = said(touched.starts_at)
    notice = "" if row.told else lost.format(old=old, why=closed if row.closed else "")
    if place is not None and place.until is not None:
        words = later if row.told else propose
        where = f" ({row.location})" if row.location else ""
        notice += words.format(old=old, new=said(place.starts_at) + where, until=said(place.until))
    return Lost(
        touched.appointment_id,
        touched.clinic,
        Instant(touched.starts_at, touched.time_zone),
        touched.patient,
        None if place is None else Instant(place.starts_at, touched.time_zone),
        notice,
        row.step,
        None if place is None else row.place,
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
    found = untold(connection, as_of, clinic)
    now = {each.appointment_id: each.notice for each in found}
    if now != {each.appointment_id: each.notice for each in seen}:
        raise PermanentError("closed_changed", seen=len(seen), now=len(now))
    query = """
        SELECT a.clinic_id, 'appointment' AS subject, a.id AS subject_id, a.start_version AS version,
               'patient' AS recipient_type, a.patient_id AS recipient_id, w.context, w.step,
               least(a.starts_at, (SELECT h.expires_at FROM hold h WHERE h.offered_to = a.id AND h.ended_at IS NULL))
                   AS expires_at
        FROM unnest(CAST(:ids AS bigint[]), CAST(:contexts AS jsonb[]), CAST(:steps AS integer[]))
             AS w (id, context, step)
        JOIN appointment a ON a.id = w.id"""
    contexts = [
        {"avviso": each.notice, PLACE: each.place} | ({OFFER: True} if each.place is not None else {}) for each in found
    ]
    given = {
        "ids": list(now),
        "contexts": [json.dumps(context) for context in contexts],
        "steps": [each.step for each in found],
    }
    return planning.enqueue(connection, NOTICE.key, query, given, as_of, step="asked.step")
