"""What people say of what they are sent: opt-outs of a patient, and the words that are answered to a text."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.kinds import KINDS, Channel
from polydesk_dagster.clinic.patients.cleaning import e164

Reading = Literal["stop", "start", "confirm", "cancel"]

# What may stand around the word: none of these changes what it means.
_COURTESY = re.compile(
    r"\b(?:buon ?giorno|buona ?sera|buon ?di|salve|ciao|grazie(?: mille)?|per favore|per cortesia|prego|"
    r"(?:cordiali|distinti) saluti|saluti|hallo|guten (?:tag|morgen|abend)|bitte|danke(?: schon)?|hello|please|"
    r"thank you|thanks)\b"
)
_STOP = frozenset({
    "stop", "stopall", "stop all", "stop sms", "sms stop", "stop messaggi", "stop email", "stop mail",
    "basta", "basta sms", "basta messaggi", "basta email",
    "disiscrivi", "disiscrivimi", "disiscrivetemi", "cancellami", "cancellatemi", "cancella iscrizione",
    "annulla iscrizione", "non scrivetemi piu", "non mi scrivete piu", "non voglio piu messaggi",
    "non voglio ricevere messaggi", "non voglio piu ricevere messaggi",
    "unsubscribe", "abmelden", "abbestellen", "keine sms", "keine sms mehr", "keine nachrichten mehr",
})  # fmt: skip
_START = frozenset({
    "start", "unstop", "riprendi", "riprendete", "iscrivi", "iscrivimi", "iscrivetemi", "anmelden", "subscribe",
})  # fmt: skip
"""The whole of a text, courtesies aside; anything else is for the desk to read. «Cancella» and «annulla» alone are
not here: they may speak of the appointment."""


_READINGS: dict[str, Reading] = {
    **dict.fromkeys(_STOP, "stop"),
    **dict.fromkeys(_START, "start"),
    **dict.fromkeys(("1", "uno", "eins", "one", "confermo", "ich bestatige"), "confirm"),
    **dict.fromkeys(("2", "due", "zwei", "two", "disdico"), "cancel"),
}


def read(text: str) -> Reading | None:
    """What a text says as a whole, or None for what only a person can understand."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    words = " ".join(re.findall(r"[a-z0-9]+", bare))
    said = " ".join(_COURTESY.sub(" ", words).split())
    return _READINGS.get(said)


def read_address(typed: str) -> tuple[Channel, str] | None:
    """A telephone or an e-mail however it was written, as (channel, address) in the form in which addresses are kept;
    None if it can be neither."""
    wanted = typed.strip()
    if "@" in wanted:
        return "email", wanted.lower()
    number = e164(wanted)
    return None if number is None else ("sms", number)


def opt_out(
    connection: sa.Connection, patient_id: int, channel: Channel, kind: str, *, source: str, as_of: datetime
) -> None:
    """A patient does not want ``kind`` ('any' for all) over ``channel``."""
    if kind != "any" and kind not in KINDS:
        raise ValueError(f"unknown kind of message: {kind}")
    connection.execute(
        sa.text("""
            INSERT INTO message_opt_out (patient_id, channel, kind, since, source)
            VALUES (:patient, :channel, :kind, :as_of, :source) ON CONFLICT DO NOTHING"""),
        {"patient": patient_id, "channel": channel, "kind": kind, "as_of": as_of, "source": source},
    )
