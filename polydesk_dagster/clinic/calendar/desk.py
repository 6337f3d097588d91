"""Orphans as the desk works through them: whose booking has lost its place, and what was agreed with the patient."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.calendar.orphans import IN_USE, SEATED, WORK
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
    offer: Literal["waiting", "unanswered"] | None = None
    """Whether a new place is kept for the patient and waits for her answer, or she has let it go by."""


def orphans(connection: sa.Connection, as_of: datetime, limit: int) -> list[Orphan]:
    """What the desk still has to settle, soonest first: a booking once, however many of its slots are lost."""
    rows = connection.execute(
        sa.text(f"""
            SELECT o.id, c.code, g.name, o.starts_at, c.time_zone, o.cause, k.name, o.state, a.id, p.id,
                   concat_ws(' ', p.first_name, p.last_name),
                   array_remove(ARRAY[p.mobile, p.phone, a.contact_phone], NULL), coalesce(v.name, ''), h.offer
            FROM (SELECT DISTINCT ON ({WORK}) o.*, s.starts_at, s.agenda_id, t.appointment_id
                  FROM orphan o JOIN slot s ON s.id = o.slot_id {SEATED}
                  WHERE o.state IN ('open', 'contacted') AND o.resolved_at IS NULL AND s.starts_at > :as_of AND {IN_USE}
                  ORDER BY {WORK}, s.starts_at) o
            JOIN agenda g ON g.id = o.agenda_id JOIN clinic c ON c.id = g.clinic_id
            LEFT JOIN closure k ON k.id = o.closure_id LEFT JOIN appointment a ON a.id = o.appointment_id
            LEFT JOIN patient p ON p.id = a.patient_id LEFT JOIN service v ON v.id = a.service_id
            LEFT JOIN LATERAL (SELECT CASE WHEN h.ended_at IS NULL AND h.expires_at > :as_of THEN 'waiting'
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


def note(connection: sa.Connection, orphan: int, state: str, *, clinic: str, actor: str, as_of: datetime) -> bool:
    """Write down what the desk agreed: ``contacted`` (the patient answers later) or ``kept`` (the visit takes place all
    the same), of all slots that the booking has lost. Returns False where the clinic has no such open orphan."""
    changed = connection.execute(
        sa.text("""
            UPDATE orphan o SET state = :state FROM slot s, agenda g, clinic c
            WHERE o.slot_id IN (SELECT n.slot_id FROM orphan n WHERE n.id = :orphan
                                UNION SELECT other.slot_id FROM orphan n JOIN seat t ON t.slot_id = n.slot_id
                                JOIN seat other ON other.appointment_id = t.appointment_id WHERE n.id = :orphan)
              AND o.state IN ('open', 'contacted') AND o.resolved_at IS NULL
              AND s.id = o.slot_id AND g.id = s.agenda_id AND c.id = g.clinic_id AND c.code = :clinic"""),
        {"orphan": orphan, "state": state, "clinic": clinic},
    )
    if not changed.rowcount:
        return False
    detail = {"orphan": orphan, "state": state}
    audit.append(
        connection, as_of=as_of, actor=actor, action="orphan", service="calendar", clinic=clinic, detail=detail
    )
    return True
