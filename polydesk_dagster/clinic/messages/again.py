"""One message sent again because a person wants it: a message of its own, signed, and never by pressing twice."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes.audit import is_reason
from polydesk_dagster.clinic.messages.kinds import ACTIVATION
from polydesk_dagster.errors import PermanentError

_ENDED = ("sent", "failed", "withheld")

_CAN_GO = sa.text("""
    SELECT m.id FROM message m
    WHERE m.id = ANY (:ids) AND m.kind <> :activation AND m.state = ANY (:ended) AND m.expires_at > :at
      AND NOT EXISTS (SELECT FROM message n WHERE n.resent_of = m.id)""")

_AGAIN = sa.text("""
    WITH copy AS (
        INSERT INTO message (clinic_id, kind, step, recipient_type, recipient_id, about_day, context, send_after,
                             expires_at, template_revision, created_at, changed_at, resent_of, resent_by, resent_why)
        SELECT clinic_id, kind, step, recipient_type, recipient_id, about_day, context, :at, expires_at,
               (SELECT coalesce(max(id), 0) FROM message_template_version), :at, :at, id, :who, :why
        FROM message WHERE id = :id
        ON CONFLICT (resent_of) DO NOTHING
        RETURNING id
    ), entry AS (
        INSERT INTO message_ledger (subject, subject_id, version, kind, step, resent, recipient_type, recipient_id,
                                    clinic_id, message_id, starts_at, useful_until, planned_at)
        SELECT l.subject, l.subject_id, l.version, l.kind, l.step, l.resent + 1, l.recipient_type, l.recipient_id,
               l.clinic_id, copy.id, l.starts_at, l.useful_until, :at
        FROM message_ledger l CROSS JOIN copy WHERE l.message_id = :id
    )
    SELECT id FROM copy""")


def can_go(connection: sa.Connection, messages: Collection[int], at: datetime) -> set[int]:
    """Which of ``messages`` :func:`resend` would send."""
    given = {"ids": list(messages), "activation": ACTIVATION.key, "ended": list(_ENDED), "at": at}
    return set(connection.scalars(_CAN_GO, given))


def resend(connection: sa.Connection, message: int, *, who: str, why: str, at: datetime) -> int:
    """Put ``message`` into the ledger once more, to be judged and sent like any other; returns the new one's number.

    Raises:
        PermanentError: without a reason; where there is no such message; where it has not ended yet, is no longer of
            use, was sent again already, or brings a link that works once.
    """
    if not is_reason(why):
        raise PermanentError("message_reason")
    found = connection.execute(
        sa.text("SELECT kind, state, expires_at FROM message WHERE id = :id FOR UPDATE"), {"id": message}
    ).one_or_none()
    if found is None:
        raise PermanentError("resend_unknown", number=message)
    if found.kind == ACTIVATION.key:
        raise PermanentError("resend_activation", number=message)
    if found.state not in _ENDED:
        raise PermanentError("resend_under_way", number=message)
    if found.expires_at <= at:
        raise PermanentError("resend_past", number=message)
    new = connection.scalar(_AGAIN, {"id": message, "who": who, "why": why.strip(), "at": at})
    if new is None:
        raise PermanentError("resend_twice", number=message)
    return int(new)
