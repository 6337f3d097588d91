"""What must hold of studiolab's events."""

import dagster as dg

from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.sources.studiolab import cursor, inbox

EVENTS = dg.AssetKey(["studiolab", "events"])


@dg.asset_check(asset=EVENTS, description="Nessun evento attende la decisione di una persona.")
def no_dead_letters(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        dead = inbox.dead_letters(connection)
    return dg.AssetCheckResult(
        passed=not dead,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "Quanti": sum(dead.values()),
            "Cliniche": ", ".join(f"{clinic} ({count})" for clinic, count in dead.items()) or "nessuna",
            "Che cosa fare": "polydesk events parked, poi polydesk events retry o skip",
        },
    )


@dg.asset_check(asset=EVENTS, description="Nessuna clinica ha la lettura degli eventi ferma.")
def no_stopped_feed(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        stopped = cursor.stopped(connection)
    return dg.AssetCheckResult(
        passed=not stopped,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"Quante": len(stopped), "Perché": "\n".join(stopped.values()) or "nessuna"},
    )


@dg.asset_check(asset=EVENTS, description="Nell'ultima settimana nessun evento è andato perduto.")
def no_lost_events(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        lost = cursor.lost(connection, polydesk.now())
    return dg.AssetCheckResult(
        passed=not lost,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"Quanti": sum(lost.values()), "Cliniche": ", ".join(lost) or "nessuna"},
    )


CHECKS = (no_dead_letters, no_stopped_feed, no_lost_events)
