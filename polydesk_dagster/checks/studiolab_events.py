"""What must hold of studiolab's events."""

import dagster as dg

from polydesk_dagster.changes.why import read
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.sources.events import cursor, inbox
from polydesk_dagster.told import teller
from polydesk_dagster.values import Value

EVENTS = dg.AssetKey(["studiolab", "events"])


def _shown(**figures: Value) -> dict[str, str]:
    t = teller()
    return {t.label("figure", key): t.value(value) for key, value in figures.items()}


@dg.asset_check(asset=EVENTS, description=teller().text("check.no_dead_letters"))
def no_dead_letters(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        dead = inbox.dead_letters(connection)
    clinics = ", ".join(f"{clinic} ({count})" for clinic, count in dead.items())
    todo = teller().text("reason.decide_events")
    return dg.AssetCheckResult(
        passed=not dead,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=_shown(how_many=sum(dead.values()), clinics=clinics or None, what_to_do=todo if dead else None),
    )


@dg.asset_check(asset=EVENTS, description=teller().text("check.no_stopped_feed"))
def no_stopped_feed(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        stopped = cursor.stopped(connection)
    t = teller()
    reasons = [f"{clinic}: {t.value(read(why))}" for clinic, why in stopped.items()]
    return dg.AssetCheckResult(
        passed=not stopped,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=_shown(how_many=len(stopped), why="\n".join(reasons) or None),
    )


@dg.asset_check(asset=EVENTS, description=teller().text("check.no_lost_events"))
def no_lost_events(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        lost = cursor.lost(connection, polydesk.now())
    return dg.AssetCheckResult(
        passed=not lost,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_shown(how_many=sum(lost.values()), clinics=", ".join(lost) or None),
    )


CHECKS = (no_dead_letters, no_stopped_feed, no_lost_events)
