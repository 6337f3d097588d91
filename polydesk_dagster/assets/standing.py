"""The checks of a preview, once somebody has decided about a plan that they stopped: what stands of them then.

No ``from __future__ import annotations``: Dagster reads the annotations.
"""

from dataclasses import replace

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.assets.listings import LISTINGS
from polydesk_dagster.changes import listed
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.outcome import Reason
from polydesk_dagster.told import teller


def standing(connection: sa.Connection, decided: Plan) -> list[dg.AssetCheckEvaluation]:
    """Each check of its preview that stopped the plan ``decided``, which has been applied or taken back: failed only
    where the newest plan of some clinic is still stopped by it. Nothing of a plan that no preview shows.

    A preview is one asset for all clinics, and a check's newest result is all that is seen of it.
    """
    listing = next((each for each in LISTINGS if each.kind.name == decided.kind), None)
    if listing is None or not decided.failed_guards or decided.undoes is not None:
        return []
    t = teller()
    still: dict[str, list[str]] = {}
    for plan in listed.stopped(connection, decided.kind):
        for guard in plan.failed_guards:
            reason = replace(guard.reason, clinic=plan.clinic)
            still.setdefault(guard.name, []).append(f"{plan.clinic or t.text('all_clinics')}: {t.reason(reason)}")
    settled = t.reason(Reason("guard_settled", {"plan": decided.id}))
    return [
        dg.AssetCheckEvaluation(
            asset_key=listing.preview,
            check_name=guard.name,
            passed=guard.name not in still,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={t.label("figure", "guard"): "\n".join(still.get(guard.name, [settled]))},
        )
        for guard in decided.failed_guards
    ]
