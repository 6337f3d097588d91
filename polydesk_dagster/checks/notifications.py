"""What must hold of the messages after every run."""

import dagster as dg

from polydesk_dagster.clinic.messages import health
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from polydesk_dagster.values import Several

T = teller()
REMINDERS = dg.AssetKey(["notifications", "appointment_reminders"])


@dg.asset_check(asset=REMINDERS, description=T.text("check.no_message_long_unknown"))
def no_message_long_unknown(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        doubts = health.unknown(connection, polydesk.now() - health.TOO_LONG_UNKNOWN)
    return dg.AssetCheckResult(
        passed=not doubts,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            T.label("figure", "messages_unknown"): len(doubts),
            T.label("figure", "messages_clinics"): T.value(Several(tuple(sorted({doubt.clinic for doubt in doubts})))),
            T.label("figure", "what_to_do"): "polydesk messages unknown",
        },
    )


@dg.asset_check(asset=REMINDERS, description=T.text("check.failure_rate"))
def failure_rate(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        failed, tried = health.failure_rate(connection, polydesk.now())
    return dg.AssetCheckResult(
        passed=not health.failing(failed, tried),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            T.label("figure", "messages_failed"): failed,
            T.label("figure", "messages_tried"): tried,
        },
    )


@dg.asset_check(asset=REMINDERS, description=T.text("check.no_reminder_missing"))
def no_reminder_missing(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        missing = health.without_reminder(connection, polydesk.now())
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            T.label("figure", "messages_appointments"): sum(count for _, count in missing),
            T.label("figure", "messages_clinics"): T.value(Several(tuple(code for code, _ in missing))),
        },
    )


CHECKS = (no_message_long_unknown, failure_rate, no_reminder_missing)
