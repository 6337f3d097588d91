"""What must hold of the messages after every run."""

from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.checks.looks import checks_of
from polydesk_dagster.clinic.messages import health
from polydesk_dagster.told import teller
from polydesk_dagster.values import Several

T = teller()
REMINDERS = dg.AssetKey(["notifications", "appointment_reminders"])


def _no_message_long_unknown(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    doubts = health.unknown(connection, as_of - health.TOO_LONG_UNKNOWN)
    return dg.AssetCheckResult(
        passed=not doubts,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            T.label("figure", "messages_unknown"): len(doubts),
            T.label("figure", "messages_clinics"): T.value(Several(tuple(sorted({doubt.clinic for doubt in doubts})))),
            T.label("figure", "what_to_do"): "polydesk messages unknown",
        },
    )


def _failure_rate(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    failed, tried = health.failure_rate(connection, as_of)
    return dg.AssetCheckResult(
        passed=not health.failing(failed, tried),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            T.label("figure", "messages_failed"): failed,
            T.label("figure", "messages_tried"): tried,
        },
    )


def _no_reminder_missing(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    missing = health.without_reminder(connection, as_of)
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            T.label("figure", "messages_appointments"): sum(count for _, count in missing),
            T.label("figure", "messages_clinics"): T.value(Several(tuple(code for code, _ in missing))),
        },
    )


CHECKS = (
    checks_of(
        REMINDERS,
        {
            "no_message_long_unknown": _no_message_long_unknown,
            "failure_rate": _failure_rate,
            "no_reminder_missing": _no_reminder_missing,
        },
    ),
)
