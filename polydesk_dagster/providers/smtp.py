"""E-mails through a mail relay: STARTTLS, AUTH, connections that are kept; a doubt stays a doubt."""

from __future__ import annotations

import asyncio
import re
import ssl
from email.utils import parseaddr
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib

from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.failure import failure
from polydesk_dagster.providers.letter import letter

_REUSES = 100
"""Messages after which a connection is renewed, because relays count them."""
_NO_MAILBOX = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"})
"""Enhanced codes (RFC 3463, 7505) that speak of the recipient's mailbox for good; 5.1.7 and 5.1.8 speak of ours."""
_MAILBOX_TROUBLE = frozenset({"5.2.0", "5.2.1", "5.2.2"})
_PLAIN_ABOUT_MAILBOX = frozenset({550, 551, 553})
"""Where a relay gives no enhanced code, what may be about the mailbox: or about us, so it takes two."""
_ABOUT_US = re.compile(r"relay|spam|policy|block|black|deny|denied|reject|reputation|auth|dmarc|spf", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_STARTTLS = {"require": True, "offered": None, "never": False}


class MailRelay:
    """The relay at ``smtp://user:password@host:port?starttls=require|offered|never&ca=FILE&key=HEADER`` (``smtps://``:
    TLS from the first byte), writing as ``sender``. ``patience``: seconds to wait for an answer.

    STARTTLS is required unless the URL says otherwise. ``key``: the header by which this relay knows that it was given
    a message before, such as ``Resend-Idempotency-Key``.
    """

    name = "server di posta"
    channel: Channel = "email"
    can_look_up = False

    def __init__(self, url: str, sender: str, *, patience: float = 30.0) -> None:
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        starttls = options.pop("starttls", "require")
        self._authority = options.pop("ca", None)
        self._key_header = options.pop("key", None)
        odd = self._key_header is not None and not _HEADER.fullmatch(self._key_header)
        if odd or options or starttls not in _STARTTLS or not parts.hostname:
            raise ConfigurationError("smtp_url_options")
        self._host, self._implicit = parts.hostname, parts.scheme == "smtps"
        self._port = parts.port or (465 if self._implicit else 587)
        self._starttls = False if self._implicit else _STARTTLS[starttls]
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._sender, self._patience = sender, patience
        self._sender_address = parseaddr(sender)[1]
        self._idle: list[tuple[aiosmtplib.SMTP, int]] = []

    async def __aenter__(self) -> Self:
        try:
            self._tls = ssl.create_default_context(cafile=self._authority)
        except OSError:
            raise ConfigurationError("smtp_url_authority") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_goodbye(client) for client, _ in idle))

    async def send(self, outgoing: Outgoing) -> Answer:
        address = on_the_wire(outgoing.address)
        if address is None:
            return Answer(Fate.REFUSED, code="address", bad_address=True)
        try:
            client, used = await self._connection()
        except (aiosmtplib.SMTPException, OSError) as error:
            return _not_connected(error)
        answer, reusable = await self._transaction(client, address, outgoing)
        if reusable and used + 1 < _REUSES:
            self._idle.append((client, used + 1))
        else:
            await _goodbye(client)
        return answer

    async def greet(self) -> Answer:
        """Connect and log in, as for a message, and send none."""
        try:
            client, _ = await self._connection()
        except (aiosmtplib.SMTPException, OSError) as error:
            return _not_connected(error)
        await _goodbye(client)
        return Answer(Fate.ACCEPTED)

    async def look_up(self, key: str) -> Answer:  # noqa: ARG002 - there is nothing that a mail server could be asked
        return Answer(Fate.DOUBTFUL)

    async def _connection(self) -> tuple[aiosmtplib.SMTP, int]:
        """One that still answers, or a new one."""
        while self._idle:
            client, used = self._idle.pop()
            try:
                await client.rset()
            except (aiosmtplib.SMTPException, OSError):
                client.close()
            else:
                return client, used
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=self._user,
            password=self._password,
            use_tls=self._implicit,
            start_tls=self._starttls,
            tls_context=self._tls,
            timeout=self._patience,
        )
        await client.connect()
        if client.is_ehlo_or_helo_needed:
            await client.ehlo()
        return client, 0

    async def _transaction(self, client: aiosmtplib.SMTP, address: str, outgoing: Outgoing) -> tuple[Answer, bool]:
        """MAIL, RCPT, DATA; and whether the connection may be used again. Until the relay says «go ahead» nothing was
        handed over; after it, only the relay's answer tells."""
        utf8 = not address.isascii()
        if utf8 and not client.supports_extension("smtputf8"):
            return Answer(Fate.REFUSED, code="smtputf8", strike=True), True
        encoding = "utf-8" if utf8 else "ascii"
        try:
            await client.mail(self._sender_address, options=["SMTPUTF8"] if utf8 else None, encoding=encoding)
            await client.rcpt(address, encoding=encoding)
        except aiosmtplib.SMTPResponseException as error:
            return _refusal(error, at_recipient=isinstance(error, aiosmtplib.SMTPRecipientRefused)), error.code != 421
        except (aiosmtplib.SMTPException, OSError) as error:
            return Answer(Fate.UNREACHABLE, code=failure(error, "cut").code), False
        written = letter(outgoing, self._sender, self._sender_address, address, utf8=utf8, key_header=self._key_header)
        try:
            go_ahead = await client.execute_command(b"DATA")
        except (aiosmtplib.SMTPException, OSError) as error:
            return Answer(Fate.UNREACHABLE, code=failure(error, "cut").code), False
        if go_ahead.code != aiosmtplib.SMTPStatus.start_input:
            refused = aiosmtplib.SMTPResponseException(go_ahead.code, go_ahead.message)
            return _refusal(refused, at_recipient=False), go_ahead.code != 421
        try:
            response = await _hand_over(client, written)
        except (aiosmtplib.SMTPException, OSError) as error:
            return Answer(Fate.DOUBTFUL, code=failure(error, "cut").code), False
        if response.code != aiosmtplib.SMTPStatus.completed:
            refused = aiosmtplib.SMTPResponseException(response.code, response.message)
            return _refusal(refused, at_recipient=False), response.code != 421
        return Answer(Fate.ACCEPTED, reference=response.message[:200]), True


async def _hand_over(client: aiosmtplib.SMTP, written: bytes) -> aiosmtplib.SMTPResponse:
    """The text itself, after «go ahead»: its public calls say DATA and send the text in one breath, and then a relay
    that leaves in between cannot be told from one that has the text."""
    protocol = client.protocol
    assert protocol is not None
    protocol.write(re.sub(rb"(?m)^\.", b"..", written) + b".\r\n")
    return await protocol.read_response(timeout=client.timeout)


def on_the_wire(address: str) -> str | None:
    """``address`` as SMTP takes it, its domain as IDNA; None for what is not one mailbox and nothing else: no list, no
    header smuggled in."""
    name, at, domain = address.strip().rpartition("@")
    odd = any(c.isspace() or c in ',;:<>"()[]\\' or not c.isprintable() for c in name + domain)
    if odd or not (name and at and domain):
        return None
    try:
        return f"{name}@{domain.encode('idna').decode('ascii')}"
    except UnicodeError:
        return None


def _refusal(error: aiosmtplib.SMTPResponseException, *, at_recipient: bool) -> Answer:
    """Whose fault it is: only a word about the recipient's own mailbox is the recipient's."""
    enhanced = re.match(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])", error.message)
    code = f"{error.code} {enhanced[0]}" if enhanced else str(error.code)
    if error.code == 421:
        return Answer(Fate.UNREACHABLE, code=code)
    if 400 <= error.code < 500:
        return Answer(Fate.LATER, code=code)
    if error.code in {530, 535}:
        return Answer(Fate.CLOSED, code=code)
    if not at_recipient:
        return Answer(Fate.REFUSED, code=code)
    if enhanced:
        return Answer(
            Fate.REFUSED, code=code, bad_address=enhanced[0] in _NO_MAILBOX, strike=enhanced[0] in _MAILBOX_TROUBLE
        )
    perhaps = error.code in _PLAIN_ABOUT_MAILBOX and not _ABOUT_US.search(error.message)
    return Answer(Fate.REFUSED, code=code, strike=perhaps)


def _not_connected(error: Exception) -> Answer:
    """Wrong credentials or certificates, and a relay that offers no TLS where it is required, want a person; everything
    else is the network."""
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return Answer(Fate.CLOSED if error.code >= 500 else Fate.UNREACHABLE, code=str(error.code))
    # A plain one is what it raises where STARTTLS is not offered.
    if isinstance(error, aiosmtplib.SMTPNotSupported) or type(error) is aiosmtplib.SMTPException:
        return Answer(Fate.CLOSED, code="no_tls")
    code = failure(error, "unknown").code
    return Answer(Fate.CLOSED if code == "certificate" else Fate.UNREACHABLE, code=code)


async def _goodbye(client: aiosmtplib.SMTP) -> None:
    try:
        await client.quit(timeout=2)
    except (aiosmtplib.SMTPException, OSError):
        client.close()
