"""A database that is lent again is as it was, what other tables had noted of its rows included."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.calendar import slots
from tests import postgres, world
from tests.lent import lent


def _filled(engine: sa.Engine) -> world.Practice:
    with engine.begin() as connection:
        practice = world.practice(connection, horizon_days=2)
    slots.generate(engine, world.AS_OF)
    return practice


def _rows(engine: sa.Engine) -> dict[str, set[str]]:
    with engine.connect() as connection:
        names = connection.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        return {name: set(connection.scalars(sa.text(f'SELECT CAST(t.* AS text) FROM "{name}" t'))) for name in names}


def test_what_was_written_and_what_was_noted_of_it_is_gone(server: URL) -> None:
    with lent(server, postgres.EMPTY, _filled) as (engine, practice):
        before, where = _rows(engine), engine.url
        with engine.begin() as connection:
            for noting in ("agenda_touched", "bookable_stale"):
                connection.execute(sa.text(f"DELETE FROM {noting}"))
            connection.execute(sa.text("UPDATE agenda_rule SET ends_at = ends_at - interval '1 hour'"))
            another = world.clinic(connection, "RM01")
            connection.execute(sa.text("UPDATE agenda SET capacity = 2 WHERE id = :id"), {"id": practice.agenda})
        slots.generate(engine, world.AS_OF)
        assert another != practice.clinic
        assert _rows(engine) != before
    with lent(server, postgres.EMPTY, _filled) as (engine, _):
        assert engine.url == where
        assert _rows(engine) == before
