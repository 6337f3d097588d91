"""The emergency: every hold taken away at once, behind the gate, and so that nothing can be overbooked by it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes import Kind, Scope, propose
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.bookings.emergency import Press, press
from polydesk_dagster.clinic.bookings.payments import OPEN_UNANSWERED
from polydesk_dagster.clinic.bookings.sweeping import FREE_SEATS, NAMED, NEVER_PUT_BACK, STUCK, UNANSWERED
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.outcome import Outcome, Reason, Report, Table
from polydesk_dagster.values import Duration


def _payments_left_alone(connection: sa.Connection, rows: str, _as_of: datetime) -> Report | None:
    number = connection.scalar(
        sa.text(f"""
            SELECT count(*) FROM {rows} r JOIN hold t ON t.id = r.id
            WHERE r.action = 'conflict' AND t.state = 'confirming'""")
    )
    if not number:
        return None
    return Report(Outcome.NOTHING_TO_DO, reasons=(Reason("payments_under_way", count=number),))


REVOKED_HOLD = Kind(
    name="revoked_hold",
    table="hold",
    key="r.what",
    owned=("state", "ended_at"),
    carried={"what": "text"},
    volatile=True,
    # What has expired, or no longer has, since the plan was looked at would leave the wrong tombstone.
    still=f"(t.state = 'live' OR {STUCK}) AND (r.state = 'expired') = (t.expires_at <= :as_of)",
    after=(
        FREE_SEATS,
        OPEN_UNANSWERED,
        "UPDATE hold SET ended_at = :as_of FROM {rows} r WHERE r.action = 'update' AND hold.id = r.id",
    ),
    final=NEVER_PUT_BACK,
    effect=_payments_left_alone,
    expires=timedelta(minutes=5),
)

_AGO = """jsonb_build_object('seconds', greatest(
    extract(epoch FROM CAST(:as_of AS timestamptz) - t.last_activity_at), 0))"""

# A payment that has only just begun is left to end by itself; one of which nobody has heard since goes with the rest.
# What is offered to a patient who has been written to is no visitor's, and has a term and an undo of its own.
_ALL_HOLDS = f"""
    SELECT CASE WHEN t.state = 'live' OR {STUCK} THEN 'update' ELSE 'conflict' END AS action,
           CAST(NULL AS text) AS finding,
           CASE WHEN {STUCK} THEN {UNANSWERED}
                WHEN t.state = 'confirming' THEN 'payment_just_begun'
                WHEN t.expires_at <= :as_of THEN 'hold_expired'
                ELSE {why("hold_active", ago=_AGO)} END AS reason,
           t.id,
           CASE WHEN t.state = 'confirming' AND NOT ({STUCK}) THEN t.state
                WHEN t.expires_at <= :as_of THEN 'expired' ELSE 'revoked' END AS state,
           CASE WHEN t.state = 'live' OR {STUCK} THEN CAST(:as_of AS timestamptz) END AS ended_at, {NAMED}
      AND t.offered_to IS NULL
"""

_EXPOSURE = sa.text("""
    SELECT c.code, count(*) FILTER (WHERE h.state = 'live' AND h.expires_at > :as_of) AS live,
           count(*) FILTER (WHERE h.state = 'live' AND h.expires_at <= :as_of) AS expired,
           count(*) FILTER (WHERE h.state = 'confirming') AS confirming,
           CAST(extract(epoch FROM CAST(:as_of AS timestamptz) - max(h.last_activity_at)) AS integer) AS quiet_seconds,
           count(*) FILTER (WHERE h.state = 'live' AND h.expires_at > :as_of
                              AND (SELECT count(*) FROM seat
                                   WHERE seat.slot_id = h.slot_id
                                     AND coalesce(seat.held_until > :as_of, true)) >= s.capacity)
               AS exposed
    FROM hold h JOIN clinic c ON c.id = h.clinic_id JOIN slot s ON s.id = h.slot_id
    WHERE h.ended_at IS NULL AND h.offered_to IS NULL
      AND (CAST(:clinic_id AS bigint) IS NULL OR h.clinic_id = :clinic_id)
    GROUP BY c.code ORDER BY c.code""")


def release_all(
    connection: sa.Connection, as_of: datetime, given: Press, *, clinic: str | None = None, preview: bool = False
) -> Report:
    """Take every hold away behind the gate of :mod:`clinic.bookings.emergency`, in the caller's transaction.

    A payment that has just begun is left alone; one of which nobody has heard since goes too, and is an open case for
    the desk. All become tombstones: who confirms late is told that the slot is no longer reserved, so nothing can be
    overbooked.

    Raises:
        PermanentError: for an unknown clinic.
    """
    scope = Scope("release_all_holds", clinic, clinic_id(connection, clinic))
    report = press(
        connection,
        given,
        scope=scope,
        kind=REVOKED_HOLD,
        propose=lambda: propose(connection, REVOKED_HOLD, scope, _ALL_HOLDS, as_of=as_of),
        as_of=as_of,
        preview=preview,
    )
    if not (preview or given.looks_only):
        return report
    rows = connection.execute(_EXPOSURE, {"as_of": as_of, "clinic_id": scope.clinic_id}).all()
    cells = tuple((*row[:4], Duration(row.quiet_seconds), row.exposed) for row in rows)
    columns = ("clinic", "holds_live", "holds_expired", "holds_confirming", "quiet_for", "holds_exposed")
    exposure = Table("who_is_booking", columns, cells, len(rows))
    figures = {**report.figures, "visitors_who_may_lose": sum(row.exposed for row in rows)}
    return replace(report, figures=figures, tables=(exposure, *report.tables))
