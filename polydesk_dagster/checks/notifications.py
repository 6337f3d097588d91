"""What must hold of the messages after every run."""

from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.checks.looks import checks_of
from polydesk_dagster.clinic.messages import health
from polydesk_dagster.outcome import WHAT_TO_DO
from polydesk_dagster.told.dagster import figures
from polydesk_dagster.values import Several

REMINDERS = dg.AssetKey(["notifications", "appointment_reminders"])


def _no_message_long_unknown(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    doubts = health.unknown(connection, as_of - health.TOO_LONG_UNKNOWN)
    return dg.AssetCheckResult(
        passed=not doubts,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures(
            {
                "messages_unknown": len(doubts),
                "messages_clinics": Several(tuple(sorted({doubt.clinic for doubt in doubts}))),
                WHAT_TO_DO: "polydesk messages unknown",
            }
        ),
    )


def _failure_rate(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    failed, tried = health.failure_rate(connection, as_of)
    return dg.AssetCheckResult(
        passed=not health.failing(failed, tried),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=figures({"messages_failed": failed, "messages_tried": tried}),
    )


def _no_reminder_missing(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    missing = health.without_reminder(connection, as_of)
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures(
            {
                "messages_appointments": sum(count for _, count in missing),
                "messages_clinics": Several(tuple(code for code, _ in missing)),
            }
        ),
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
