"""The link in a text or a letter that shows an appointment: looking changes nothing, pressing confirms, cancels, asks
for another time, or takes the new place that is kept for an appointment without its own.

Whoever has the link may act, so the page names neither the patient nor what the visit is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments, offers
from polydesk_dagster.clinic.messages import links, saying
from polydesk_dagster.values import Instant

Verb = Literal["confirm", "cancel", "other_time", "take"]
VERBS: tuple[Verb, ...] = ("confirm", "cancel", "other_time", "take")


@dataclass(frozen=True, slots=True)
class Offer:
    """The new place that is, or was, kept for an appointment that has lost its own."""

    start: Instant
    location: str | None
    until: Instant
    state: Literal["waiting", "taken", "over"]


@dataclass(frozen=True, slots=True)
class Visit:
    """One appointment that the link's message told."""

    start: Instant
    location: str | None
    state: Literal["open", "cancelled", "changed", "past"]
    said: frozenset[str]
    """``confirmed``, ``other_time``: what was said of it so far."""
    lost: bool = False
    """Whether it cannot take place at its time."""
    offer: Offer | None = None


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

    @property
    def confirmable(self) -> bool:
        return any(visit.state == "open" and not visit.lost for visit in self.visits)

    @property
    def offered(self) -> bool:
        """Whether there is a place to take."""
        return any(visit.offer is not None and visit.offer.state == "waiting" for visit in self.visits)


_TOLD = sa.text("""
    SELECT c.name, c.phone, c.time_zone, m.kind, l.starts_at, lo.name AS location, a.id,
           CASE WHEN a.status = 'cancelled' THEN 'cancelled'
                WHEN a.id IS NULL OR a.start_version <> l.version OR a.status <> 'booked' THEN 'changed'
                WHEN a.starts_at <= :as_of THEN 'past' ELSE 'open' END AS state,
           coalesce((SELECT array_agg(s.said) FROM appointment_answer s
                     WHERE s.appointment_id = a.id AND s.start_version = a.start_version), '{}') AS said,
           has_lost(a.id) AS lost,
           o.starts_at AS place_at, o.location AS place, o.until AS place_until, o.state AS place_state
    FROM message m JOIN clinic c ON c.id = m.clinic_id
    JOIN message_ledger l ON l.message_id = m.id AND l.subject = 'appointment' AND l.withheld IS NULL
    LEFT JOIN appointment a ON a.id = l.subject_id
    LEFT JOIN agenda ag ON ag.id = a.agenda_id LEFT JOIN location lo ON lo.id = ag.location_id
    LEFT JOIN LATERAL (
        SELECT s.starts_at, p.name AS location, h.expires_at AS until,
               CASE WHEN h.state = 'confirmed' THEN 'taken'
                    WHEN h.ended_at IS NULL AND h.expires_at > :as_of THEN 'waiting' ELSE 'over' END AS state
        FROM hold h JOIN slot s ON s.id = h.slot_id JOIN agenda g ON g.id = s.agenda_id
        JOIN location p ON p.id = g.location_id
        WHERE h.offered_to = a.id AND a.status = 'booked'
          AND (h.state = 'confirmed' AND s.starts_at = a.starts_at
               OR h.state <> 'confirmed' AND a.start_version = l.version)
        ORDER BY h.id DESC LIMIT 1) o ON true
    WHERE m.id = :id AND m.state IN ('claimed', 'unknown', 'sent') AND l.starts_at IS NOT NULL
    ORDER BY l.starts_at, l.subject_id""")


def _rows(connection: sa.Connection, given: str, as_of: datetime) -> list[sa.Row[Any]]:
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
            Visit(
                Instant(row.starts_at, row.time_zone),
                row.location,
                row.state,
                frozenset(row.said),
                row.lost,
                _offer(row),
            )
            for row in rows
        ),
    )


def _offer(row: sa.Row[Any]) -> Offer | None:
    if row.place_at is None:
        return None
    start, until = (Instant(at, row.time_zone) for at in (row.place_at, row.place_until))
    return Offer(start, row.place, until, row.place_state)


def act(connection: sa.Connection, given: str, verb: Verb, as_of: datetime) -> Told | None:
    """Do ``verb`` to every appointment of the link that is still open, in the caller's transaction; pressing twice is
    pressing once. Returns what the link shows then."""
    rows = [row for row in _rows(connection, given, as_of) if row.state == "open"]
    living = [int(row.id) for row in rows]
    if verb == "confirm":
        standing = [int(row.id) for row in rows if not row.lost]
        saying.note(connection, standing, "confirmed", "link", as_of)
    elif verb == "take":
        _take(connection, [row for row in rows if row.place_state == "waiting"], as_of)
    elif living and verb == "cancel":
        replies = appointments.cancel_all(connection, living, as_of)
        gone = [number for number, reply in replies.items() if reply.done]
        saying.note(connection, gone, "cancelled", "link", as_of)
        saying.tell_cancelled(connection, gone, as_of)
    elif living:
        saying.note(connection, living, "other_time", "link", as_of)
        saying.ask_for_another_time(connection, living, str(rows[0].kind), as_of)
    return look(connection, given, as_of)


def _take(connection: sa.Connection, rows: Sequence[sa.Row[Any]], as_of: datetime) -> None:
    """Move each to the place that is kept for it; where that cannot be had after all, the desk telephones."""
    became = {int(row.id): offers.take(connection, appointment_id=row.id, as_of=as_of) for row in rows}
    taken = [number for number, what in became.items() if what is offers.Taken.TAKEN]
    saying.note(connection, taken, "confirmed", "link", as_of)
    left = sorted(became.keys() - set(taken))
    if left:
        saying.note(connection, left, "other_time", "link", as_of)
        saying.ask_for_another_time(connection, left, str(rows[0].kind), as_of)
