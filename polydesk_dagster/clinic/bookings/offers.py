"""A place kept for a patient whose booking has lost its own: offered by a plan, taken by the patient, over in time.

A closure that the desk types keeps the places of whom it touches by its own plan (``places``); this is for whoever has
lost hers otherwise: to the central server's closures, to the night, or with an offer that came to nothing. Where each
could go is worked out for all together (``clinic.calendar.replacing``). An offer is a hold with a term of its own; who
answers by then has her booking moved there, who does not is on the desk's list as before. It ends by itself when the
booking is cancelled or moved, when its slots come back, and when the desk keeps the visit.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import audit
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.clinic.bookings import appointments, places
from polydesk_dagster.clinic.calendar.replacing import Touched, proposals
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.outcome import WHAT_TO_DO, Report

SERVICE = "import_closures"

_LOST = "has_lost(t.id)"
_OF_ROW = "h.offered_to = r.id AND h.slot_id = r.slot_id AND h.expires_at = r.offered_until"

OFFERED_PLACE = Kind(
    name="offered_place",
    table="appointment",
    key="r.what",
    carried={
        "what": "text",
        "starts_at": "timestamptz",
        "slot_id": "bigint",
        "offered_until": "timestamptz",
    },
    volatile=True,
    still=f"t.status = 'booked' AND t.starts_at = r.starts_at AND r.offered_until > :as_of AND {_LOST}",
    # One after the other, each seeing the places that those before it have taken.
    before=(
        """INSERT INTO plan_skip (plan_id, ordinal, reason)
           SELECT :plan_id, w.ordinal, 'place_gone'
           FROM (SELECT * FROM {rows} r WHERE r.action = 'link' ORDER BY r.ordinal OFFSET 0) w
           WHERE offer_place(w.id, w.slot_id, :as_of, w.offered_until) IS NULL""",
    ),
    undo_reconsider=(
        f"""UPDATE {{rows}} r SET action = 'conflict', reason = 'offer_over'
            WHERE r.action = 'link' AND NOT EXISTS (SELECT FROM hold h WHERE {_OF_ROW} AND h.ended_at IS NULL)""",
    ),
    undo_before=(
        "SELECT withdraw_offers(ARRAY(SELECT r.id FROM {rows} r WHERE r.action = 'link' ORDER BY 1), :as_of)",
    ),
)

_OFFERS = f"""
    SELECT CASE WHEN w.why IS NULL THEN 'link' ELSE 'conflict' END AS action, CAST(NULL AS text) AS finding,
           w.why AS reason, w.id, w.what, w.starts_at, w.slot_id, w.until AS offered_until
    FROM ({places.FOUND}) w ORDER BY w.n"""

# What waits for an answer, or was offered since the slot was lost and let go by, is not offered again: that is the
# desk's to settle.
_ANSWERED = sa.text("""
    SELECT DISTINCT h.offered_to FROM hold h JOIN seat t ON t.appointment_id = h.offered_to
    JOIN orphan o ON o.slot_id = t.slot_id AND o.resolved_at IS NULL
    WHERE h.offered_to = ANY(:bookings) AND h.state <> 'released' AND h.created_at >= o.detected_at""")


def propose(connection: sa.Connection, as_of: datetime, *, clinic: str | None = None) -> tuple[Report, list[Touched]]:
    """A plan that offers every booking on a lost slot its new place, and the bookings; nothing is offered yet.

    ``touched`` names patients: for whoever sits at the desk, never for Dagster.

    Raises:
        PermanentError: for an unknown clinic.
    """
    scope = Scope(SERVICE, clinic, clinic_id(connection, clinic))
    found = [each for each in proposals(connection, 0, as_of) if clinic in (None, each.clinic)]
    bookings = [each.appointment_id for each in found]
    settled = set(connection.scalars(_ANSWERED, {"bookings": bookings}))
    booked = set(
        connection.scalars(
            sa.text(f"""SELECT t.id FROM appointment t
                        WHERE t.id = ANY(:bookings) AND t.status = 'booked' AND t.starts_at > :as_of AND {_LOST}"""),
            {"bookings": bookings, "as_of": as_of},
        )
    )
    touched = [each for each in found if each.appointment_id in booked - settled]
    places.want(connection, touched)
    plan = changes.propose(connection, OFFERED_PLACE, scope, _OFFERS, as_of=as_of)
    shown = changes.preview(connection, plan, OFFERED_PLACE)
    figures = {"bookings_to_move": len(touched), "places_found": plan.writes, WHAT_TO_DO: shown.figures[WHAT_TO_DO]}
    return replace(shown, figures=figures), touched


class Taken(StrEnum):
    """What became of a patient's wish to take the place that is kept for her."""

    TAKEN = "taken"
    DECLINED = "declined"
    """She does not want it: it is free again, and she stays on the desk's list."""
    NONE = "none"
    """Nothing was offered to this booking, or it needs none any more."""
    OVER = "over"
    """It is no longer kept."""
    GONE = "gone"
    """It cannot be had: the place was closed, or the patient is elsewhere by now."""


_OFFER = sa.text(f"""
    SELECT h.id, h.slot_id, h.state, h.expires_at, {_LOST} AS lost
    FROM appointment t JOIN hold h ON h.offered_to = t.id WHERE t.id = :appointment
    ORDER BY h.id DESC LIMIT 1 FOR NO KEY UPDATE OF t, h""")


# The offer ends and the booking takes its seats in one transaction, which keeps their slots locked.
_GIVE_UP = sa.text("""
    WITH locked AS MATERIALIZED (
        SELECT s.id FROM slot s JOIN seat t ON t.slot_id = s.id WHERE t.hold_id = :hold
        ORDER BY s.id FOR NO KEY UPDATE OF s
    ), freed AS (
        DELETE FROM seat USING (SELECT count(*) FROM locked) l WHERE seat.hold_id = :hold
    ), freed_people AS (
        DELETE FROM occupancy WHERE hold_id = :hold
    )
    UPDATE hold SET state = 'confirmed', ended_at = :as_of, last_activity_at = :as_of, appointment_id = :appointment
    WHERE id = :hold""")


def _kept(connection: sa.Connection, appointment_id: int, as_of: datetime) -> sa.Row[Any] | Taken:
    """The place that is kept for a booking, which stays locked; or why none is."""
    offer = connection.execute(_OFFER, {"appointment": appointment_id}).one_or_none()
    if offer is None:
        return Taken.NONE
    if offer.state == "confirmed":
        return Taken.TAKEN
    return offer if offer.state == "live" and offer.expires_at > as_of else Taken.OVER


def take(connection: sa.Connection, *, appointment_id: int, as_of: datetime) -> Taken:
    """Move a booking to the place that is kept for it, in the caller's transaction; pressing twice is pressing once."""
    offer = _kept(connection, appointment_id, as_of)
    if isinstance(offer, Taken):
        return offer
    if not offer.lost:
        return Taken.NONE
    with connection.begin_nested() as trial:
        connection.execute(_GIVE_UP, {"hold": offer.id, "appointment": appointment_id, "as_of": as_of})
        reply = appointments.move(
            connection, appointment_id=appointment_id, slot_id=offer.slot_id, as_of=as_of, by_staff=True
        )
        if not reply.done:
            trial.rollback()
            return Taken.GONE
    return Taken.TAKEN


# What expires before its term was declined (``clinic.calendar.desk`` tells it so).
_DECLINE = sa.text("""
    WITH freed AS (
        DELETE FROM seat WHERE hold_id = :hold
    ), reached AS (
        INSERT INTO orphan_word (orphan_id, appointment_id, state, said_at)
        SELECT o.id, t.appointment_id, 'contacted', :as_of
        FROM seat t JOIN orphan o ON o.slot_id = t.slot_id AND o.resolved_at IS NULL
        WHERE t.appointment_id = :appointment
        ORDER BY o.id
        ON CONFLICT (orphan_id, appointment_id) DO UPDATE SET state = EXCLUDED.state, said_at = EXCLUDED.said_at
    )
    UPDATE hold SET state = 'expired', ended_at = :as_of, last_activity_at = :as_of WHERE id = :hold""")


def decline(connection: sa.Connection, *, appointment_id: int, as_of: datetime) -> Taken:
    """Give back the place that is kept for a patient who does not want it, in the caller's transaction. She has been
    reached by that: no notice tells her of the loss any more, and no other place is offered to her by itself."""
    offer = _kept(connection, appointment_id, as_of)
    if isinstance(offer, Taken):
        return offer
    connection.execute(_DECLINE, {"hold": offer.id, "appointment": appointment_id, "as_of": as_of})
    return Taken.DECLINED


_ASKED = sa.text("""
    SELECT c.code, EXISTS (SELECT FROM hold h WHERE h.offered_to = a.id AND h.ended_at IS NULL) AS waits
    FROM appointment a JOIN clinic c ON c.id = a.clinic_id
    WHERE a.id = :appointment AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
    FOR NO KEY UPDATE OF a""")


def answer(
    connection: sa.Connection, appointment_id: int, wanted: bool, *, clinic: str | None, actor: str, as_of: datetime
) -> Taken:
    """Do what a patient told the desk of the place that is kept for her booking, one of ``clinic`` where that is given:
    she takes it, or does not want it. Done twice, only the first is written down; NONE for another clinic's booking."""
    asked = connection.execute(_ASKED, {"appointment": appointment_id, "clinic": clinic}).one_or_none()
    if asked is None:
        return Taken.NONE
    became = (take if wanted else decline)(connection, appointment_id=appointment_id, as_of=as_of)
    if asked.waits and became is (Taken.TAKEN if wanted else Taken.DECLINED):
        audit.append(
            connection,
            as_of=as_of,
            actor=actor,
            action="offer",
            service="calendar",
            clinic=asked.code,
            detail={"appointment": appointment_id, "became": became},
        )
    return became
