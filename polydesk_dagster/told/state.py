"""The state of services and of clinics' studiolabs, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polydesk_dagster.values import Count, Instant, ServiceKey, Term, Value

if TYPE_CHECKING:
    from datetime import datetime

    from polydesk_dagster.runtime.state.model import Activity, Finding, IntegrationState, Queue, SystemState
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


def queued(teller: Teller, since: datetime, now: datetime) -> str:
    """That a service waits for a place, and for how long."""
    return teller.text("queued", since=teller.duration((now - since).total_seconds()))


def queue_full(teller: Teller, queue: Queue, now: datetime) -> str:
    """That the queue moves on no more, for how long, and what works and waits."""
    waiting, working = Count("queued_runs", queue.waiting), Count("working_runs", queue.working)
    since = teller.duration((now - queue.since).total_seconds())
    return teller.text("queue_full", waiting=waiting, working=working, since=since)


def linked(teller: Teller, state: IntegrationState) -> str:
    """How a clinic's studiolab is, with its address, and what belongs to that state."""
    return teller.text(f"state.link.{told_as(state)}", **values_of_link(state))


def told_as(state: IntegrationState) -> str:
    """As what its state is told: of who tells no news, when it was read instead; of who is not read, why, if that is
    known."""
    if state.link == "well" and not state.tells:
        return "listed"
    return "unreachable_why" if state.link == "unreachable" and state.why else state.link


def values_of_link(state: IntegrationState) -> dict[str, Value]:
    since = Instant(state.since, state.time_zone) if state.since else None
    again = Instant(state.asked_again_at, state.time_zone) if state.asked_again_at else None
    listed = Instant(state.listed_at, state.time_zone) if state.listed_at else None
    told = {"since": since, "again": again, "listed": listed, "why": state.why}
    return {"url": state.base_url, "variable": state.token_env, **told}


def state_of_system(state: SystemState) -> tuple[str, dict[str, Value]]:
    """How a system outside is, as a code and values: what it answered where it was asked, else whether it is
    configured."""
    values: dict[str, Value] = {"system": Term("system", state.code)}
    if state.answer is not None:
        return state.answer, values | {"why": state.why}
    if state.configured:
        return "configured", values
    if state.played:
        return "played", values
    if not state.needed:
        return "needless", values
    return "missing", values | {"variable": ADDRESSES.get(state.code, "")}


SAID_ELSEWHERE = {"configured": "state.system", "studiolab_asked": "state.system", "studiolab": "state.link"}
"""Findings whose sentences are those of what they found."""


def told_of_finding(teller: Teller, finding: Finding) -> str:
    """What was found, as a sentence: ``finding.<code>.<how>``, or ``.ok`` and ``.bad`` where there is one of each."""
    name = SAID_ELSEWHERE.get(finding.code, f"finding.{finding.code}")
    return teller.text(f"{name}.{finding.how or ('ok' if finding.ok else 'bad')}", **finding.values)
