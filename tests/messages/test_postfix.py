"""A letter as a real Postfix leaves it in the mailbox, byte by byte."""

from __future__ import annotations

import asyncio
import re
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime

import pytest

from polydesk_dagster.clinic.messages.provider import Event, Fate, Outgoing
from polydesk_dagster.providers.smtp import MailRelay
from tests.messages import postfix
from tests.messages.world import AS_OF
from tests.waiting import PATIENCE

LINK = "https://polydesk.example/basta/" + "x" * 32
SENDER = "Poliambulatorio Città Studî e Qualità <no-reply@clinica.example>"
LETTER = Outgoing(
    "5f0c2a5e-9c1c-4f2f-8f0e-0d9f3c2b1a00",
    "anna@example.org",
    "Promemoria: è mercoledì",
    "Gentile Anna,\n\nperché l'appuntamento è mercoledì:\n\n- ore 9:00, caffè no\n.punto da solo\n" + "à" * 1200 + "\n",
    "it",
    "segreteria@clinica.example",
    LINK,
    (Event("BO01-7", 0, AS_OF, AS_OF, "Appuntamento, Poliambulatorio Città", "Via dell'Università, 1"),),
)


@pytest.mark.parametrize("without", ["", "8bitmime,smtputf8,chunking"], ids=["modern", "old"])
def test_what_lies_in_the_mailbox_is_well_formed(without: str) -> None:
    with postfix.running(without=without) as relay:
        carrier = MailRelay(relay.url, SENDER, patience=PATIENCE)

        async def send() -> Fate:
            async with carrier:
                return (await carrier.send(LETTER)).fate

        assert asyncio.run(send()) is Fate.ACCEPTED
        raw = relay.delivered()
    head, _, body = raw.partition(b"\n\n")
    unfolded = re.sub(rb"\n[ \t]+", b" ", head)
    assert raw.isascii()
    assert max(map(len, raw.splitlines())) <= 998
    for name in (b"Date", b"Message-ID", b"From", b"Reply-To", b"List-Unsubscribe", b"List-Unsubscribe-Post"):
        assert len(re.findall(rb"(?m)^%s: " % name, unfolded)) == 1, name
    (stop,) = re.findall(rb"(?m)^List-Unsubscribe: (.*)$", head)
    assert stop.startswith(b"<" + LINK.encode() + b">, <mailto:no-reply@clinica.example?")
    assert b"=?" not in stop
    assert b"\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n" in head + b"\n"
    assert b"\nContent-Language: it\n" in head + b"\n"
    assert b"Reply-To: segreteria@clinica.example" in head
    message = message_from_bytes(raw, policy=policy.default)
    assert parsedate_to_datetime(message["Date"]).tzinfo is not None
    assert (message["Subject"], str(message["From"])) == (LETTER.subject, SENDER)
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().strip() == LETTER.body.strip()
    assert '<html lang="it">' in html.get_content()
    assert "caffè no" in html.get_content()
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds == ["multipart/mixed", "multipart/alternative", "text/plain", "text/html", "text/calendar"]
    assert body
