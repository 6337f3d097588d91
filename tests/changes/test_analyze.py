"""A plan's rows are sampled little; what the same transaction analyzes afterwards is not."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.database import bulk


def test_what_is_analyzed_after_a_plan_is_sampled_as_before(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL default_statistics_target = 77"))
        connection.execute(sa.text("CREATE TEMP TABLE many ON COMMIT DROP AS SELECT n FROM generate_series(1, 2000) n"))
        bulk.analyze(connection, "many", target=10)
        assert connection.scalar(sa.text("SHOW default_statistics_target")) == "77"
        bounds = connection.scalar(sa.text("SELECT cardinality(histogram_bounds) FROM pg_stats WHERE tablename='many'"))
    assert bounds == 11
