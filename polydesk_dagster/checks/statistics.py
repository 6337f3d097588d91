"""What must hold after every refresh: the published numbers are those that counting everything gives."""

import dagster as dg

from polydesk_dagster.clinic.statistics.refresh import compare, comparison_due
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures
from polydesk_dagster.values import Reason, Several, Term

T = teller()
SHOWN = 20


@dg.asset_check(
    asset=dg.AssetKey(["statistics", "appointments"]),
    name="same_as_counting_everything",
    description=T.text("check.same_as_counting_everything"),
)
def same_as_counting_everything(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    as_of = polydesk.now()
    with polydesk.looking() as connection:
        whole = comparison_due(connection, as_of)
    comparison = compare(polydesk.engine(), as_of, whole=whole)
    drifted = [
        Reason("statistic_drifted", {"day": day, "topic": Term("statistic_topic", topic)}, clinic)
        for topic, clinic, day in comparison.drifted[:SHOWN]
    ]
    return dg.AssetCheckResult(
        passed=not comparison.drifted,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures(
            {
                "statistic_comparison": Term("statistic_comparison", "whole" if whole else "sample"),
                "statistic_compared": comparison.cells,
                "statistic_drifted": len(comparison.drifted),
                "statistic_which": Several(tuple(drifted)),
                "what_to_do": Term("statistic_advice", "recount" if comparison.drifted else "nothing"),
            }
        ),
    )


CHECKS = (same_as_counting_everything,)
