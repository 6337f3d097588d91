"""Two transactions that write slots of one agenda at once: they cannot see each other, so they wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar import slots
from tests import world
from tests.world import AS_OF, rome

LONG = 120


def _until(engine: sa.Engine, waiting: Future[object]) -> None:
    """Wait until somebody waits for a lock in this database (or is through already)."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        blocked = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        for _ in range(LONG * 20):
            if waiting.done() or connection.scalar(blocked):
                return
            connection.execute(sa.text("SELECT pg_sleep(0.05)"))
    raise AssertionError("nobody waits")


def _beside(engine: sa.Engine, first: sa.Connection, second: Callable[[], object]) -> Future[object]:
    """Start ``second``, and commit ``first`` when it waits."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(second)
        _until(engine, running)
        first.commit()
        running.exception(timeout=LONG)
        return running


def _by_hand(connection: sa.Connection, agenda: int) -> int:
    return world.slot(connection, agenda, rome("2026-03-12", "09:10"), ends_at=rome("2026-03-12", "09:40"), manual=True)


def test_generation_waits_for_a_slot_that_is_being_added_by_hand_and_leaves_it_room(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
    with engine.connect() as desk:
        _by_hand(desk, practice.agenda)
        generated = _beside(engine, desk, lambda: slots.generate(engine, AS_OF))
    assert generated.result().counts.created > 0  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert calendar_checks.overlapping(connection, AS_OF).count == 0
        assert connection.scalar(sa.text("SELECT count(*) FROM slot WHERE manual AND state = 'free'")) == 1


def test_two_slots_by_hand_that_overlap_are_not_both_committed(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, auto_generate=False)

    def other() -> None:
        with engine.begin() as connection:
            world.slot(connection, practice.agenda, rome("2026-03-12", "09:30"))

    with engine.connect() as desk:
        _by_hand(desk, practice.agenda)
        refused = _beside(engine, desk, other)
    with pytest.raises(sa.exc.IntegrityError, match="overlap"):
        refused.result()


def test_slots_of_two_agendas_do_not_wait_for_each_other(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, auto_generate=False)
        second = world.agenda(
            connection, practice.clinic, practice.location, specialist_id=practice.specialist, auto_generate=False
        )
    with engine.connect() as desk:
        _by_hand(desk, practice.agenda)
        with engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '60s'"))
            world.slot(connection, second, rome("2026-03-12", "09:10") + timedelta(minutes=5))
        desk.commit()
