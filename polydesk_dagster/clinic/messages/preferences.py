"""What people do not want: opt-outs of a patient, and the STOP that is answered to a message."""

from __future__ import annotations

import re
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.kinds import KINDS, Channel
from polydesk_dagster.clinic.patients.cleaning import e164

_STOP = re.compile(r"\W*(stop|basta|ferma|cancella(mi)?|disiscrivi(mi)?|abmelden|unsubscribe)\b", re.IGNORECASE)
_START = re.compile(r"\W*(start|riprendi|iscrivi(mi)?|anmelden)\b", re.IGNORECASE)


def receive(connection: sa.Connection, channel: Channel, address: str, text: str, as_of: datetime) -> str | None:
    """Take in what came back to a message: ``stop`` blocks the address for everybody who has it, ``start`` unblocks
    it. Returns which of the two it was, or None."""
    key = {"channel": channel, "address": address.strip().lower()}
    if _STOP.match(text):
        connection.execute(
            sa.text("""
                INSERT INTO message_block (channel, address, cause, since) VALUES (:channel, :address, 'stop', :as_of)
                ON CONFLICT (channel, address) DO UPDATE SET cause = 'stop', since = excluded.since"""),
            {**key, "as_of": as_of},
        )
        return "stop"
    if _START.match(text):
        connection.execute(
            sa.text("DELETE FROM message_block WHERE channel = :channel AND address = :address AND cause = 'stop'"), key
        )
        return "start"
    return None


def read_address(typed: str) -> tuple[Channel, str] | None:
    """What the desk typed, as (channel, address) in the form in which addresses are kept; None if it can be neither a
    telephone nor an e-mail."""
    wanted = typed.strip()
    if "@" in wanted:
        return "email", wanted.lower()
    number = e164(wanted)
    return None if number is None else ("sms", number)


def unblock(connection: sa.Connection, channel: Channel, address: str) -> bool:
    """A person says that an address may be written to again, whyever it was blocked. Returns whether it was."""
    return bool(
        connection.execute(
            sa.text("DELETE FROM message_block WHERE channel = :channel AND address = :address"),
            {"channel": channel, "address": address},
        ).rowcount
    )


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
