"""Rows as COPY takes them: whatever the values, PostgreSQL reads back what was written; samples of what was filled."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.database import bulk

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.sampled_from(
    ["\\N", "\\.", "\\", "\t", "a\nb", "\r\n", '"', "{}", "NULL", ""]
)
ROWS = st.lists(st.tuples(*[st.none() | WORDS] * 3), max_size=20)


def _through(connection: sa.Connection, columns: str, rows: list[tuple[bulk.Cell, ...]]) -> list[tuple[object, ...]]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute("DROP TABLE IF EXISTS poured")
    driver.execute(f"CREATE TEMP TABLE poured ({columns})")
    with driver.cursor() as cursor, cursor.copy("COPY poured FROM STDIN") as copy:
        copy.write(bulk.lines(rows))
    return driver.execute("SELECT * FROM poured").fetchall()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_text_comes_back_as_it_was(connection: sa.Connection, rows: list[tuple[str | None, ...]]) -> None:
    assert _through(connection, "a text, b text, c text", list(rows)) == rows


def test_other_values_and_text_share_a_row(connection: sa.Connection) -> None:
    columns = "n bigint, day date, amount numeric, flag boolean, raw bytea, names text[], note text"
    row = (7, date(2026, 3, 29), Decimal("33.60"), True, b"\x00\\", ['a"b', "c\\d", "e\tf", "{}", None], "x\ty")
    assert _through(connection, columns, [row]) == [row]


@pytest.mark.parametrize("rows", [[], [()]])
def test_no_values_are_no_text(rows: list[tuple[bulk.Cell, ...]]) -> None:
    assert bulk.lines(rows).strip() == ""


def test_what_is_analyzed_after_a_plan_is_sampled_as_before(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL default_statistics_target = 77"))
        connection.execute(sa.text("CREATE TEMP TABLE many ON COMMIT DROP AS SELECT n FROM generate_series(1, 2000) n"))
        bulk.analyze(connection, "many", target=10)
        assert connection.scalar(sa.text("SHOW default_statistics_target")) == "77"
        bounds = connection.scalar(sa.text("SELECT cardinality(histogram_bounds) FROM pg_stats WHERE tablename='many'"))
    assert bounds == 11
