"""What must hold of plans and of what studiolab sends, looked at after every synchronisation."""

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.outcome import WHAT_TO_DO
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures
from polydesk_dagster.values import Several

PRICES = dg.AssetKey(["studiolab", "prices"])
PATIENTS = dg.AssetKey(["studiolab", "patients"])
T = teller()


@dg.asset_check(asset=PRICES, description=T.text("check.the_audit_trail_is_whole"))
def the_audit_trail_is_whole(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
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


@dg.asset_check(asset=PRICES, description=T.text("check.no_price_of_a_deleted_service"))
def no_price_of_a_deleted_service(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        found = connection.execute(
            sa.text("""
                SELECT count(*) FROM price p JOIN service s ON s.id = p.service_id
                WHERE s.deleted_at IS NOT NULL AND s.external_id IS NOT NULL
                  AND (p.valid_to IS NULL OR p.valid_to > CAST(:now AS date))
            """),
            {"now": polydesk.now()},
        ).scalar_one()
    return dg.AssetCheckResult(
        passed=found == 0, severity=dg.AssetCheckSeverity.WARN, metadata=figures({"prices_of_deleted": found})
    )


@dg.asset_check(asset=PATIENTS, description=T.text("check.no_doubtful_patient_waits_too_long"))
def no_doubtful_patient_waits_too_long(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        waiting, late = connection.execute(
            sa.text("""
                SELECT count(*), count(*) FILTER (WHERE found_at < :now - interval '7 days')
                FROM patient_review WHERE state = 'open'
            """),
            {"now": polydesk.now()},
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


CHECKS = (the_audit_trail_is_whole, no_price_of_a_deleted_service, no_doubtful_patient_waits_too_long)
