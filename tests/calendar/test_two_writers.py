"""Two transactions that write slots of one agenda at once: they cannot see each other, so they wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.sources.events_world import booking, lab
from tests.waiting import PATIENCE, until
from tests.world import AS_OF, rome


def _until(engine: sa.Engine, waiting: Future[object]) -> None:
    """Wait until somebody waits for a lock in this database (or is through already)."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        blocked = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        until(lambda: waiting.done() or connection.scalar(blocked), "nobody waits")


def _beside(engine: sa.Engine, first: sa.Connection, second: Callable[[], object]) -> Future[object]:
    """Start ``second``, and commit ``first`` when it waits."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(second)
        _until(engine, running)
        first.commit()
        running.exception(timeout=PATIENCE)
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


@pytest.mark.parametrize("manual", [True, False], ids=["by_hand", "as_generation"])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_studiolabs_booking_waits_for_a_slot_that_is_being_written_and_is_never_lost(
    engine: sa.Engine, manual: bool, taken: bool
) -> None:
    with lab(engine) as studiolab:
        studiolab.publish(booking("X", "09:30"))
        with engine.connect() as other:
            agenda, service = other.execute(
                sa.text("SELECT a.id, s.id FROM agenda a, service s WHERE a.external_id = 'A1'")
            ).one()
            slot = world.slot(
                other, agenda, rome("2026-03-12", "09:10"), ends_at=rome("2026-03-12", "09:40"), manual=manual
            )
            if taken:
                world.appointment(other, slot, service_id=service, patient_id=world.patient(other))
            synced = _beside(engine, other, studiolab.sync)
        # What was written meanwhile it could not see: refused by the schema, put by, and tried again by itself.
        assert synced.result().outcome is Outcome.PARTIAL  # type: ignore[attr-defined]
        assert studiolab.states() == {"parked": 1}
        studiolab.sync(timedelta(minutes=2))
        if taken:
            assert studiolab.states() == {"parked": 1}
        else:
            assert studiolab.appointment("X").seats == 1
    with engine.connect() as connection:
        assert calendar_checks.overlapping(connection, AS_OF).count == 0


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
