"""What the clean-up takes away has already been counted: the statistics do not change by it."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.statistics import refresh
from polydesk_dagster.clinic.upkeep import retention
from tests.world import AS_OF

COUNTED = """
    SELECT table_name FROM information_schema.tables
    WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name LIKE 'statistic\\_%'
      AND table_name NOT IN ('statistic_change', 'statistic_publication') ORDER BY 1
"""


def _numbers(engine: sa.Engine) -> dict[str, list[str]]:
    """Every row of every statistic, as text, in order."""
    with engine.connect() as connection:
        tables = connection.scalars(sa.text(COUNTED)).all()
        return {
            table: sorted(connection.scalars(sa.text(f"SELECT CAST(to_jsonb(t) AS text) FROM {table} t")).all())
            for table in tables
        }


def test_statistics_are_the_same_before_and_after_a_clean_up(small_chain: sa.Engine) -> None:
    refresh.refresh(small_chain, AS_OF, full=True)
    before = _numbers(small_chain)
    assert any(before.values())
    later = AS_OF + timedelta(days=420)
    report = retention.clean(small_chain, later)
    assert report.counts.retired > 0
    assert report.counts.updated > 0
    refresh.refresh(small_chain, later)
    assert _numbers(small_chain) == before, "what is counted as it changes"
    refresh.refresh(small_chain, later, full=True)
    assert _numbers(small_chain) == before, "and counted anew"
