"""What is kept, for how long and why: the retention registry. What is not listed here, no clean-up can touch.

Clinical records, invoices, access logs and the audit trail are not listed; the message ledger is only once nobody could
be told twice for want of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from polydesk_dagster.errors import PermanentError


@dataclass(frozen=True, slots=True)
class DataSet:
    """One kind of record that does not live for ever.

    ``where`` is SQL over ``t`` for what may go at all. ``first`` are statements on the batch's :keys, run before it.
    With ``blanked`` (column → SQL) rows stay and only lose those columns; else they are deleted.
    """

    key: str
    name: str
    table: str
    age: str
    days: int
    why: str
    where: str = "true"
    first: tuple[str, ...] = ()
    blanked: Mapping[str, str] = field(default_factory=dict)

    @property
    def predicate(self) -> str:
        return f"t.{self.age} < :cutoff AND ({self.where})"


_EXPIRED_BOOKINGS = DataSet(
    "expired_bookings",
    "prenotazioni online mai verificate",
    "appointment",
    "expired_at",
    7,
    "il paziente ha avuto una settimana per farsi vivo; i suoi recapiti non servono più (GDPR art. 5.1.e)",
    where="t.status = 'expired'",
    first=("DELETE FROM hold WHERE appointment_id = ANY(:keys)",),
)

REGISTRY: tuple[DataSet, ...] = (
    DataSet(
        "ended_holds",
        "orari bloccati già conclusi",
        "hold",
        "ended_at",
        30,
        "servono solo a rispondere a chi conferma in ritardo",
    ),
    _EXPIRED_BOOKINGS,
    DataSet(
        "booking_contacts",
        "recapiti scritti nelle prenotazioni online",
        "appointment",
        "ends_at",
        180,
        "dopo la visita valgono i recapiti dell'anagrafica (GDPR art. 5.1.c)",
        where="t.contact_email IS NOT NULL OR t.contact_phone IS NOT NULL",
        blanked={"contact_email": "NULL", "contact_phone": "NULL"},
    ),
    DataSet(
        "past_slots",
        "orari passati delle agende",
        "slot",
        "ends_at",
        400,
        "l'appuntamento conserva data e ora; lo slot serviva a prenotarlo",
        first=(
            "DELETE FROM seat WHERE slot_id = ANY(:keys)",
            "DELETE FROM hold WHERE slot_id = ANY(:keys)",
            "DELETE FROM orphan WHERE slot_id = ANY(:keys)",
            "UPDATE appointment SET slot_id = NULL WHERE slot_id = ANY(:keys)",
        ),
    ),
    DataSet(
        "settled_orphans",
        "prenotazioni ricollocate",
        "orphan",
        "resolved_at",
        400,
        "la segreteria ha già risolto",
    ),
    DataSet(
        "resolved_quarantine",
        "record esterni scartati e poi corretti",
        "quarantine",
        "resolved_at",
        90,
        "la fonte li ha corretti; possono contenere dati di pazienti",
    ),
    DataSet(
        "settled_events",
        "eventi di studiolab già conclusi",
        "event_inbox",
        "changed_at",
        90,
        "servono solo a riconoscere un evento che arriva di nuovo: studiolab non ne ripete di così vecchi",
        where="""t.state IN ('applied', 'superseded', 'skipped')
                 AND NOT EXISTS (SELECT FROM event_gap g WHERE g.clinic_id = t.clinic_id AND g.lost_at IS NULL
                                                           AND lower(g.span) <= t.sequence)""",
    ),
    DataSet(
        "lost_events",
        "numeri di eventi di studiolab mai arrivati",
        "event_gap",
        "lost_at",
        90,
        "la segreteria lo ha saputo per una settimana e li ha confrontati",
    ),
    DataSet(
        "verification_secrets",
        "codici e collegamenti per confermare le prenotazioni online",
        "verification",
        "expires_at",
        30,
        "non valgono più; finché ci sono, chi riapre il collegamento legge che cosa è successo",
    ),
    DataSet(
        "decided_reviews",
        "anagrafiche simili già decise",
        "patient_review",
        "decided_at",
        180,
        "resta la decisione, non la copia dei dati del paziente",
        where="t.record <> '{}'",
        blanked={"record": "CAST('{}' AS jsonb)"},
    ),
    DataSet(
        "message_texts",
        "testi e recapiti dei messaggi conclusi",
        "message",
        "changed_at",
        180,
        "resta nel registro se il messaggio è partito, non che cosa diceva né a chi (GDPR art. 5.1.c)",
        # What never went out is as private as what did; a doubt waits for a person.
        where="""t.state IN ('sent', 'withheld', 'failed')
                 AND num_nonnulls(t.body, t.subject, t.address, t.context) > 0""",
        blanked={"body": "NULL", "subject": "NULL", "address": "NULL", "context": "NULL"},
    ),
    DataSet(
        "service_runs",
        "storico delle esecuzioni dei servizi",
        "service_run",
        "started_at",
        400,
        "oltre un anno non serve a confrontare; resta sempre l'ultima di ogni servizio",
        where="""EXISTS (SELECT FROM service_run n WHERE n.service = t.service AND n.id > t.id
                         AND (t.preview OR NOT n.preview)
                         AND n.clinic_id IS NOT DISTINCT FROM t.clinic_id)""",
    ),
    DataSet(
        "message_attempts",
        "risposte dei gestori ai messaggi",
        "message_attempt",
        "at",
        730,
        "dopo due anni nessuno chiede più perché un messaggio tardò",
    ),
    DataSet(
        "old_messages",
        "registro dei messaggi di oltre due anni fa",
        "message",
        "changed_at",
        730,
        "dopo due anni non serve più sapere chi fu avvisato; le statistiche ne tengono il numero (GDPR art. 5.1.e)",
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
        "appuntamenti di oltre due anni fa per cui non si scrisse",
        "message_ledger",
        "planned_at",
        730,
        "dopo due anni non serve più sapere perché; le statistiche ne tengono il numero (GDPR art. 5.1.e)",
        where="""t.message_id IS NULL
                 AND NOT EXISTS (SELECT FROM appointment a WHERE a.id = t.subject_id AND a.starts_at >= :cutoff)""",
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
        raise PermanentError(
            f"«{', '.join(unknown)}» non è nel registro di conservazione: la pulizia non può toccarlo. "
            f"Ci sono: {', '.join(known)}."
        )
    return tuple(known[key] for key in wanted) or REGISTRY
