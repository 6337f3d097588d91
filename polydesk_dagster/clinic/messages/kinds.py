"""The kinds of message, and the closed list of reasons for which one is not sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Channel = Literal["sms", "email"]
CHANNELS: tuple[Channel, ...] = ("sms", "email")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of message."""

    key: str
    name: str
    channels: tuple[Channel, ...] = CHANNELS
    any_hour: bool = False
    """Whether it may go out in quiet hours and on rest days: somebody is waiting for it."""
    refusable: bool = True
    """Whether a patient's opt-out for it counts; a STOP to a number always does."""
    capped: bool = True
    """Whether it counts towards, and is held by, the daily cap of a person."""


REMINDER = Kind("reminder", "Promemoria")
PREPARATION = Kind("preparation", "Preparazione")
ACTIVATION = Kind("activation", "Attivazione account", channels=("email",), any_hour=True, capped=False)
VERIFICATION = Kind("verification_nudge", "Conferma prenotazione online", any_hour=True, capped=False)
REPORT_READY = Kind("report_ready", "Referto disponibile")
NOTICE = Kind("service_notice", "Avviso di servizio", refusable=False, capped=False)

KINDS: dict[str, Kind] = {
    kind.key: kind for kind in (REMINDER, PREPARATION, ACTIVATION, VERIFICATION, REPORT_READY, NOTICE)
}
PASSING = (VERIFICATION.key, REPORT_READY.key, NOTICE.key)
"""Kinds that other parts of Polydesk put in the ledger; whichever dispatcher comes by first sends them."""


class Why(StrEnum):
    """Why a message was withheld or failed."""

    CANCELLED = "cancelled"
    MOVED = "moved"
    PAST = "past"
    TOO_LATE = "too_late"
    QUIET_HOURS = "quiet_hours"
    JUST_BOOKED = "just_booked"
    ALREADY_TOLD = "already_told"
    NO_PREPARATION = "no_preparation"
    DECEASED = "deceased"
    GONE = "gone"
    OPTED_OUT = "opted_out"
    NO_ADDRESS = "no_address"
    PERSON_CAP = "person_cap"
    TEMPLATE = "template"
    VERIFIED = "verified"
    REPORT_WITHDRAWN = "report_withdrawn"
    ACCOUNT = "account"
    REFUSED = "refused"
    EXHAUSTED = "exhausted"
    OPERATOR = "operator"


WHY_WORDS: dict[str, str] = {
    Why.CANCELLED: "appuntamento annullato o non più in programma",
    Why.MOVED: "appuntamento spostato dopo la pianificazione",
    Why.PAST: "appuntamento già iniziato",
    Why.TOO_LATE: "troppo tardi perché serva",
    Why.QUIET_HOURS: "solo ore di silenzio da qui a quando servirebbe",
    Why.JUST_BOOKED: "prenotato da poco: la conferma lo diceva già",
    Why.ALREADY_TOLD: "l'ultimo messaggio diceva già questo orario",
    Why.NO_PREPARATION: "la prestazione non richiede più preparazione",
    Why.DECEASED: "paziente o tutore deceduto",
    Why.GONE: "il destinatario non esiste più",
    Why.OPTED_OUT: "il paziente non vuole questi messaggi",
    Why.NO_ADDRESS: "nessun recapito utilizzabile: completa l'anagrafica",
    Why.PERSON_CAP: "raggiunto il massimo di messaggi al giorno per persona",
    Why.TEMPLATE: "il testo non si compone: correggi il template",
    Why.VERIFIED: "prenotazione già confermata o scaduta",
    Why.REPORT_WITHDRAWN: "referto ritirato, o sostituito da uno più nuovo",
    Why.ACCOUNT: "account già attivo, disabilitato o con email respinta",
    Why.REFUSED: "rifiutato dal gestore su ogni canale possibile",
    Why.EXHAUSTED: "esauriti i tentativi",
    Why.OPERATOR: "deciso da un operatore",
}
