"""Online bookings that nobody has verified yet: they keep a seat for a while, then it is free again.

Two stages. At its deadline an unverified booking expires: in every read its seat is free, and whoever takes it ends the
booking; the service only tidies. The row stays. Seven days later the row is
deleted by the clean-up (``clinic.upkeep.retention``). In between it can be brought back while the slot has a free
unit, by the patient (:func:`verify`) or by the desk (:func:`restore`): "but I booked!".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Guard, Kind, Scope, propose
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.database import refusals
from polydesk_dagster.errors import in_brief
from polydesk_dagster.outcome import Outcome, Reason, Report, combine

MANY = 10
"""From this many bookings on, their share of unverified ones says something about the gateway."""

LEAVES_IN_USE = """(r.deleted_at IS NOT NULL AND t.deleted_at IS NULL OR NOT r.active AND t.active)
                   AND EXISTS (SELECT FROM appointment f WHERE f.{column} = t.id AND f.starts_at > :as_of
                               AND f.status IN ('unverified', 'booked', 'accepted'))"""
"""SQL: the plan's row ``r`` would take away ``t``, which ``column`` of a booking to come refers to."""

AFTER_BOOKINGS = """SELECT FROM {table} t JOIN {{rows}} r ON r.id = t.id
                    WHERE r.deleted_at IS NOT NULL OR NOT r.active ORDER BY t.id FOR UPDATE OF t"""
"""A booking that is being made holds the row that it refers to: it is waited for, and then seen."""

# Whoever is expected, has paid, has arrived or is known to studiolab is never touched, nor is what has started. What
# staff booked is never unverified: the schema holds that.
_DUE = """(t.status = 'unverified' AND t.verification_expires_at <= :as_of AND t.starts_at > :as_of
           AND t.confirmed_by_staff_at IS NULL AND t.paid_at IS NULL AND t.accepted_at IS NULL
           AND t.verified_at IS NULL AND t.external_id IS NULL)"""

_OFFERS = """(v.id = {agenda}.service_id
           OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = {agenda}.id AND o.service_id = v.id))"""

# What an expired booking ``a`` comes back to must still be there: nobody is booked again with who or what is gone.
# Whoever takes a service or a specialist away waits for those who lock its row, so it is locked before it is looked at.
_STILL_OFFERED = f"""EXISTS (
        SELECT FROM agenda g JOIN clinic c ON c.id = g.clinic_id JOIN service v ON v.id = a.service_id
        LEFT JOIN specialist p ON p.id = a.specialist_id
        WHERE g.id = a.agenda_id AND g.active AND c.active AND v.active AND v.deleted_at IS NULL
          AND (p.id IS NULL OR p.active AND p.deleted_at IS NULL)
          AND {_OFFERS.format(agenda="g")})"""

_LOCK_WHAT_IS_BOOKED = tuple(
    f"""SELECT x.id FROM {table} x WHERE x.id IN (SELECT a.{table}_id FROM appointment a WHERE {{which}})
        ORDER BY x.id FOR KEY SHARE"""
    for table in ("service", "specialist")
)

# Undone: the seats that are still free are taken again, in the order of the bookings, and each booking gets a new
# window; those whose slot has filled up meanwhile are named. Bookings before slots, as whoever brings back one.
_LOCK_BOOKINGS = """
    SELECT a.id FROM appointment a WHERE a.id IN (SELECT id FROM {rows} r WHERE r.action = 'update')
    ORDER BY a.id FOR NO KEY UPDATE"""

_LOCK_SLOTS = """
    SELECT s.id FROM slot s WHERE s.id IN (SELECT a.slot_id FROM appointment a JOIN {rows} r ON r.id = a.id
                                           WHERE r.action = 'update')
    ORDER BY s.id FOR NO KEY UPDATE"""

# As long as the booking was; whom and what it needs must be free as well.
_MINUTES = "CAST(extract(epoch FROM a.ends_at - a.starts_at) / 60 AS integer)"

_CLEAR = """in_the_way(a.agenda_id, a.specialist_id, a.service_id, {patient}, tstzrange(a.starts_at, a.ends_at), :as_of,
                       NULL, a.id) IS NULL"""

_TAKE_SEATS = f"""
    SELECT seat_booking(back.id, back.slot_id, back.lasts, :as_of)
    FROM (SELECT a.id, a.slot_id, {_MINUTES} AS lasts
          FROM {{rows}} r JOIN appointment a ON a.id = r.id JOIN slot s ON s.id = a.slot_id AND s.state = 'free'
          WHERE r.action = 'update' AND a.status = 'expired' AND a.starts_at > :as_of AND {_STILL_OFFERED}
            AND {_CLEAR.format(patient="a.patient_id")}
          ORDER BY a.id) back"""

_LEAVE_THE_REST = """
    INSERT INTO plan_skip (plan_id, ordinal, reason)
    SELECT :plan_id, r.ordinal, 'time_no_longer_free' FROM {rows} r
    WHERE r.action = 'update' AND NOT EXISTS (SELECT FROM seat WHERE seat.appointment_id = r.id)"""

# Deadlines up to here were let go by somebody who had looked at the gateway; null for none.
_LOOKED_AT = """(SELECT max(p.as_of) FROM plan p
                 WHERE p.service = 'delete_unverified_appointments' AND p.clinic_id = :clinic_id
                   AND 'many_unverified' = ANY(p.past_guards))"""

UNVERIFIED_BOOKING = Kind(
    name="unverified_booking",
    table="appointment",
    key="'prenotazione ' || r.id || ' del ' || r.day",
    owned=("status", "expired_at"),
    carried={"day": "text"},
    volatile=True,
    still=_DUE,
    guards=(
        Guard(
            "many_unverified",
            f"""SELECT CASE WHEN count(*) >= {MANY}
                       THEN CAST(count(*) FILTER (WHERE t.status = 'expired' OR {_DUE}) AS numeric) / count(*)
                       ELSE 0 END
                FROM appointment t
                WHERE t.clinic_id = :clinic_id AND t.verification_expires_at <= :as_of
                  AND (t.verification_expires_at > greatest(:as_of - interval '24 hours', {_LOOKED_AT}) OR {_DUE})""",
            0.5,
        ),
    ),
    after=("DELETE FROM seat WHERE appointment_id IN (SELECT id FROM {rows} r WHERE r.action = 'update')",),
    undo_before=(
        _LOCK_BOOKINGS,
        _LOCK_SLOTS,
        *(lock.format(which="a.id IN (SELECT id FROM {rows} r)") for lock in _LOCK_WHAT_IS_BOOKED),
        _TAKE_SEATS,
        _LEAVE_THE_REST,
    ),
    undo_after=(
        # The window is as a new booking's, but never over already: the next run would only take it back.
        """UPDATE appointment a
           SET verification_expires_at = least(greatest(least(:as_of + interval '2 hours',
                                                              a.starts_at - interval '1 hour'),
                                                        :as_of + interval '10 minutes'), a.starts_at)
           FROM {rows} r WHERE r.action = 'update' AND a.id = r.id""",
    ),
    expires=timedelta(minutes=2),
)

_EXPIRING = f"""
    SELECT 'update' AS action, CAST(NULL AS text) AS finding,
           'not_verified_in_time' AS reason, t.id, 'expired' AS status,
           :as_of AS expired_at, to_char(t.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI') AS day
    FROM appointment t JOIN clinic c ON c.id = t.clinic_id
    WHERE t.clinic_id = :clinic_id AND {_DUE}"""


def nothing_unverified(connection: sa.Connection, as_of: datetime) -> Reason | None:
    """Why there is nothing to expire; None if some booking is past its deadline."""
    due = connection.scalar(sa.text(f"SELECT EXISTS (SELECT FROM appointment t WHERE {_DUE})"), {"as_of": as_of})
    return None if due else Reason("none_unverified")


def expire_unverified(
    engine: sa.Engine,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    past_guard: str | None = None,
    reason: str | None = None,
    actor: str = "dagster",
) -> Report:
    """Free the seats of bookings past their deadline: one volatile plan and one transaction a clinic.

    A clinic where more than half of at least ten expire is stopped: the gateway is the likely culprit.
    ``past_guard="many_unverified"`` with a ``reason`` goes past that; what was let go so counts no more.

    Raises:
        PermanentError: for an unknown clinic.
    """
    known = [guard.name for guard in UNVERIFIED_BOOKING.guards]
    if (strange := changes.no_such_guard((past_guard,) if past_guard else (), known, clinic)) is not None:
        return Report(Outcome.REFUSED, reasons=(strange,))
    with engine.connect() as connection:
        clinics = connection.execute(
            sa.text(f"""
                SELECT c.code, c.id FROM clinic c
                WHERE (CAST(:clinic AS bigint) IS NULL OR c.id = :clinic)
                  AND EXISTS (SELECT FROM appointment t WHERE t.clinic_id = c.id AND {_DUE})
                ORDER BY c.code"""),
            {"as_of": as_of, "clinic": clinic_id(connection, clinic)},
        ).all()
    reports = []
    for code, number in clinics:
        try:
            reports.append(
                _expire(engine, as_of, code, number, preview=preview, past=past_guard, reason=reason, actor=actor)
            )
        except sa.exc.DBAPIError as error:
            if refusals.of_the_server(error):
                raise
            reports.append(Report.failed("clinic_bookings_failed", {"error": in_brief(error)}, code))
    return combine(reports) if reports else Report(Outcome.NOTHING_TO_DO)


def _expire(
    engine: sa.Engine,
    as_of: datetime,
    clinic: str,
    number: int,
    *,
    preview: bool,
    past: str | None,
    reason: str | None,
    actor: str,
) -> Report:
    """One clinic's, in a transaction of its own."""
    with engine.begin() as connection:
        scope = Scope("delete_unverified_appointments", clinic, number)
        plan = propose(connection, UNVERIFIED_BOOKING, scope, _EXPIRING, as_of=as_of)
        shown = changes.preview(connection, plan, UNVERIFIED_BOOKING)
        if preview:
            return shown
        guards = [past] if past else []
        report = changes.apply(connection, plan.id, as_of=as_of, actor=actor, reason=reason, past_guards=guards)
        return replace(report, tables=shown.tables)


class Answer(StrEnum):
    """What became of a request to verify or restore a booking, or for what that takes (``verification``); said as
    ``answer.booking.<answer>``."""

    BOOKED = "booked"
    TAKEN = "taken"
    CLOSED = "closed"
    ELSEWHERE = "elsewhere"
    """The patient has something else at that time."""
    GONE = "gone"
    TOO_LATE = "too_late"

    ISSUED = "issued"
    NO_CONTACT = "no_contact"
    TOO_MANY_SECRETS = "too_many_secrets"

    READY = "ready"
    WRONG_CODE = "wrong_code"
    TOO_MANY_TRIES = "too_many_tries"
    EXPIRED = "expired"
    REPLACED = "replaced"
    USED = "used"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer, and for a time that cannot be had the next ones of the agenda where the service can be booked
    online."""

    answer: Answer
    alternatives: tuple[int, ...] = ()
    """Ids of slots, nearest first, three at most."""
    appointment_id: int | None = None
    """The booking that a token is about."""
    tries_left: int = 0
    """After a wrong code."""


def verify(connection: sa.Connection, *, appointment_id: int, patient_id: int, as_of: datetime) -> Reply:
    """The patient has proved an e-mail address or a telephone number: the booking stands, if its seat still is free.

    It believes its caller: a front end calls ``verification``, which checks the proof. Verifying again answers
    BOOKED.

    Answers: BOOKED; TAKEN, CLOSED or ELSEWHERE with alternatives; TOO_LATE, GONE.
    """
    return _bring_back(connection, appointment_id, patient_id, as_of, by_staff=False)


def restore(connection: sa.Connection, *, appointment_id: int, patient_id: int, as_of: datetime) -> Reply:
    """The desk vouches for the booking, also where nothing is booked online any more; otherwise as :func:`verify`."""
    return _bring_back(connection, appointment_id, patient_id, as_of, by_staff=True)


_LOCK_BOOKING = sa.text("""
    SELECT id, CASE WHEN verify_by(a) <= :as_of THEN 'expired' ELSE status END AS status, starts_at, slot_id, agenda_id,
           service_id
    FROM appointment a WHERE id = :id FOR NO KEY UPDATE""")

_LOCK_SLOT = sa.text("SELECT FROM slot WHERE id = :slot FOR NO KEY UPDATE")

_LOCK_WHAT_IT_BOOKS = tuple(sa.text(lock.format(which="a.id = :appointment")) for lock in _LOCK_WHAT_IS_BOOKED)

_OFFERED = sa.text(f"""
    SELECT s.state = 'free' AND {_STILL_OFFERED}
           AND (:by_staff OR (SELECT g.online FROM agenda g WHERE g.id = a.agenda_id)
                             AND (SELECT v.bookable_online FROM service v WHERE v.id = a.service_id))
    FROM appointment a JOIN slot s ON s.id = a.slot_id WHERE a.id = :appointment""")

_RESEAT = sa.text(f"""
    SELECT CASE WHEN {_CLEAR.format(patient="CAST(:patient AS bigint)")}
                THEN seat_booking(a.id, a.slot_id, {_MINUTES}, :as_of) END
    FROM appointment a WHERE a.id = :appointment""")

_STAND = sa.text("""
    UPDATE appointment
    SET status = 'booked', expired_at = NULL, patient_id = :patient, updated_at = :as_of,
        verified_at = CASE WHEN :by_staff THEN verified_at ELSE CAST(:as_of AS timestamptz) END,
        confirmed_by_staff_at = CASE WHEN :by_staff THEN CAST(:as_of AS timestamptz) ELSE confirmed_by_staff_at END
    WHERE id = :appointment""")

# Tried one after the other from the nearest on: the inner query is kept whole, so that few are.
_ALTERNATIVES = sa.text(f"""
    SELECT near.id
    FROM (SELECT s.id, s.starts_at, s.starts_at + v.duration_minutes * interval '1 minute' AS until
          FROM slot s JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
          JOIN service v ON v.id = :service_id AND v.active AND v.deleted_at IS NULL AND v.bookable_online
          WHERE s.agenda_id = :agenda_id AND s.state = 'free' AND a.online AND a.active AND c.active
            AND {_OFFERS.format(agenda="a")}
            AND NOT EXISTS (SELECT FROM specialist p
                            WHERE p.id = a.specialist_id AND (NOT p.active OR p.deleted_at IS NOT NULL))
            AND s.starts_at > :as_of + a.min_notice_minutes * interval '1 minute'
          ORDER BY abs(extract(epoch FROM s.starts_at - CAST(:starts_at AS timestamptz))), s.starts_at
          OFFSET 0) near
    WHERE can_be_placed(:agenda_id, :service_id, near.starts_at, near.until, :as_of)
    LIMIT 3""")

_ELSEWHERE = sa.text("""
    SELECT in_the_way(NULL, NULL, NULL, CAST(:patient AS bigint), tstzrange(a.starts_at, a.ends_at), :as_of, NULL, a.id)
           IS NOT NULL
    FROM appointment a WHERE a.id = :appointment""")


def _bring_back(
    connection: sa.Connection, appointment_id: int, patient_id: int, as_of: datetime, *, by_staff: bool
) -> Reply:
    booking = connection.execute(_LOCK_BOOKING, {"id": appointment_id, "as_of": as_of}).one_or_none()
    if booking is None or booking.status == "cancelled":
        return Reply(Answer.GONE)
    if booking.status not in {"unverified", "expired"}:
        return Reply(Answer.BOOKED)
    if booking.starts_at <= as_of:
        return Reply(Answer.TOO_LATE)
    asked = {
        "slot": booking.slot_id,
        "appointment": appointment_id,
        "patient": patient_id,
        "as_of": as_of,
        "by_staff": by_staff,
    }
    refused = None
    if booking.status == "expired":
        # The slot's row is where all who want a seat queue up; only then is the seats' newest state read.
        for lock in (_LOCK_SLOT, *_LOCK_WHAT_IT_BOOKS):
            connection.execute(lock, asked)
        if not connection.scalar(_OFFERED, asked):
            refused = Answer.CLOSED
        elif connection.scalar(_RESEAT, asked) is None:
            refused = Answer.ELSEWHERE if connection.scalar(_ELSEWHERE, asked) else Answer.TAKEN
    elif connection.scalar(_ELSEWHERE, asked):
        refused = Answer.ELSEWHERE
    if refused is not None:
        return Reply(refused, tuple(connection.scalars(_ALTERNATIVES, booking._asdict() | {"as_of": as_of})))
    connection.execute(_STAND, asked)
    return Reply(Answer.BOOKED)
