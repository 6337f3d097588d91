"""What is kept, for how long and why: the retention registry. What is not listed here, no clean-up can touch.

Clinical records, invoices and the audit trail are not listed. Who saw whom goes after 24 months, the message ledger
only once nobody could be told twice for want of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Several


@dataclass(frozen=True, slots=True)
class DataSet:
    """One kind of record that does not live for ever.

    ``where`` is SQL over ``t`` for what may go at all. ``first`` are statements on the batch's :keys, run before it.
    With ``blanked`` (column → SQL) rows stay and only lose those columns; else they are deleted.
    """

    key: str
    """What it is and why it goes is told by this, as ``term.data_set`` and ``term.data_set_why``."""
    table: str
    age: str
    days: int
    where: str = "true"
    first: tuple[str, ...] = ()
    blanked: Mapping[str, str] = field(default_factory=dict)

    @property
    def predicate(self) -> str:
        return f"t.{self.age} < :cutoff AND ({self.where})"


_EXPIRED_BOOKINGS = DataSet(
    "expired_bookings",
    "appointment",
    "expired_at",
    7,
    where="t.status = 'expired'",
    first=("DELETE FROM hold WHERE appointment_id = ANY(:keys) OR offered_to = ANY(:keys)",),
)

REGISTRY: tuple[DataSet, ...] = (
    DataSet(
        "ended_holds",
        "hold",
        "ended_at",
        30,
    ),
    _EXPIRED_BOOKINGS,
    DataSet(
        "booking_contacts",
        "appointment",
        "ends_at",
        180,
        where="t.contact_email IS NOT NULL OR t.contact_phone IS NOT NULL",
        blanked={"contact_email": "NULL", "contact_phone": "NULL"},
    ),
    DataSet(
        "open_questions",
        "knowledge_question",
        "last_at",
        180,
    ),
    DataSet(
        "past_slots",
        "slot",
        "ends_at",
        400,
        first=(
            "DELETE FROM seat WHERE slot_id = ANY(:keys)",
            "DELETE FROM hold WHERE slot_id = ANY(:keys)",
            "DELETE FROM orphan WHERE slot_id = ANY(:keys)",
            "UPDATE appointment SET slot_id = NULL WHERE slot_id = ANY(:keys)",
        ),
    ),
    DataSet(
        "payment_contacts",
        "payment_case",
        "resolved_at",
        180,
        where="t.contact_email IS NOT NULL OR t.contact_phone IS NOT NULL",
        blanked={"contact_email": "NULL", "contact_phone": "NULL"},
    ),
    DataSet(
        "settled_orphans",
        "orphan",
        "resolved_at",
        400,
    ),
    DataSet(
        "resolved_quarantine",
        "quarantine",
        "resolved_at",
        90,
    ),
    DataSet(
        "settled_events",
        "event_inbox",
        "changed_at",
        90,
        where="""t.state IN ('applied', 'superseded', 'skipped')
                 AND NOT EXISTS (SELECT FROM event_gap g WHERE g.clinic_id = t.clinic_id AND g.lost_at IS NULL
                                                           AND lower(g.span) <= t.sequence)""",
    ),
    DataSet(
        "lost_events",
        "event_gap",
        "lost_at",
        90,
    ),
    DataSet(
        "verification_secrets",
        "verification",
        "expires_at",
        30,
    ),
    DataSet(
        "front_answers",
        "front_answer",
        "answered_at",
        7,
    ),
    DataSet(
        "decided_reviews",
        "patient_review",
        "decided_at",
        180,
        where="t.record <> '{}'",
        blanked={"record": "CAST('{}' AS jsonb)"},
    ),
    DataSet(
        "message_texts",
        "message",
        "changed_at",
        180,
        # What never went out is as private as what did; a doubt waits for a person.
        where="""t.state IN ('sent', 'withheld', 'failed')
                 AND num_nonnulls(t.body, t.subject, t.address, t.context) > 0""",
        blanked={"body": "NULL", "subject": "NULL", "address": "NULL", "context": "NULL"},
    ),
    DataSet(
        "message_replies",
        "message_reply",
        "received_at",
        180,
        # What waits for somebody to read it is kept until she has.
        where="t.settled_at IS NOT NULL AND (t.outcome <> 'desk' OR t.handled_at IS NOT NULL)",
    ),
    DataSet(
        "message_receipts",
        "message_receipt",
        "received_at",
        30,
        where="t.settled_at IS NOT NULL",
    ),
    DataSet(
        "service_runs",
        "service_run",
        "started_at",
        400,
        where="""EXISTS (SELECT FROM service_run n WHERE n.service = t.service AND n.id > t.id
                         AND (t.preview OR NOT n.preview)
                         AND n.clinic_id IS NOT DISTINCT FROM t.clinic_id)""",
    ),
    DataSet(
        "message_attempts",
        "message_attempt",
        "at",
        730,
    ),
    DataSet(
        "old_messages",
        "message",
        "changed_at",
        730,
        # Invitations are counted for ever, a doubt waits for a person, and what is ahead must not be told again.
        where="""t.state IN ('sent', 'withheld', 'failed') AND t.kind <> 'activation'
                 AND NOT EXISTS (SELECT FROM message_ledger l JOIN appointment a ON a.id = l.subject_id
                                 WHERE l.message_id = t.id AND l.subject = 'appointment' AND a.starts_at >= :cutoff)""",
        first=(
            "DELETE FROM message_attempt WHERE message_id = ANY(:keys)",
            "DELETE FROM message_ledger WHERE message_id = ANY(:keys)",
        ),
    ),
    DataSet(
        "old_withheld",
        "message_ledger",
        "planned_at",
        730,
        where="""t.message_id IS NULL
                 AND NOT EXISTS (SELECT FROM appointment a WHERE a.id = t.subject_id AND a.starts_at >= :cutoff)""",
    ),
    DataSet(
        "patient_looks",
        "patient_look",
        "at",
        732,  # 24 months in any year and zone; the table itself lets nothing younger go
    ),
)

UNVERIFIED_BOOKINGS = (_EXPIRED_BOOKINGS,)
"""The second stage of :mod:`clinic.bookings`, which its own service works off as well."""


def data_sets(keys: Iterable[str] = ()) -> tuple[DataSet, ...]:
    """Those of the registry that are named; all of them for none.

    Raises:
        PermanentError: naming what is not in the registry.
    """
    known = {each.key: each for each in REGISTRY}
    wanted = list(keys)
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise PermanentError("unknown_data_set", asked=Several(tuple(unknown)), known=Several(tuple(known)))
    return tuple(known[key] for key in wanted) or REGISTRY
