"""What goes over SMTP, byte by byte, and whom a relay's answers blame."""

from __future__ import annotations

import asyncio
import uuid
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime

import pytest

from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.providers.smtp import MailRelay
from tests.messages.relay import Relay
from tests.waiting import PATIENCE

SENDER = "Poliambulatorio Città <no-reply@poliambulatorio-della-citta.example>"
BODY = "Gentile Anna,\n\nle ricordiamo:\n\n- ore 09:00: è <domani>\n- ore 10:00\n\nhttps://clinica.example/a?b=1&c=2\n"


def send(relay: Relay, *addresses: str, url: str = "", **fields: object) -> list[Answer]:
    async def run(url: str) -> list[Answer]:
        async with MailRelay(url, SENDER, patience=PATIENCE) as carrier:
            return [
                await carrier.send(Outgoing(str(uuid.uuid4()), address, "È domani", BODY, **fields))  # type: ignore[arg-type]
                for address in addresses
            ]

    with relay.listening() as listening:
        return asyncio.run(run(listening + url))


def read(raw: bytes) -> EmailMessage:
    return message_from_bytes(raw, policy=default)


def test_the_raw_bytes_are_a_well_formed_letter() -> None:
    relay = Relay()
    fields = {"language": "de", "reply_to": "desk@bo01.example", "unsubscribe": "https://clinica.example/stop/abc"}
    (answer,) = send(relay, "anna@example.org", **fields)
    assert answer.fate is Fate.ACCEPTED
    (raw,) = relay.got
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert b"List-Unsubscribe: <https://clinica.example/stop/abc>, <mailto:no-reply@poliambulatorio" in raw
    message = read(raw)
    assert parsedate_to_datetime(message["Date"]).tzinfo is not None
    assert (message["Content-Language"], message["Reply-To"]) == ("de", "desk@bo01.example")
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["Subject"] == "È domani"
    plain, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    assert plain.get_content().replace("\r\n", "\n") == BODY
    page = html.get_content()
    assert '<html lang="de">' in page
    assert "<title>È domani</title>" in page
    assert "<ul><li>ore 09:00: è &lt;domani&gt;</li><li>ore 10:00</li></ul>" in page
    assert '<a href="https://clinica.example/a?b=1&amp;c=2">' in page


def test_a_line_that_begins_with_a_dot_ends_nothing() -> None:
    relay = Relay()

    async def run(url: str) -> Answer:
        async with MailRelay(url, SENDER, patience=PATIENCE) as carrier:
            return await carrier.send(Outgoing("k", "anna@example.org", "Oggetto", ".\n.due\n\nfine\n"))

    with relay.listening() as url:
        assert asyncio.run(run(url)).fate is Fate.ACCEPTED
    assert b"\r\n..\r\n..due\r\n" in relay.got[0]


@pytest.mark.parametrize(
    ("said", "fate", "bad", "strike"),
    [
        ("550 5.1.1 no such user", Fate.REFUSED, True, False),
        ("550 5.1.10 null MX", Fate.REFUSED, True, False),
        ("550 5.2.1 disabled", Fate.REFUSED, False, True),
        ("550 5.7.1 blocked by policy", Fate.REFUSED, False, False),
        ("550 5.1.8 bad sender", Fate.REFUSED, False, False),
        ("550 relay not permitted", Fate.REFUSED, False, False),
        ("550 no such user here", Fate.REFUSED, False, True),
        ("554 5.5.1 no", Fate.REFUSED, False, False),
        ("450 4.2.0 later", Fate.LATER, False, False),
        ("421 4.3.2 closing", Fate.UNREACHABLE, False, False),
    ],
)
def test_only_a_word_about_the_mailbox_blames_the_person(said: str, fate: Fate, bad: bool, strike: bool) -> None:
    (answer,) = send(Relay(recipient=lambda _: said), "anna@example.org")
    assert (answer.fate, answer.bad_address, answer.strike) == (fate, bad, strike)
    assert answer.code is not None
    assert "user" not in answer.code


def test_a_domain_beyond_ascii_goes_as_idna_and_a_name_only_where_it_may() -> None:
    asked: list[str] = []

    def note(address: str) -> str:
        asked.append(address)
        return "250 ok"

    addresses = ("mario@società.example", "niccolò@example.org", "x@" + "a" * 70 + "ò.example", "anna@example.org")
    plain = send(Relay(recipient=note), *addresses)
    assert [answer.fate for answer in plain] == [Fate.ACCEPTED, Fate.REFUSED, Fate.REFUSED, Fate.ACCEPTED]
    assert not plain[1].bad_address
    assert asked == ["mario@xn--societ-nta.example", "anna@example.org"]
    able = Relay(extensions=("SMTPUTF8", "8BITMIME"))
    (answer,) = send(able, "niccolò@example.org")
    assert answer.fate is Fate.ACCEPTED
    assert able.mailed[0].endswith("SMTPUTF8")
    assert "niccolò@example.org".encode() in able.got[0]


def test_who_leaves_before_the_text_leaves_no_doubt_and_after_it_one() -> None:
    (before,) = send(Relay(leaves_at_data=True), "anna@example.org")
    (after,) = send(Relay(leaves_after_data=True), "anna@example.org")
    assert (before.fate, after.fate) == (Fate.UNREACHABLE, Fate.DOUBTFUL)


def test_a_relay_without_the_tls_that_is_required_wants_a_person() -> None:
    relay = Relay()

    async def run(url: str) -> Answer:
        async with MailRelay(url.replace("starttls=never", "starttls=require"), SENDER, patience=PATIENCE) as carrier:
            return await carrier.send(Outgoing("k", "anna@example.org", "Oggetto", BODY))

    with relay.listening() as url:
        assert asyncio.run(run(url)).fate is Fate.CLOSED
    assert relay.got == []
