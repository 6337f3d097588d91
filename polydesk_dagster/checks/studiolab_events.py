"""What must hold of studiolab's events."""

from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.changes.why import read
from polydesk_dagster.checks.looks import checks_of
from polydesk_dagster.sources.events import cursor, inbox
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures

EVENTS = dg.AssetKey(["studiolab", "events"])


def _no_dead_letters(connection: sa.Connection, _as_of: datetime) -> dg.AssetCheckResult:
    dead = inbox.dead_letters(connection)
    clinics = ", ".join(f"{clinic} ({count})" for clinic, count in dead.items())
    todo = teller().text("reason.decide_events")
    return dg.AssetCheckResult(
        passed=not dead,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures(
            {"how_many": sum(dead.values()), "clinics": clinics or None, "what_to_do": todo if dead else None}
        ),
    )


def _no_stopped_feed(connection: sa.Connection, _as_of: datetime) -> dg.AssetCheckResult:
    stopped = cursor.stopped(connection)
    t = teller()
    reasons = [f"{clinic}: {t.value(read(why))}" for clinic, why in stopped.items()]
    return dg.AssetCheckResult(
        passed=not stopped,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures({"how_many": len(stopped), "why": "\n".join(reasons) or None}),
    )


def _no_lost_events(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    lost = cursor.lost(connection, as_of)
    return dg.AssetCheckResult(
        passed=not lost,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=figures({"how_many": sum(lost.values()), "clinics": ", ".join(lost) or None}),
    )


CHECKS = (
    checks_of(
        EVENTS,
        {"no_dead_letters": _no_dead_letters, "no_stopped_feed": _no_stopped_feed, "no_lost_events": _no_lost_events},
    ),
)
