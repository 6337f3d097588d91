"""Whether a run of a service that writes to patients has anything to do: the cheap look before each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import arrivals, hours, planning, receipts
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.kinds import KINDS, REMINDER
from polydesk_dagster.values import Reason


def nothing_to_nudge(connection: sa.Connection, as_of: datetime, clinics: Sequence[Hours]) -> bool:
    """Whether no booking wants a nudge, a confirmation, or word that it has changed."""
    wanted = {"as_of": as_of, "clinics": [clinic.clinic_id for clinic in clinics]}
    nudges = connection.scalar(sa.text(f"SELECT EXISTS ({planning.TO_NUDGE})"), wanted)
    return not nudges and planning.nothing_to_confirm(connection, as_of, clinics)


def nothing_to_send(connection: sa.Connection, kinds: Sequence[str], as_of: datetime, clinics: Sequence[Hours]) -> bool:
    """Whether no message of ``kinds`` wants the dispatcher now: to be sent, to be closed, or to be cleared up."""
    return not connection.scalar(
        sa.text("""
            SELECT EXISTS (SELECT FROM message
                           WHERE state IN ('planned', 'retry') AND send_after <= :as_of AND kind = ANY (:kinds)
                             AND (clinic_id = ANY (:open) OR kind = ANY (:any_hour) OR expires_at <= :as_of))
                OR EXISTS (SELECT FROM message WHERE state = 'claimed')
                OR EXISTS (SELECT FROM message WHERE state = 'unknown' AND channel = 'sms')"""),
        {
            "as_of": as_of,
            "kinds": list(kinds),
            "open": [clinic.clinic_id for clinic in clinics if clinic.may_send(as_of)],
            "any_hour": [kind.key for kind in KINDS.values() if kind.any_hour],
        },
    )


def nothing_due(kinds: Sequence[str], connection: sa.Connection, as_of: datetime) -> Reason | None:
    """Why no run of ``kinds`` needs to start now; None where one does."""
    if REMINDER.key in kinds and arrivals.waiting(connection):
        return None
    clinics = hours.load(connection, as_of)
    if not nothing_to_send(connection, kinds, as_of, clinics):
        return None
    if any(kind in planning.PLANNED for kind in kinds) and not nothing_to_nudge(connection, as_of, clinics):
        return None
    if REMINDER.key in kinds and receipts.waiting(connection, as_of, clinics):
        return None
    if any(kind in planning.PLANNED and planning.due_spans(connection, kind, as_of, clinics) for kind in kinds):
        return None
    return Reason("no_messages_due")
