"""The sweeper: it tidies the holds whose time has passed and gives a person the payments of which nobody has heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind, Plan, Scope, propose
from polydesk_dagster.changes.apply import named
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.bookings import availability, payments
from polydesk_dagster.clinic.bookings.payments import OPEN_UNANSWERED
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.outcome import Outcome, Reason, Report, done
from polydesk_dagster.values import Term

PAYMENT_GRACE = timedelta(minutes=2)
"""After this, a hold whose payment is still under way needs a person's look; it keeps its slots for the time that its
terms give a payment."""

# What an operator reads for a hold: a visitor is nobody's name, so the slot names it.
NAMED = """
    c.code || ', ' || a.name || ', ' || to_char(s.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI') AS what
    FROM hold t JOIN slot s ON s.id = t.slot_id JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = t.clinic_id
    WHERE t.ended_at IS NULL AND (CAST(:clinic_id AS bigint) IS NULL OR t.clinic_id = :clinic_id)"""

FREE_SEATS = "DELETE FROM seat WHERE hold_id IN (SELECT id FROM {rows} r WHERE r.action = 'update')"

_GRACE = f"interval '{PAYMENT_GRACE.total_seconds():g} seconds'"

_PAST = "t.state IN ('live', 'confirming') AND t.expires_at <= :as_of"
STUCK = f"t.state = 'confirming' AND t.confirming_since <= :as_of - {_GRACE}"
_UNPAID = "t.id = ANY(CAST(:unpaid AS bigint[]))"

NEVER_PUT_BACK = "freed_time_stays_free"

SINCE = "jsonb_build_object('seconds', extract(epoch FROM CAST(:as_of AS timestamptz) - t.confirming_since))"


def _payment(code: str, **values: str) -> str:
    """SQL for ``code``, or for what is said where the payment has no reference to look it up by."""
    nameless = why(f"{code}_no_reference", hold="t.id", **values)
    return f"""CASE WHEN t.payment_reference IS NULL THEN {nameless}
                ELSE {why(code, hold="t.id", reference="t.payment_reference", **values)} END"""


UNANSWERED = _payment("payment_without_answer")

EXPIRED_HOLD = Kind(
    name="expired_hold",
    table="hold",
    key="r.what",
    owned=("state", "ended_at"),
    carried={"what": "text"},
    volatile=True,
    still=f"({_PAST} OR {STUCK} AND {_UNPAID})",
    after=(FREE_SEATS, OPEN_UNANSWERED),
    final=NEVER_PUT_BACK,
    expires=timedelta(minutes=2),
)

_EXPIRED_HOLDS = f"""
    SELECT CASE WHEN over OR {_UNPAID} THEN 'update' ELSE 'conflict' END AS action, CAST(NULL AS text) AS finding,
           CASE WHEN {_UNPAID} THEN 'payment_not_made'
                WHEN NOT over THEN {_payment("payment_under_way_for", since=SINCE)}
                WHEN t.state = 'confirming' THEN {UNANSWERED}
                ELSE 'hold_expired' END AS reason,
           t.id,
           CASE WHEN {_UNPAID} THEN 'released' WHEN over THEN 'expired' ELSE t.state END AS state,
           CASE WHEN over OR {_UNPAID} THEN CAST(:as_of AS timestamptz) END AS ended_at, {NAMED}
      AND ({_PAST} OR {STUCK})
""".replace("over", "(t.expires_at <= :as_of)")

_DUE = sa.text(f"SELECT EXISTS (SELECT FROM hold t WHERE {_PAST}) OR EXISTS (SELECT FROM hold t WHERE {STUCK})")


def nothing_expired(connection: sa.Connection, as_of: datetime) -> Reason | None:
    """Why the sweeper has nothing to do; None if some hold has expired or some payment is stuck."""
    due = connection.scalar(_DUE, {"as_of": as_of})
    return None if due else Reason("no_hold_expired")


# Of the holds that a person calls unpaid, those that are not a payment under way for longer than the grace. A mistyped
# number may be none that an id can be.
_NOT_UNPAID = sa.text(f"""
    SELECT n.id, CASE WHEN t.id IS NULL THEN 'no_such_hold' WHEN t.state = 'confirming' THEN 'just_begun'
                      ELSE 'no_payment' END AS why, c.code AS clinic
    FROM unnest(CAST(:unpaid AS numeric[])) n (id)
    LEFT JOIN hold t ON t.id = CAST(CASE WHEN n.id BETWEEN 1 AND {2**63 - 1} THEN n.id END AS bigint)
                    AND (CAST(:clinic_id AS bigint) IS NULL OR t.clinic_id = :clinic_id)
    LEFT JOIN clinic c ON c.id = t.clinic_id
    WHERE ({STUCK}) IS NOT TRUE
    ORDER BY n.id""")


def _not_unpaid(connection: sa.Connection, scope: Scope, as_of: datetime) -> Report | None:
    """Why what a person said of payments cannot be so, by the number of each hold; None if it can."""
    values = {**scope.parameters, "as_of": as_of, "clinic": scope.clinic, "clinic_id": scope.clinic_id}
    reasons = tuple(
        Reason("not_unpaid", {"hold": int(row.id), "why": Term("not_unpaid", row.why)}, row.clinic)
        for row in connection.execute(_NOT_UNPAID, values)
    )
    return Report(Outcome.REFUSED, reasons=reasons) if reasons else None


def release_expired(
    connection: sa.Connection,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    unpaid: Sequence[int] = (),
    actor: str = "dagster",
) -> Report:
    """Tidy the holds whose time has passed, as a volatile plan in the caller's transaction.

    A payment that has been under way for longer than ``PAYMENT_GRACE`` is listed for a person, one reason a hold, and
    left alone while its time lasts, unless ``unpaid`` names its hold: a person has looked and the payment did not go
    through. One whose time is over loses its slots and is an open case. The run that first lists a payment is partial;
    later ones count it as waiting. Refused, with nothing written, when ``unpaid`` names a hold that is no such payment.

    Raises:
        PermanentError: for an unknown clinic.
    """
    scope = Scope(
        "release_expired_holds",
        clinic,
        clinic_id(connection, clinic),
        {"unpaid": sorted(unpaid)},
    )
    refusal = _not_unpaid(connection, scope, as_of)
    if refusal is not None:
        return refusal
    plan = propose(connection, EXPIRED_HOLD, scope, _EXPIRED_HOLDS, as_of=as_of)
    unsure = "r.action = 'conflict' OR r.state = 'expired' AND r.was_state = 'confirming'"
    stuck = tuple(named(connection, plan, EXPIRED_HOLD, "payment_stuck", unsure, "r.reason"))
    shown = replace(changes.preview(connection, plan, EXPIRED_HOLD), reasons=stuck)
    if preview:
        return shown
    availability.tidy(connection)
    before = payments.waiting(connection, scope.clinic_id)
    report = changes.apply(connection, plan.id, as_of=as_of, actor=actor)
    listed, still = _list(connection, plan, as_of) if plan.rows_kept else (0, 0)
    cases = payments.waiting(connection, scope.clinic_id)
    new, waiting = cases - before + listed, cases + still
    counts = replace(report.counts, skipped=report.counts.skipped - still, waiting=waiting)
    outcome = report.outcome if report.outcome is Outcome.REFUSED else done(counts, set_aside=new)
    return replace(
        report, outcome=outcome, counts=counts, reasons=(*report.reasons, *shown.reasons), tables=shown.tables
    )


def _list(connection: sa.Connection, plan: Plan, as_of: datetime) -> tuple[int, int]:
    """Of the payments under way that the plan lists for a person: how many none has listed before, and how many."""
    new = connection.execute(
        sa.text(f"""UPDATE hold SET listed_at = :as_of FROM {plan.rows} r
                    WHERE r.action = 'conflict' AND hold.id = r.id AND hold.listed_at IS NULL"""),
        {"as_of": as_of},
    ).rowcount
    return new, plan.tally.get("conflict", 0)
