"""What must hold after every refresh: the published numbers are those that counting everything gives."""

import dagster as dg

from polydesk_dagster.clinic.statistics.refresh import compare, comparison_due
from polydesk_dagster.resources.polydesk import PolydeskResource

SHOWN = 20


@dg.asset_check(
    asset=dg.AssetKey(["statistics", "appointments"]),
    name="same_as_counting_everything",
    description=(
        "I numeri pubblicati sono quelli che si ottengono ricontando: un campione di giorni a ogni esecuzione, tutti "
        "una volta per notte. I giorni diversi devono essere 0."
    ),
)
def same_as_counting_everything(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    as_of = polydesk.now()
    with polydesk.engine().connect() as connection:
        whole = comparison_due(connection, as_of)
    comparison = compare(polydesk.engine(), as_of, whole=whole)
    examples = [f"{clinic} {day:%d/%m/%Y} ({topic})" for topic, clinic, day in comparison.drifted[:SHOWN]]
    return dg.AssetCheckResult(
        passed=not comparison.drifted,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "Confronto": "completo" if whole else "a campione",
            "Giorni confrontati": comparison.cells,
            "Giorni diversi": len(comparison.drifted),
            "Quali": "; ".join(examples) or "nessuno",
            "Che cosa fare": (
                "I giorni diversi saranno ricontati al prossimo aggiornamento; se si ripete, chiama l'assistenza."
                if comparison.drifted
                else "Niente."
            ),
        },
    )


CHECKS = (same_as_counting_everything,)
