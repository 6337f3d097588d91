"""The state of services and of clinics' studiolabs, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polydesk_dagster.values import Instant, ServiceKey, Term

if TYPE_CHECKING:
    from polydesk_dagster.runtime.state.model import Activity, IntegrationState, SystemState
    from polydesk_dagster.told.speaking import Teller

ADDRESSES = {"central": "POLYDESK_CENTRAL_URL", "sms": "POLYDESK_SMS_URL", "mail": "POLYDESK_SMTP_URL"}
"""The variable that holds each system's address."""


def standing(teller: Teller, activity: Activity) -> str:
    """Whether and why a service does not start by itself; who said so, until when and why, where somebody did."""
    if activity.until is None:
        return teller.term("mode", activity.mode)
    until = Instant(activity.until)
    return teller.text("state.paused", until=until, actor=activity.actor, reason=activity.reason)


def stands_still(teller: Teller, service: str, activity: Activity) -> str:
    """Why a service that looked starts nothing now, as a sentence of its own."""
    name = ServiceKey(service)
    if activity.until is None:
        return teller.text("state.not_live", service=name, key=service)
    until = Instant(activity.until)
    return teller.text("state.stands", service=name, until=until, actor=activity.actor, reason=activity.reason)


def linked(teller: Teller, state: IntegrationState) -> str:
    """How a clinic's studiolab is, with its address, and what belongs to that state."""
    since = Instant(state.since, state.time_zone) if state.since else None
    again = Instant(state.asked_again_at, state.time_zone) if state.asked_again_at else None
    name = f"state.link.{state.link}"
    return teller.text(name, url=state.base_url, variable=state.token_env, since=since, again=again)


def told_of_system(teller: Teller, state: SystemState) -> str:
    """How a system outside is: what it answered where it was asked, else whether it is configured."""
    system = Term("system", state.code)
    if state.answer is not None:
        return teller.text(f"state.system.{state.answer}", system=system, why=state.why)
    if state.configured:
        return teller.text("state.system.configured", system=system)
    if state.played:
        return teller.text("state.system.played", system=system)
    if not state.needed:
        return teller.text("state.system.needless", system=system)
    return teller.text("state.system.missing", system=system, variable=ADDRESSES.get(state.code, ""))
