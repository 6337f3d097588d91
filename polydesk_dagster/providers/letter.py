"""An e-mail as it goes on the wire: dated, in plain words and in HTML, with a way to answer and a way to stop."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.headerregistry import BaseHeader, HeaderRegistry, UniqueUnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, Policy
from email.utils import format_datetime, parseaddr
from html import escape
from typing import Any
from urllib.parse import quote

from polydesk_dagster import inert
from polydesk_dagster.clinic.messages.provider import Outgoing

_LINK = re.compile(r"https://[^\s<>\"]+")


class _Literal(BaseHeader):
    """A header of ASCII that is never encoded: an RFC 2047 word in it would make the addresses unreadable."""

    max_count = 1

    @classmethod
    def parse(cls, string: str, kwds: dict[str, Any]) -> None:
        UniqueUnstructuredHeader.parse(string, kwds)

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


_REGISTRY = HeaderRegistry()
for _header in ("list-unsubscribe", "message-id"):
    _REGISTRY.map_to_type(_header, _Literal)
# Encoded throughout, so that no relay on the way has to know 8BITMIME.
_POLICY = SMTP.clone(header_factory=_REGISTRY, cte_type="7bit")

_HTML = """<!doctype html>
<html lang="{language}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body style="font: 1rem/1.5 sans-serif; color: #222; background: #fff; max-width: 40rem; margin: 1rem">
{body}
</body></html>
"""


def letter(
    outgoing: Outgoing, sender: str, address: str, to: str, *, utf8: bool = False, key_header: str | None = None
) -> bytes:
    """``outgoing`` from ``sender`` (whose bare ``address`` takes the answers of who wants no more) to ``to``.

    ``utf8``: the relay takes addresses beyond ASCII as they are. ``key_header``: where it looks for a message's key.
    """
    message = EmailMessage(policy=_POLICY.clone(utf8=utf8))
    message["From"] = sender
    message["To"] = to
    if outgoing.reply_to:
        message["Reply-To"] = outgoing.reply_to
    message["Subject"] = inert.line(outgoing.subject or "")
    message["Date"] = format_datetime(datetime.now(UTC))
    # One key, one name: whoever repeats the attempt, a mailbox can tell that it is the same message.
    message["Message-ID"] = f"<{outgoing.key}@{address.rpartition('@')[2] or 'localhost'}>"
    if key_header is not None:
        message[key_header] = outgoing.key
    message["Auto-Submitted"] = "auto-generated"
    stop = f"<mailto:{address}?subject={quote('STOP ' + outgoing.key)}>"
    if outgoing.unsubscribe:
        message["List-Unsubscribe"] = f"<{outgoing.unsubscribe}>, {stop}"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    else:
        message["List-Unsubscribe"] = stop
    message.set_content(inert.plain(outgoing.body), cte="quoted-printable")
    message.add_alternative(_html(outgoing), subtype="html", cte="quoted-printable")
    if outgoing.events:
        _invite(message, outgoing, sender, address, to)
    message["Content-Language"] = outgoing.language  # last: a new content takes away what spoke of the old one
    return message.as_bytes()


def _invite(message: EmailMessage, outgoing: Outgoing, sender: str, address: str, to: str) -> None:
    from polydesk_dagster.providers import calendar

    name = parseaddr(sender)[0] or address
    entries = calendar.invitation(
        outgoing.events, organizer=address, name=name, attendee=to, now=datetime.now(UTC).replace(microsecond=0)
    )
    message.add_attachment(
        entries,
        maintype="text",
        subtype="calendar",
        filename="appuntamento.ics",
        params={"method": calendar.method(outgoing.events), "charset": "utf-8"},
    )


def _html(outgoing: Outgoing) -> str:
    """The same words: a paragraph for each block of lines, a list where lines begin with a dash."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", inert.plain(outgoing.body).strip())]
    return _HTML.format(
        language=escape(outgoing.language, quote=True),
        title=escape(inert.line(outgoing.subject or "")),
        body="\n".join(_block(lines) for lines in blocks),
    )


def _block(lines: list[str]) -> str:
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "".join(f"<li>{_words(line[2:])}</li>" for line in lines) + "</ul>"
    return "<p>" + "<br>".join(_words(line) for line in lines) + "</p>"


def _words(line: str) -> str:
    return _LINK.sub(lambda link: f'<a href="{link[0]}">{link[0]}</a>', escape(line, quote=True))
