"""Orphans as the desk works through them: whose booking has lost its place, and what was agreed with the patient."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.calendar.orphans import IN_USE, SAID, SEATED, WORK
from polydesk_dagster.values import Instant


@dataclass(frozen=True, slots=True)
class Orphan:
    """A booking whose slot the rules no longer produce. Names and telephones are for people with access to the
    records; they are empty for a slot that only a hold keeps."""

    id: int
    clinic: str
    agenda: str
    at: Instant
    cause: str
    closure: str | None
    state: str
    """``open`` or ``contacted``."""
    appointment_id: int | None
    patient_id: int | None
    patient: str
    phones: tuple[str, ...]
    service: str
    offer: Literal["waiting", "declined", "unanswered"] | None = None
    """Whether a new place is kept for the patient and waits for her answer, or she does not want it, or has let it go
    by."""


def orphans(connection: sa.Connection, as_of: datetime, limit: int) -> list[Orphan]:
    """What the desk still has to settle, soonest first: a booking once, however many of its slots are lost."""
    rows = connection.execute(
        sa.text(f"""
            SELECT o.id, c.code, g.name, o.starts_at, c.time_zone, o.cause, k.name, o.said, a.id, p.id,
                   concat_ws(' ', p.first_name, p.last_name),
                   array_remove(ARRAY[p.mobile, p.phone, a.contact_phone], NULL), coalesce(v.name, ''), h.offer
            FROM (SELECT DISTINCT ON ({WORK}) o.*, s.starts_at, s.agenda_id, t.appointment_id, {SAID} AS said
                  FROM orphan o JOIN slot s ON s.id = o.slot_id {SEATED}
                  WHERE o.resolved_at IS NULL AND {SAID} <> 'kept' AND s.starts_at > :as_of AND {IN_USE}
                  ORDER BY {WORK}, s.starts_at) o
            JOIN agenda g ON g.id = o.agenda_id JOIN clinic c ON c.id = g.clinic_id
            LEFT JOIN closure k ON k.id = o.closure_id LEFT JOIN appointment a ON a.id = o.appointment_id
            LEFT JOIN patient p ON p.id = a.patient_id LEFT JOIN service v ON v.id = a.service_id
            LEFT JOIN LATERAL (SELECT CASE WHEN h.ended_at IS NULL AND h.expires_at > :as_of THEN 'waiting'
                                           WHEN h.state = 'expired' AND h.ended_at < h.expires_at THEN 'declined'
                                           WHEN h.state <> 'released' THEN 'unanswered' END AS offer
                               FROM hold h WHERE h.offered_to = a.id AND h.created_at >= o.detected_at
                               ORDER BY h.id DESC LIMIT 1) h ON true
            ORDER BY o.starts_at, o.id, a.id LIMIT :limit"""),
        {"as_of": as_of, "limit": limit},
    )
    return [
        Orphan(
            number,
            code,
            agenda,
            Instant(at, zone),
            cause,
            closure,
            state,
            appointment,
            patient,
            name,
            tuple(dict.fromkeys(to)),
            what,
            offer,
        )
        for number, code, agenda, at, zone, cause, closure, state, appointment, patient, name, to, what, offer in rows
    ]


_NOTE = sa.text(f"""
    INSERT INTO orphan_word (orphan_id, appointment_id, state, said_at)
    SELECT o.id, t.appointment_id, :state, :as_of
    FROM seat t JOIN orphan o ON o.slot_id = t.slot_id AND o.resolved_at IS NULL
    JOIN slot s ON s.id = t.slot_id JOIN agenda g ON g.id = s.agenda_id JOIN clinic c ON c.id = g.clinic_id
    WHERE t.appointment_id = :appointment AND c.code = :clinic AND {SAID} <> 'kept'
      AND EXISTS (SELECT FROM seat n JOIN orphan l ON l.slot_id = n.slot_id
                  WHERE n.appointment_id = :appointment AND l.id = :orphan AND l.resolved_at IS NULL)
    ORDER BY o.id
    ON CONFLICT (orphan_id, appointment_id) DO UPDATE SET state = EXCLUDED.state, said_at = EXCLUDED.said_at""")

_NOTE_SLOT = sa.text("""
    UPDATE orphan o SET state = :state FROM slot s, agenda g, clinic c
    WHERE o.id = :orphan AND o.state IN ('open', 'contacted') AND o.resolved_at IS NULL
      AND s.id = o.slot_id AND g.id = s.agenda_id AND c.id = g.clinic_id AND c.code = :clinic""")


def note(
    connection: sa.Connection,
    orphan: int,
    appointment: int | None,
    state: str,
    *,
    clinic: str,
    actor: str,
    as_of: datetime,
) -> bool:
    """Write down what the desk agreed about one booking: ``contacted`` (the patient answers later) or ``kept`` (the
    visit takes place all the same), of all slots that it has lost; of a slot without a booking, where ``appointment``
    is None. Returns False where the clinic has no such open orphan."""
    given = {"orphan": orphan, "appointment": appointment, "state": state, "clinic": clinic, "as_of": as_of}
    changed = connection.execute(_NOTE_SLOT if appointment is None else _NOTE, given)
    if not changed.rowcount:
        return False
    detail = {"orphan": orphan, "appointment": appointment, "state": state}
    audit.append(
        connection, as_of=as_of, actor=actor, action="orphan", service="calendar", clinic=clinic, detail=detail
    )
    return True
