"""Where a patient's data stand: the registry of every personal column, and what erasure does to each.

What is asked for by art. 15 and 20 GDPR is everything listed here; what art. 17 takes away is what is not ``kept``.
Erasure never reaches what art. 17(3) excepts, and each exception names its rule:

- ``accounting``: what was booked and paid is kept ten years with the books (art. 2220 codice civile; art. 17(3)(b)).
- ``clinical``: reports belong to the clinical record, which is kept without end (circolare del Ministero della Sanità
  n. 61 of 19 December 1986; art. 9(2)(h) and 17(3)(c)) by the practice system; here only a pointer without title and
  address stays, so that its numbers do not change.
- ``refusal``: that somebody wants no messages is kept so that it is obeyed (art. 7(3), 21(3) and 17(3)(b); art. 130
  D.lgs. 196/2003).
- ``proof``: who saw and who changed a patient's data is kept (Garante, guidelines on the health dossier of 4 June 2015:
  at least 24 months; art. 5(2), 17(3)(e)). These lines hold the patient's number, never a name.
- ``twice``: what a message was about and whether it went, without text and address, and by which number a source knows
  the patient, so that nothing is told twice and nobody comes back by an import (art. 17(1) would be undone else).
- ``employment``: who works here keeps her account, which no longer says that she is a patient too.

The patient's own row stays as a number without anything that says who it was: what is kept refers to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Deed(StrEnum):
    """What erasure does with a data set."""

    DELETE = "delete"
    BLANK = "blank"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Personal:
    """Some columns of one table, and which rows ``t`` of it are about the patient ``:patient``.

    ``blank`` (column → SQL over ``t``) is what a blanked row becomes, ``still`` whether there is something to blank;
    ``first`` are statements that make way. ``law`` says why something stays, of a blanked row why the row does.
    ``hidden`` columns are no part of what a person is given: secrets, and who works here. ``beside`` (name → SQL) is
    what makes a row readable to whom it is about.
    """

    key: str
    """What it is, told as ``term.personal.<key>``."""
    table: str
    columns: tuple[str, ...]
    whose: str
    deed: Deed
    law: str | None = None
    blank: Mapping[str, str] = field(default_factory=dict)
    still: str = "true"
    first: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def due(self) -> str:
        """SQL over ``t``: erasure has something to do with this row."""
        return f"({self.whose}) AND ({self.still})"


def _nothing(*columns: str) -> dict[str, str]:
    return dict.fromkeys(columns, "NULL")


BOOKINGS = "(SELECT a.id FROM appointment a WHERE a.patient_id = :patient)"
_USERS = "(SELECT u.id FROM app_user u WHERE u.patient_id = :patient AND u.role = 'patient')"
_REPORTS = "(SELECT r.id FROM report r WHERE r.patient_id = :patient)"
MESSAGES = f"""(SELECT m.id FROM message m WHERE m.recipient_type = 'patient' AND m.recipient_id = :patient
                UNION SELECT m.id FROM message m WHERE m.recipient_type = 'user' AND m.recipient_id IN {_USERS}
                UNION SELECT m.id FROM message m WHERE m.recipient_type = 'booking' AND m.recipient_id IN {BOOKINGS}
                UNION SELECT l.message_id FROM message_ledger l
                      WHERE l.subject = 'appointment' AND l.subject_id IN {BOOKINGS}
                         OR l.subject = 'report' AND l.subject_id IN {_REPORTS}
                         OR l.subject = 'user' AND l.subject_id IN {_USERS})"""
"""To her, or to somebody else about her: a child's text goes to who looks after it."""

_OWN = """(SELECT lower(x) FROM patient p, unnest(ARRAY[p.email, p.phone, p.mobile]) x WHERE p.id = :patient)"""

_ADDRESSES = """(SELECT lower(x) FROM patient p, unnest(ARRAY[p.email, p.phone, p.mobile]) x WHERE p.id = :patient
                  UNION SELECT lower(u.email) FROM app_user u WHERE u.patient_id = :patient
                  UNION SELECT lower(x) FROM appointment a, unnest(ARRAY[a.contact_email, a.contact_phone]) x
                        WHERE a.patient_id = :patient)"""


def names_her(text: str) -> str:
    """SQL: the JSON ``text`` names the patient by code, address, telephone, or name and date of birth."""

    def has(value: str) -> str:
        return f"strpos(lower({text}), lower(nullif({value}, ''))) > 0"

    digits = [f"right(nullif(p.{column}, ''), 9)" for column in ("mobile", "phone")]
    alone = " OR ".join(has(value) for value in ("p.fiscal_code", "p.email", *digits))
    together = " AND ".join(has(value) for value in ("p.last_name", "p.first_name", "CAST(p.birth_date AS text)"))
    return f"EXISTS (SELECT FROM patient p WHERE p.id = :patient AND ({alone} OR {together}))"


def known_as(external_id: str, clinic_id: str = "t.clinic_id") -> str:
    """SQL: by this number a clinic's source knows the patient."""
    return f"""EXISTS (SELECT FROM patient_link k WHERE k.patient_id = :patient AND k.clinic_id = {clinic_id}
                                                    AND k.external_id = {external_id})"""


_CONTACTS = f"""(t.patient_id = :patient
                 OR t.patient_id IS NULL AND (lower(t.contact_email) IN {_OWN} OR t.contact_phone IN {_OWN}))"""
"""Who books online and never verifies has no number yet, only a way to be reached."""

_SAID_BY_SOURCE = """EXISTS (SELECT FROM patient_link k WHERE k.patient_id = :patient AND k.clinic_id = t.clinic_id
                             AND strpos(CAST(t.payload AS text), CAST(to_json(k.external_id) AS text)) > 0)"""

_OF_BOOKING = {
    "clinic": "(SELECT c.name FROM clinic c WHERE c.id = t.clinic_id)",
    "service": "(SELECT v.name FROM service v WHERE v.id = t.service_id)",
}

# What quotes her by what her own row says goes before that row does.
REGISTRY: tuple[Personal, ...] = (
    Personal(
        "source_records", "quarantine", ("record_key", "message", "record", "settled_by", "settled_reason"),
        f"t.kind = 'patient' AND {known_as('t.record_key')} OR {names_her('CAST(t.record AS text)')}",
        Deed.DELETE,
    ),
    Personal(
        "source_events", "event_inbox", ("entity", "payload"),
        f"{_SAID_BY_SOURCE} OR {names_her('CAST(t.payload AS text)')}",
        Deed.BLANK, "twice",
        blank={"payload": "NULL", "state": "'skipped'", "reason": "'erased'", "next_try_at": "NULL",
               "changed_at": ":as_of"},
        still="t.payload IS NOT NULL",
    ),
    Personal(
        "doubts", "patient_review", ("external_id", "candidates", "record", "reason", "decided_by"),
        f"{known_as('t.external_id')} OR {names_her('CAST(t.record AS text)')}",
        Deed.BLANK, "twice",
        blank={
            "record": "CAST('{}' AS jsonb)", "candidates": "array_remove(t.candidates, :patient)", "reason": "'erased'",
            "state": "CASE t.state WHEN 'open' THEN 'dismissed' ELSE t.state END",
            "decided_at": "coalesce(t.decided_at, :as_of)", "decided_by": "coalesce(t.decided_by, 'erasure')",
        },
        still="t.record <> '{}' OR :patient = ANY(t.candidates)",
        first=(
            f"""DELETE FROM patient_review t WHERE t.state = 'open'
                AND ({known_as('t.external_id')} OR {names_her('CAST(t.record AS text)')})
                AND EXISTS (SELECT FROM patient_review d WHERE d.clinic_id = t.clinic_id
                            AND d.external_id = t.external_id AND d.state = 'dismissed')""",
        ),
        hidden=("decided_by", "candidates"), beside={"record": "t.record - 'identity'"},
    ),
    Personal("discrepancies", "patient_discrepancy", ("ours", "theirs"), "t.patient_id = :patient", Deed.DELETE),
    Personal(
        "source_links", "patient_link", ("external_id", "suspended_reason", "identity"), "t.patient_id = :patient",
        Deed.BLANK, "twice", blank={"identity": "NULL"}, still="t.identity IS NOT NULL", hidden=("identity",),
    ),
    Personal(
        "ended_links", "patient_link_ended", ("external_id", "reason"), "t.patient_id = :patient", Deed.DELETE,
    ),
    Personal(
        "message_answers", "message_attempt", ("answer", "code"), f"t.message_id IN {MESSAGES}", Deed.KEEP, "twice",
    ),
    Personal(
        "replies",
        "message_reply",
        ("external_id", "address", "body", "reason", "handled_by"),
        f"t.message_id IN {MESSAGES} OR lower(t.address) IN {_ADDRESSES}",
        Deed.DELETE,
        hidden=("handled_by",),
    ),
    Personal(
        "receipts",
        "message_receipt",
        ("external_id", "reference"),
        f"""t.reference IN (SELECT m.provider_reference FROM message m
                            WHERE m.id IN {MESSAGES} AND m.provider_reference IS NOT NULL)""",
        Deed.DELETE,
    ),
    Personal(
        "message_texts", "message",
        ("context", "address", "subject", "body", "provider_reference", "settled_by", "resent_by", "resent_why"),
        f"t.id IN {MESSAGES}",
        Deed.BLANK, "twice",
        blank={
            **_nothing("context", "address", "subject", "body", "provider_reference", "resent_by", "resent_why"),
            "reason": "CASE WHEN t.state IN ('planned', 'retry') THEN 'erased' ELSE t.reason END",
            "state": "CASE WHEN t.state IN ('planned', 'retry') THEN 'withheld' ELSE t.state END",
        },
        still="""num_nonnulls(t.context, t.address, t.subject, t.body, t.provider_reference, t.resent_why) > 0
                 OR t.state IN ('planned', 'retry')""",
        hidden=("idempotency_key", "settled_by", "resent_by"),
    ),
    Personal(
        "ledger", "message_ledger", ("withheld",),
        f"""t.recipient_type = 'patient' AND t.recipient_id = :patient
            OR t.subject = 'appointment' AND t.subject_id IN {BOOKINGS}
            OR t.subject = 'report' AND t.subject_id IN {_REPORTS}""",
        Deed.KEEP, "twice",
    ),
    Personal(
        "answers",
        "appointment_answer",
        ("said", "via"),
        f"t.appointment_id IN {BOOKINGS}",
        Deed.DELETE,
    ),
    Personal(
        "calls", "call_list", ("reason", "outcome", "done_by"), f"t.appointment_id IN {BOOKINGS}", Deed.DELETE,
        hidden=("done_by",),
    ),
    Personal("opt_outs", "message_opt_out", ("source",), "t.patient_id = :patient", Deed.KEEP, "refusal"),
    Personal(
        "stops", "message_block", ("address", "code", "lifted_by", "lift_reason"),
        f"lower(t.address) IN {_ADDRESSES} AND t.cause = 'stop'", Deed.KEEP, "refusal", hidden=("lifted_by",),
    ),
    Personal(
        "refused_addresses", "message_block", ("address", "code", "lift_reason"),
        f"lower(t.address) IN {_ADDRESSES} AND t.cause <> 'stop'", Deed.DELETE, hidden=("lifted_by",),
    ),
    Personal(
        "verifications", "verification", ("channel", "secret_hash", "salt"), f"t.appointment_id IN {BOOKINGS}",
        Deed.DELETE, hidden=("secret_hash", "salt"),
    ),
    Personal(
        "booking_keys", "front_booking", ("key_hash",), f"t.appointment_id IN {BOOKINGS}", Deed.DELETE,
        hidden=("key_hash",),
    ),
    Personal(
        "payment_contacts", "payment_case",
        ("contact_email", "contact_phone", "payment_reference", "resolved_by"),
        f"""{_CONTACTS}
            OR t.hold_id IN (SELECT h.id FROM hold h WHERE h.appointment_id IN {BOOKINGS})""",
        Deed.BLANK, "accounting", blank=_nothing("contact_email", "contact_phone"),
        still="num_nonnulls(t.contact_email, t.contact_phone) > 0", hidden=("resolved_by",),
        beside=_OF_BOOKING,
    ),
    Personal(
        "holds", "hold", ("token_hash", "visitor_hash", "payment_reference"), f"t.appointment_id IN {BOOKINGS}",
        Deed.KEEP, "accounting", hidden=("token_hash", "visitor_hash"),
    ),
    Personal(
        "bookings", "appointment",
        ("external_id", "contact_email", "contact_phone", "overlap_reason", "accepted_desk"), _CONTACTS,
        Deed.BLANK, "accounting", blank=_nothing("contact_email", "contact_phone", "overlap_reason"),
        still="num_nonnulls(t.contact_email, t.contact_phone, t.overlap_reason) > 0", hidden=("accepted_desk",),
        beside=_OF_BOOKING,
    ),
    Personal("packages", "package", ("name",), "t.patient_id = :patient", Deed.KEEP, "accounting"),
    Personal(
        "reports", "report", ("external_id", "title", "url"), "t.patient_id = :patient", Deed.BLANK, "clinical",
        blank={"title": "'—'", "url": "NULL"}, still="t.title <> '—' OR t.url IS NOT NULL",
    ),
    Personal("looks", "patient_look", ("person", "page"), "t.patient_id = :patient", Deed.KEEP, "proof"),
    Personal(
        "login_attempts", "login_attempt", ("account", "address"),
        """t.account IN (SELECT sha256(convert_to(lower(u.email), 'UTF8')) FROM app_user u
                         WHERE u.patient_id = :patient AND u.role = 'patient')""",
        Deed.DELETE, hidden=("account",),
    ),
    Personal(
        "invitations", "activation_token", ("token_hash",), f"t.user_id IN {_USERS}", Deed.DELETE,
        hidden=("token_hash",),
    ),
    Personal(
        "account", "app_user", ("email", "display_name"), "t.patient_id = :patient AND t.role = 'patient'", Deed.DELETE,
    ),
    Personal(
        "staff_account", "app_user", (), "t.patient_id = :patient AND t.role <> 'patient'", Deed.BLANK, "employment",
        blank={"patient_id": "NULL"},
    ),
    Personal(
        "person", "patient",
        ("fiscal_code", "fiscal_code_canonical", "fiscal_code_kind", "last_name", "first_name", "sex", "birth_place",
         "residence", "address", "postal_code", "email", "phone", "mobile", "language", "preferred_channel"),
        "t.id = :patient", Deed.BLANK, "accounting",
        blank={
            **_nothing("fiscal_code", "fiscal_code_canonical", "fiscal_code_kind", "sex", "birth_date", "birth_place",
                       "residence", "address", "postal_code", "email", "phone", "mobile", "preferred_channel",
                       "guardian_id", "deceased_on"),
            "last_name": "'—'", "first_name": "'—'", "language": "'it'", "erased_at": ":as_of", "updated_at": ":as_of",
        },
        still="t.erased_at IS NULL",
    ),
    Personal("erasures", "erasure", ("dataset", "deed"), "t.patient_id = :patient", Deed.KEEP, "proof"),
)  # fmt: skip
