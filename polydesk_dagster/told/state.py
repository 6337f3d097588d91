"""The state of services and of clinics' studiolabs, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polydesk_dagster.values import Instant

if TYPE_CHECKING:
    from polydesk_dagster.runtime.state.model import Activity
    from polydesk_dagster.told.speaking import Teller


def standing(teller: Teller, activity: Activity) -> str:
    """Whether and why a service does not start by itself; who said so, until when and why, where somebody did."""
    if activity.until is None:
        return teller.term("mode", activity.mode)
    until = Instant(activity.until)
    return teller.text("state.paused", until=until, actor=activity.actor, reason=activity.reason)
