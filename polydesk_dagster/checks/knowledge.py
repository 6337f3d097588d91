"""What must hold in the index of documents after every run."""

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.resources import knowledge
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures

INDEX = dg.AssetKey(["knowledge", "index"])


@dg.asset_check(asset=INDEX, description=teller().text("check.every_passage_is_there"))
def every_passage_is_there(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    from polydesk_dagster.knowledge.store import Store

    with polydesk.looking() as connection:
        rows = connection.execute(
            sa.text("""
                SELECT g.id, g.revision, c.key, c.passages FROM knowledge_generation g
                LEFT JOIN knowledge_content c ON c.generation_id = g.id WHERE g.state = 'current'""")
        ).all()
    if not rows:
        return dg.AssetCheckResult(passed=True, metadata=figures({"index_passages": 0}))
    declared = {row.key: row.passages for row in rows if row.key is not None}
    stored = Store(knowledge.library(polydesk.settings()).uri).passages_by_key(rows[0].id)
    wrong = {key for key in declared.keys() | stored.keys() if declared.get(key) != stored.get(key)}
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=figures({"index_passages": sum(stored.values()), "index_wrong_contents": len(wrong)}),
    )


@dg.asset_check(asset=INDEX, description=teller().text("check.nothing_in_quarantine"))
def nothing_in_quarantine(polydesk: PolydeskResource) -> dg.AssetCheckResult:
    with polydesk.looking() as connection:
        count = connection.scalar(sa.text("SELECT count(*) FROM document WHERE state = 'quarantined'")) or 0
    return dg.AssetCheckResult(
        passed=count == 0, severity=dg.AssetCheckSeverity.WARN, metadata=figures({"index_quarantined": count})
    )


CHECKS = (every_passage_is_there, nothing_in_quarantine)
