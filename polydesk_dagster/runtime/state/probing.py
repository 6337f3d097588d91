"""Asking every configured system over the wire, side by side: whether it answers and lets us in.

Nothing is changed or sent: a list is read, a key that nobody has used is looked up, a mail server is greeted.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from polydesk_dagster.clinic.messages import codes
from polydesk_dagster.clinic.messages.provider import Fate
from polydesk_dagster.errors import PermanentError, PolydeskError, TransientError
from polydesk_dagster.runtime.state.model import Answer, SystemState

if TYPE_CHECKING:
    import sqlalchemy as sa

    from polydesk_dagster.clinic.messages.kinds import Channel
    from polydesk_dagster.clinic.messages.provider import Answer as Told
    from polydesk_dagster.settings import Settings

PATIENCE = 10.0
"""Seconds for each system."""

Probe = tuple[SystemState, Callable[[], None] | None]
"""A system as the settings leave it, and what asks it; None where there is nothing to ask."""


def systems(settings: Settings, now: datetime) -> list[Probe]:
    """The systems that the settings name, with how each is asked."""
    played = settings.embedded

    def told(code: str, ask: Callable[[], None] | None, *, needed: bool = True) -> Probe:
        absent = ask is None
        return SystemState(code, None, not absent, absent and played and needed, needed), ask

    return [
        told("central", _central(settings, now)),
        told("sms", _sms(settings)),
        told("mail", _mail(settings)),
        told("embeddings", _embeddings(settings), needed=False),
    ]


def studiolabs(connection: sa.Connection, token: Callable[[str], str | None], as_of: datetime) -> list[SystemState]:
    """Every clinic's studiolab whose integration is on, asked now, also where it is left in peace otherwise."""
    from polydesk_dagster.sources.events import looking

    known = [replace(each, quiet_until=None, stopped=None) for each in looking.clinics(connection, as_of)]
    state = SystemState("studiolab", None, configured=True, played=False, needed=True)
    return [
        replace(state, clinic=look.clinic.code)
        if look.why == looking.NOT_REACHED
        else replace(
            state, clinic=look.clinic.code, answer=_answer(look.error), why=look.error.reason if look.error else None
        )
        for look in looking.look(known, as_of, token)
    ]


def asked(probes: Sequence[Probe]) -> list[SystemState]:
    """The systems, each that can be asked with its answer."""
    with ThreadPoolExecutor(max(1, len(probes))) as pool:
        return list(pool.map(_asked, probes))


def _asked(probe: Probe) -> SystemState:
    state, ask = probe
    if ask is None:
        return state
    started = time.monotonic()
    error: PolydeskError | None = None
    try:
        ask()
    except PolydeskError as failed:
        error = failed
    return replace(
        state, answer=_answer(error), why=error.reason if error else None, seconds=round(time.monotonic() - started, 3)
    )


def _answer(error: PolydeskError | None) -> Answer:
    if error is None:
        return Answer.WELL
    return Answer.SILENT if isinstance(error, TransientError) else Answer.REFUSED


def _central(settings: Settings, now: datetime) -> Callable[[], None] | None:
    url, token = settings.central_url, settings.central_token
    if url is None or token is None:
        return None

    def ask() -> None:
        from polydesk_dagster.central import Central
        from polydesk_dagster.remote import Policy

        with Central(url, token.get_secret_value(), Policy(request=PATIENCE, total=PATIENCE, attempts=1)) as central:
            central.closures(now.year)

    return ask


def _sms(settings: Settings) -> Callable[[], None] | None:
    url, token, sender = settings.sms_url, settings.sms_token, settings.sms_sender
    if url is None or token is None or sender is None:
        return None

    async def look_up() -> Told:
        from polydesk_dagster.providers.sms import SmsGateway

        async with SmsGateway(url, token.get_secret_value(), sender, patience=PATIENCE) as gateway:
            return await gateway.look_up(f"probe-{secrets.token_hex(8)}")

    return lambda: _carried("sms", asyncio.run(look_up()))


def _mail(settings: Settings) -> Callable[[], None] | None:
    url, sender = settings.smtp_url, settings.mail_from
    if url is None or sender is None:
        return None

    async def greet() -> Told:
        from polydesk_dagster.providers.smtp import MailRelay

        async with MailRelay(url.get_secret_value(), sender, patience=PATIENCE) as relay:
            return await relay.greet()

    return lambda: _carried("email", asyncio.run(greet()))


def _carried(channel: Channel, told: Told) -> None:
    said = codes.in_words(channel, told.code or "unknown")
    if told.fate is Fate.CLOSED:
        raise PermanentError("carrier_closed", answer=said)
    if told.fate not in {Fate.ACCEPTED, Fate.UNKNOWN_KEY, Fate.REFUSED}:
        raise TransientError("carrier_silent", answer=said)


def _embeddings(settings: Settings) -> Callable[[], None] | None:
    url, model, key = settings.embeddings_url, settings.embeddings_model, settings.embeddings_key
    if url is None or model is None:
        return None

    def ask() -> None:
        from polydesk_dagster.knowledge.embedding import Endpoint

        Endpoint(url, model, key.get_secret_value() if key else None, attempts=1, timeout=PATIENCE).embed(["prova"])

    return ask
