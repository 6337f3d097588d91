"""The link in a text or a letter that shows an appointment: looking changes nothing, pressing confirms, cancels, or
asks for another time.

Whoever has the link may act, so the page names neither the patient nor what the visit is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments
from polydesk_dagster.clinic.messages import links, saying
from polydesk_dagster.values import Instant

Verb = Literal["confirm", "cancel", "other_time"]
VERBS: tuple[Verb, ...] = ("confirm", "cancel", "other_time")


@dataclass(frozen=True, slots=True)
class Visit:
    """One appointment that the link's message told."""

    start: Instant
    location: str | None
    state: Literal["open", "cancelled", "changed", "past"]
    said: frozenset[str]
    """``confirmed``, ``other_time``: what was said of it so far."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a link speaks of."""

    clinic: str
    phone: str | None
    visits: tuple[Visit, ...]

    @property
    def open(self) -> bool:
        """Whether anything can still be said of it."""
        return any(visit.state == "open" for visit in self.visits)


_TOLD = sa.text("""
    SELECT c.name, c.phone, c.time_zone, m.kind, l.starts_at, lo.name AS location, a.id,
           CASE WHEN a.status = 'cancelled' THEN 'cancelled'
                WHEN a.id IS NULL OR a.start_version <> l.version OR a.status <> 'booked' THEN 'changed'
                WHEN a.starts_at <= :as_of THEN 'past' ELSE 'open' END AS state,
           coalesce((SELECT array_agg(s.said) FROM appointment_answer s
                     WHERE s.appointment_id = a.id AND s.start_version = a.start_version), '{}') AS said
    FROM message m JOIN clinic c ON c.id = m.clinic_id
    JOIN message_ledger l ON l.message_id = m.id AND l.subject = 'appointment' AND l.withheld IS NULL
    LEFT JOIN appointment a ON a.id = l.subject_id
    LEFT JOIN agenda ag ON ag.id = a.agenda_id LEFT JOIN location lo ON lo.id = ag.location_id
    WHERE m.id = :id AND m.state IN ('claimed', 'unknown', 'sent') AND l.starts_at IS NOT NULL
    ORDER BY l.starts_at, l.subject_id""")


def _rows(connection: sa.Connection, given: str, as_of: datetime) -> list[sa.Row[tuple[object, ...]]]:
    number = links.read(links.secret(connection), given, links.SHOW)
    return list(connection.execute(_TOLD, {"id": number, "as_of": as_of}))


def look(connection: sa.Connection, given: str, as_of: datetime) -> Told | None:
    """What the link ``given`` shows; None for one that was never signed, or whose message is forgotten."""
    rows = _rows(connection, given, as_of)
    if not rows:
        return None
    return Told(
        rows[0].name,
        rows[0].phone,
        tuple(
            Visit(Instant(row.starts_at, row.time_zone), row.location, row.state, frozenset(row.said)) for row in rows
        ),
    )


def act(connection: sa.Connection, given: str, verb: Verb, as_of: datetime) -> Told | None:
    """Do ``verb`` to every appointment of the link that is still open, in the caller's transaction; pressing twice is
    pressing once. Returns what the link shows then."""
    rows = [row for row in _rows(connection, given, as_of) if row.state == "open"]
    living = [int(row.id) for row in rows]
    if living and verb == "confirm":
        saying.note(connection, living, "confirmed", "link", as_of)
    elif living and verb == "cancel":
        replies = appointments.cancel_all(connection, living, as_of)
        gone = [number for number, reply in replies.items() if reply.done]
        saying.note(connection, gone, "cancelled", "link", as_of)
        saying.tell_cancelled(connection, gone, as_of)
    elif living:
        saying.note(connection, living, "other_time", "link", as_of)
        saying.ask_for_another_time(connection, living, str(rows[0].kind), as_of)
    return look(connection, given, as_of)
