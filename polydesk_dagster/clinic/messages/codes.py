"""What a carrier's code says, for people who do not know it by heart: words where it is known, and the code itself."""

from __future__ import annotations

import re

from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.values import Reason, Term, Value

_MAIL_IN_FULL = {
    "1.0": "no_mailbox", "1.1": "no_mailbox", "1.3": "no_mailbox", "1.6": "no_mailbox", "1.10": "no_domain",
    "1.2": "no_domain", "2.1": "mailbox_off", "2.2": "mailbox_full", "2.3": "too_big", "3.4": "too_big",
    "4.1": "their_server", "4.2": "their_server", "4.4": "their_server", "4.7": "their_server",
    "7.0": "policy", "7.1": "policy", "7.8": "credentials", "7.23": "signature", "7.26": "signature",
}  # fmt: skip
"""Subject and detail of an enhanced status (RFC 3463, 7372, 7505); its class only says whether for good."""
_MAIL = {
    "421": "closing", "450": "mailbox_busy", "451": "their_trouble", "452": "their_trouble", "454": "their_trouble",
    "530": "credentials", "534": "credentials", "535": "credentials", "550": "no_mailbox_or_policy",
    "551": "no_mailbox", "552": "mailbox_full", "553": "no_mailbox", "554": "policy", "smtputf8": "letters",
}  # fmt: skip
_GATEWAY = {
    "401": "credentials", "403": "credentials", "404": "address", "408": "their_trouble", "429": "too_fast",
    "500": "their_trouble", "502": "their_trouble", "503": "their_trouble", "504": "their_trouble",
    "undeliverable absent": "phone_off", "undeliverable blocked": "phone_blocked", "undeliverable full": "phone_full",
    "undeliverable unknown_number": "no_number", "undeliverable expired": "phone_expired",
    "undeliverable network": "phone_network", "200 unreadable": "unreadable", "202 unreadable": "unreadable",
    "200 of another message": "of_another", "202 of another message": "of_another",
}  # fmt: skip
_LINE = frozenset({
    "address", "address_leads_inside", "certificate", "cut", "no_name", "no_tls", "no_way", "protocol", "refused",
    "timed_out", "tls", "unknown",
})  # fmt: skip
"""How the line itself failed, as ``failure`` calls it."""


def in_words(channel: Channel, code: str | None) -> Value:
    """The code of an ``Answer`` on ``channel`` as it is told; None where there is none."""
    if not code:
        return None
    if code in _LINE:
        return Term("failure", code)
    known = _mail(code) if channel == "email" else _GATEWAY.get(code)
    return code if known is None else Reason("carrier_code", {"words": Term("carrier_code", known), "code": code})


def answered(channel: Channel, answer: str, code: str | None) -> Value:
    """An ``answer`` of the ledger and its code: what became of an attempt, of a look-up, or of what was taken."""
    fate = Term("carrier_answer", answer.replace("look_up:", "look_up_"))
    why = in_words(channel, code)
    return fate if why is None else Reason("carrier_answered", {"answer": fate, "why": why})


def _mail(code: str) -> str | None:
    plain, _, full = code.partition(" ")
    detail = re.fullmatch(r"[245]\.(.+)", full)
    return _MAIL_IN_FULL.get(detail[1] if detail else "") or _MAIL.get(plain)
