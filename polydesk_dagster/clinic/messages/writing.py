"""From a judged message to what goes on the wire: text, key, and what is sent instead where it costs too much."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import links, templates
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import Candidate, Ready, Withheld
from polydesk_dagster.clinic.messages.kinds import (
    ABOUT_APPOINTMENTS,
    ACTIVATION,
    ANSWERABLE,
    CANCELLATION,
    CONFIRMATION,
    OFFER,
    QUESTION,
    Channel,
    Why,
)
from polydesk_dagster.clinic.messages.ledger import Claim
from polydesk_dagster.clinic.messages.links import Ways
from polydesk_dagster.clinic.messages.provider import Event, Outgoing
from polydesk_dagster.clinic.messages.sandbox import BrokenTemplateError
from polydesk_dagster.clinic.messages.templates import Need, Shelf, Text
from polydesk_dagster.clinic.messages.text import segments

LINK_LIFE = timedelta(days=7)
"""How long the link of an activation e-mail is good."""


@dataclass(frozen=True, slots=True)
class Job:
    """A written message on its way to the wire."""

    message: Candidate
    outgoing: Outgoing
    channel: Channel
    claim: Claim
    token: str | None
    """Of an activation e-mail's link."""


class Writer:
    """Writes the messages of one run. A template that would not end is not tried again: its budget is spent once."""

    def __init__(
        self,
        shelf: Shelf,
        clinics: Mapping[int, Hours],
        most_segments: int,
        ways: Ways | None = None,
        installation: uuid.UUID = uuid.NAMESPACE_OID,
    ) -> None:
        """``ways``: how whoever is written to reaches back; ``installation``: what keys are derived from."""
        self._installation = installation
        self._shelf, self._clinics, self._most, self._ways = shelf, clinics, most_segments, ways or Ways()
        self._endless: dict[Text, BrokenTemplateError] = {}

    @classmethod
    def of(
        cls, connection: sa.Connection, clinics: Mapping[int, Hours], most_segments: int, reach: links.Reach
    ) -> Writer:
        """One for what is about to be sent: with the texts, links and keys of this installation."""
        installation = connection.execute(sa.text("SELECT id FROM installation")).scalar_one()
        return cls(Shelf.load(connection), clinics, most_segments, links.ways(connection, reach), installation)

    def write(self, message: Candidate, ready: Ready, by_mail: Ready | None = None) -> Job | Withheld:
        """``ready`` as a job. ``by_mail``: the same message by e-mail, where that is possible, for a text that would
        take more segments than it may."""
        try:
            text = self._text(message, ready, token := self._token(message))
            if ready.channel == "sms" and segments(text.body).segments > self._most:
                if by_mail is not None:
                    ready, text = by_mail, self._text(message, by_mail, token)
                elif message.kind in ABOUT_APPOINTMENTS:
                    ready = replace(ready, variant="neutral")
                    text = self._text(message, ready, token)
        except BrokenTemplateError:
            return Withheld(Why.TEMPLATE, failed=True, text=(ready.variant, ready.channel, ready.language))
        same = message.key is not None and token is None
        same = same and (message.address, message.subject, message.body) == (ready.address, text.subject, text.body)
        key = message.key if same and message.key else str(self._key(message, ready.channel, token))
        claim = Claim(
            message.id,
            ready.channel,
            ready.address,
            key,
            text.subject,
            text.body if token is None else text.body.replace(token, "…"),
            segments(text.body).segments if ready.channel == "sms" else None,
            message.key,
        )
        clinic = self._clinics[message.clinic_id]
        refusable = ready.channel == "email" and message.recipient_type != "user"
        outgoing = Outgoing(
            key,
            ready.address,
            text.subject,
            text.body,
            ready.language,
            clinic.email,
            self._ways.stop(message.id) if self._ways.stop is not None and refusable else None,
            events(message, ready) if ready.channel == "email" else (),
        )
        return Job(message, outgoing, ready.channel, claim, token)

    def _key(self, message: Candidate, channel: Channel, token: str | None) -> uuid.UUID:
        """The key of a message follows from what it tells whom, so that a ledger which was put back to what it was says
        the same one, by which the gateway knows what it has sent already. Another text after one that was refused has a
        key that follows from that one's, and each link that lets somebody in is a message of its own: the one before
        is good for nothing. Neither address nor text is in it: it is kept when those are erased."""
        if token is not None:
            return uuid.uuid5(self._installation, token)
        if message.key is not None:
            return uuid.uuid5(uuid.UUID(message.key), str(message.attempts))
        if not message.items:
            return uuid.uuid4()
        told = sorted(
            f"{item.subject} {item.subject_id} {item.version} {item.starts_at} {item.step} {item.resent}"
            for item in message.items
        )
        whom = (message.kind, message.recipient_type, str(message.recipient_id), channel)
        return uuid.uuid5(self._installation, "\x1f".join((*whom, *told)))

    def _token(self, message: Candidate) -> str | None:
        return secrets.token_urlsafe(32) if message.kind == ACTIVATION.key else None

    def _text(self, message: Candidate, ready: Ready, token: str | None) -> Text:
        need = Need(
            message.kind, ready.variant, ready.channel, ready.language, message.clinic_id, message.template_revision
        )
        template = self._shelf.find(need)
        if template is None:
            raise BrokenTemplateError("template_missing")
        if template in self._endless:
            raise self._endless[template]
        context: Mapping[str, Any] = ready.context
        if token is not None:
            where = message.context.get("door") or self._clinics[message.clinic_id].portal_url
            address = f"{where}?{urlencode({'codice': token})}"
            context = {**context, "collegamento": address, "giorni": LINK_LIFE.days}
        elif message.kind in ANSWERABLE and message.kind != QUESTION.key:
            link = self._ways.visit(message.id) if self._ways.visit is not None else ""
            context = {**context, "collegamento": link, "risposte": self._ways.replies and ready.channel == "sms"}
        elif message.context.get(OFFER) and self._ways.visit is not None:
            context = {**context, "collegamento": self._ways.visit(message.id)}
        try:
            return templates.write(template.subject, template.body, context)
        except BrokenTemplateError as error:
            if error.code == "template_endless":
                self._endless[template] = error
            raise


def events(message: Candidate, ready: Ready) -> tuple[Event, ...]:
    """The appointments that a confirmation or a cancellation brings for the calendar: one name each for as long as it
    lives, and a number that grows with every move and with its end (RFC 5546)."""
    if message.kind not in (CONFIRMATION.key, CANCELLATION.key):
        return ()
    gone = message.kind == CANCELLATION.key
    summary = templates.calendar_title(ready.language, message.clinic_name)
    return tuple(
        Event(
            f"{message.clinic}-{item.subject_id}",
            item.version - 1 + gone,
            item.starts_at,
            item.ends_at,
            summary,
            item.location or "",
            gone,
        )
        for item in ready.items
        if item.starts_at is not None and item.ends_at is not None
    )
