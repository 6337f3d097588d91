"""What must hold of the messages after every run."""

import dagster as dg

from polydesk_dagster.clinic.messages import health
from polydesk_dagster.resources.polydesk import PolydeskResource

REMINDERS = dg.AssetKey(["notifications", "appointment_reminders"])


@dg.asset_check(asset=REMINDERS, description="Nessun messaggio è in dubbio da più di un'ora.")
def no_message_long_unknown(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        doubts = health.unknown(connection, polydesk.now() - health.TOO_LONG_UNKNOWN)
    return dg.AssetCheckResult(
        passed=not doubts,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "In dubbio": len(doubts),
            "Cliniche": ", ".join(sorted({doubt.clinic for doubt in doubts})) or "nessuna",
            "Che cosa fare": "polydesk messages unknown",
        },
    )


@dg.asset_check(asset=REMINDERS, description="Nell'ultimo giorno i messaggi non riusciti sono meno di uno su venti.")
def failure_rate(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        failed, tried = health.failure_rate(connection, polydesk.now())
    return dg.AssetCheckResult(
        passed=not health.failing(failed, tried),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"Non riusciti": failed, "Tentati": tried},
    )


@dg.asset_check(
    asset=REMINDERS, description="A ogni appuntamento di domani è stato mandato il promemoria, o si sa perché no."
)
def no_reminder_missing(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        missing = health.without_reminder(connection, polydesk.now())
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "Appuntamenti": sum(count for _, count in missing),
            "Cliniche": ", ".join(code for code, _ in missing) or "nessuna",
        },
    )


CHECKS = (no_message_long_unknown, failure_rate, no_reminder_missing)
