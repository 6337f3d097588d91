"""E-mails through a mail relay: STARTTLS, AUTH, connections that are kept; a doubt stays a doubt."""

from __future__ import annotations

import asyncio
import ssl
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import parseaddr
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import aiosmtplib

from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.errors import ConfigurationError

_REUSES = 100
"""Messages after which a connection is renewed, because relays count them."""
_DEAD_ADDRESS = frozenset({550, 551, 553})
_STARTTLS = {"require": True, "offered": None, "never": False}


class MailRelay:
    """The relay at ``smtp://user:password@host:port?starttls=require|offered|never&ca=FILE`` (``smtps://``: TLS from
    the first byte), writing as ``sender``. ``patience``: seconds to wait for an answer.

    STARTTLS is required unless the URL says otherwise.
    """

    name = "server di posta"
    channel: Channel = "email"
    can_look_up = False

    def __init__(self, url: str, sender: str, *, patience: float = 30.0) -> None:
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        starttls = options.pop("starttls", "require")
        self._authority = options.pop("ca", None)
        if options or starttls not in _STARTTLS or not parts.hostname:
            raise ConfigurationError("POLYDESK_SMTP_URL: ammessi solo ?starttls=require|offered|never e &ca=FILE")
        self._host, self._implicit = parts.hostname, parts.scheme == "smtps"
        self._port = parts.port or (465 if self._implicit else 587)
        self._starttls = False if self._implicit else _STARTTLS[starttls]
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._sender, self._patience = sender, patience
        self._sender_address = parseaddr(sender)[1]
        self._domain = self._sender_address.rpartition("@")[2] or "localhost"
        self._idle: list[tuple[aiosmtplib.SMTP, int]] = []

    async def __aenter__(self) -> Self:
        try:
            self._tls = ssl.create_default_context(cafile=self._authority)
        except OSError:
            raise ConfigurationError("POLYDESK_SMTP_URL: il file di ca= non si legge") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_goodbye(client) for client, _ in idle))

    async def send(self, outgoing: Outgoing) -> Answer:
        if not _is_one_mailbox(outgoing.address):
            return Answer(Fate.REFUSED, code="indirizzo", bad_address=True)
        try:
            client, used = await self._connection()
        except (aiosmtplib.SMTPException, OSError) as error:
            return _not_connected(error)
        answer, reusable = await self._transaction(client, outgoing)
        if reusable and used + 1 < _REUSES:
            self._idle.append((client, used + 1))
        else:
            await _goodbye(client)
        return answer

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
        return client, 0

    async def _transaction(self, client: aiosmtplib.SMTP, outgoing: Outgoing) -> tuple[Answer, bool]:
        """MAIL, RCPT, DATA; and whether the connection may be used again. Before DATA nothing was handed over; once
        it has begun, only the relay's answer tells."""
        try:
            await client.mail(self._sender_address)
            await client.rcpt(outgoing.address)
        except aiosmtplib.SMTPResponseException as error:
            return _refusal(error, at_recipient=isinstance(error, aiosmtplib.SMTPRecipientRefused)), error.code != 421
        except (aiosmtplib.SMTPException, OSError) as error:
            return Answer(Fate.UNREACHABLE, code=type(error).__name__), False
        try:
            response = await client.data(self._message(outgoing))
        except aiosmtplib.SMTPDataError as error:
            return _refusal(error, at_recipient=False), error.code != 421
        except (aiosmtplib.SMTPException, OSError) as error:
            return Answer(Fate.DOUBTFUL, code=type(error).__name__), False
        return Answer(Fate.ACCEPTED, reference=response.message[:200]), True

    def _message(self, outgoing: Outgoing) -> bytes:
        message = EmailMessage(policy=SMTP_POLICY)
        message["From"] = self._sender
        message["To"] = outgoing.address
        message["Subject"] = outgoing.subject or ""
        # One key, one name: whoever repeats the attempt, a mailbox can tell that it is the same message.
        message["Message-ID"] = f"<{outgoing.key}@{self._domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message["List-Unsubscribe"] = f"<mailto:{self._sender_address}?subject={quote('STOP ' + outgoing.key)}>"
        message.set_content(outgoing.body)
        return message.as_bytes()


def _is_one_mailbox(address: str) -> bool:
    """One mailbox and nothing else: no list, no header smuggled in."""
    name, at, domain = address.rpartition("@")
    odd = any(c.isspace() or c in ',;:<>"()[]\\' or not c.isprintable() for c in address)
    return bool(name and at and domain) and not odd


def _refusal(error: aiosmtplib.SMTPResponseException, *, at_recipient: bool) -> Answer:
    code = str(error.code)
    if error.code == 421:
        return Answer(Fate.UNREACHABLE, code=code)
    if 400 <= error.code < 500:
        return Answer(Fate.LATER, code=code)
    if error.code in {530, 535}:
        return Answer(Fate.CLOSED, code=code)
    return Answer(Fate.REFUSED, code=code, bad_address=at_recipient and error.code in _DEAD_ADDRESS)


def _not_connected(error: Exception) -> Answer:
    """Wrong credentials or certificates want a person; everything else is the network."""
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return Answer(Fate.CLOSED if error.code >= 500 else Fate.UNREACHABLE, code=str(error.code))
    person = isinstance(error, aiosmtplib.SMTPNotSupported | ssl.SSLCertVerificationError)
    person = person or isinstance(error.__cause__, ssl.SSLCertVerificationError)
    return Answer(Fate.CLOSED if person else Fate.UNREACHABLE, code=type(error).__name__)


async def _goodbye(client: aiosmtplib.SMTP) -> None:
    try:
        await client.quit(timeout=2)
    except (aiosmtplib.SMTPException, OSError):
        client.close()
