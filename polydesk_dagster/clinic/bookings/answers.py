"""What a visitor who holds a slot is told: every answer to a request about a hold, and its sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Answer(StrEnum):
    """What became of a request."""

    PLACED = "placed"
    RENEWED = "renewed"
    CONFIRMING = "confirming"
    CONFIRMED = "confirmed"
    RELEASED = "released"

    FULL = "full"
    NOT_OFFERED = "not_offered"
    TOO_SOON = "too_soon"
    TOO_MANY = "too_many"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NO_MORE_RENEWALS = "no_more_renewals"
    SLOT_CLOSED = "slot_closed"
    SERVICE_NOT_OFFERED = "service_not_offered"
    ELSEWHERE = "elsewhere"
    PAID_TOO_LATE = "paid_too_late"
    TOO_LATE_TO_VERIFY = "too_late_to_verify"
    NO_CONTACT = "no_contact"
    NO_LONGER_BOOKED = "no_longer_booked"


SENTENCES: Mapping[Answer, str] = {
    Answer.PLACED: "L'orario è riservato per te: completa la prenotazione entro il tempo indicato.",
    Answer.RENEWED: "Hai ancora qualche minuto per completare la prenotazione.",
    Answer.CONFIRMING: "Stiamo registrando la prenotazione: l'orario resta tuo.",
    Answer.CONFIRMED: "La prenotazione è registrata.",
    Answer.RELEASED: "L'orario è stato lasciato libero: scegline un altro, o di nuovo lo stesso.",
    Answer.FULL: "Questo orario non è più libero: scegline un altro.",
    Answer.NOT_OFFERED: "Questo orario non si può prenotare online: scegline un altro o telefona alla segreteria.",
    Answer.TOO_SOON: "È troppo tardi per prenotare online questo orario: scegline un altro o telefona alla segreteria.",
    Answer.TOO_MANY: "Hai già altri orari in sospeso: completa o lascia quelli prima di sceglierne un altro.",
    Answer.UNKNOWN: "Non troviamo questa prenotazione in corso: scegli di nuovo l'orario.",
    Answer.EXPIRED: "Il tempo per completare la prenotazione è scaduto e l'orario è tornato libero: scegline uno.",
    Answer.REVOKED: "L'orario non è più riservato per te: la clinica ha liberato gli orari in sospeso. Scegline uno.",
    Answer.NO_MORE_RENEWALS: "Non è possibile avere altro tempo: completa la prenotazione entro la scadenza.",
    Answer.SLOT_CLOSED: "Nel frattempo l'agenda è stata chiusa in questo orario: scegline un altro.",
    Answer.SERVICE_NOT_OFFERED: "Questa prestazione non si può prenotare online in questo orario.",
    Answer.ELSEWHERE: "A quell'ora hai già un altro appuntamento: scegli un altro orario o telefona in segreteria.",
    Answer.PAID_TOO_LATE: "Abbiamo ricevuto il pagamento, ma nel frattempo l'orario è stato preso: la segreteria ti "
    "contatta per un altro orario o per il rimborso.",
    Answer.TOO_LATE_TO_VERIFY: "Manca troppo poco alla visita per verificare i recapiti: telefona in segreteria.",
    Answer.NO_CONTACT: "Per prenotare serve un recapito da verificare: scrivi l'email o il numero di telefono.",
    Answer.NO_LONGER_BOOKED: "Questa prenotazione non è più in programma: è stata annullata, o i recapiti non sono "
    "stati verificati in tempo. Prenota di nuovo o telefona in segreteria.",
}
"""What the visitor reads."""

DONE = frozenset({Answer.PLACED, Answer.RENEWED, Answer.CONFIRMING, Answer.CONFIRMED, Answer.RELEASED})


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request about one hold."""

    answer: Answer
    hold_id: int | None = None
    expires_at: datetime | None = None
    """Until when the slot is kept, after a placed or renewed hold."""
    appointment_id: int | None = None

    @property
    def sentence(self) -> str:
        return SENTENCES[self.answer]

    @property
    def done(self) -> bool:
        """Whether what was asked has been done. A hold found released answers RELEASED to any request: compare the
        answer where that matters."""
        return self.answer in DONE
