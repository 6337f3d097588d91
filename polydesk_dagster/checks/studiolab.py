"""What must hold of plans and of what studiolab sends, looked at after every synchronisation."""

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.resources.polydesk import PolydeskResource

PRICES = dg.AssetKey(["studiolab", "prices"])
PATIENTS = dg.AssetKey(["studiolab", "patients"])


@dg.asset_check(asset=PRICES, description="Il registro delle modifiche è intero: nessuna riga cambiata o tolta.")
def the_audit_trail_is_whole(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        faults = audit.verify(connection)
    return dg.AssetCheckResult(
        passed=not faults,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "Righe guaste": len(faults),
            "Quali": ", ".join(str(fault.line) for fault in faults[:20]) or "nessuna",
            "Che cosa fare": "Avvisare subito l'assistenza: qualcuno ha toccato il registro." if faults else "Niente.",
        },
    )


@dg.asset_check(asset=PRICES, description="Non ci sono prezzi in vigore di prestazioni che non ci sono più.")
def no_price_of_a_deleted_service(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
        found = connection.execute(
            sa.text("""
                SELECT count(*) FROM price p JOIN service s ON s.id = p.service_id
                WHERE s.deleted_at IS NOT NULL AND s.external_id IS NOT NULL
                  AND (p.valid_to IS NULL OR p.valid_to > CAST(:now AS date))
            """),
            {"now": polydesk.now()},
        ).scalar_one()
    return dg.AssetCheckResult(passed=found == 0, severity=dg.AssetCheckSeverity.WARN, metadata={"Prezzi": int(found)})


@dg.asset_check(asset=PATIENTS, description="Nessuna anagrafica dubbia attende da più di una settimana.")
def no_doubtful_patient_waits_too_long(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.engine().connect() as connection:
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
        metadata={
            "In attesa": int(waiting),
            "Da più di una settimana": int(late),
            "Che cosa fare": "polydesk patients review" if waiting else "Niente.",
        },
    )


CHECKS = (the_audit_trail_is_whole, no_price_of_a_deleted_service, no_doubtful_patient_waits_too_long)
