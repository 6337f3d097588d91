"""What must hold of plans and of what studiolab sends, looked at after every synchronisation."""

from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.checks.looks import checks_of
from polydesk_dagster.outcome import WHAT_TO_DO
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures
from polydesk_dagster.values import Several

PRICES = dg.AssetKey(["studiolab", "prices"])
PATIENTS = dg.AssetKey(["studiolab", "patients"])
T = teller()


def _the_audit_trail_is_whole(connection: sa.Connection, _as_of: datetime) -> dg.AssetCheckResult:
    faults = audit.verify(connection)
    return dg.AssetCheckResult(
        passed=not faults,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures(
            {
                "audit_faults": len(faults),
                "audit_lines": Several(tuple(fault.line for fault in faults[:20])) if faults else None,
                WHAT_TO_DO: T.text("check.audit_altered" if faults else "check.nothing_to_do"),
            }
        ),
    )


def _no_price_of_a_deleted_service(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    found = connection.execute(
        sa.text("""
            SELECT count(*) FROM price p JOIN service s ON s.id = p.service_id
            WHERE s.deleted_at IS NOT NULL AND s.external_id IS NOT NULL
              AND (p.valid_to IS NULL OR p.valid_to > CAST(:now AS date))
        """),
        {"now": as_of},
    ).scalar_one()
    return dg.AssetCheckResult(
        passed=found == 0, severity=dg.AssetCheckSeverity.WARN, metadata=figures({"prices_of_deleted": found})
    )


def _no_doubtful_patient_waits_too_long(connection: sa.Connection, as_of: datetime) -> dg.AssetCheckResult:
    waiting, late = connection.execute(
        sa.text("""
            SELECT count(*), count(*) FILTER (WHERE found_at < :now - interval '7 days')
            FROM patient_review WHERE state = 'open'
        """),
        {"now": as_of},
    ).one()
    return dg.AssetCheckResult(
        passed=late == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=figures(
            {
                "reviews_waiting": waiting,
                "reviews_late": late,
                WHAT_TO_DO: T.text("check.review_patients" if waiting else "check.nothing_to_do"),
            }
        ),
    )


CHECKS = (
    checks_of(
        PRICES,
        {
            "the_audit_trail_is_whole": _the_audit_trail_is_whole,
            "no_price_of_a_deleted_service": _no_price_of_a_deleted_service,
        },
    ),
    checks_of(PATIENTS, {"no_doubtful_patient_waits_too_long": _no_doubtful_patient_waits_too_long}),
)
