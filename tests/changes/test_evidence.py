"""Absence is proved by two readings or the source's own word, and little by little it is told from the last state that
a person confirmed."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster import changes
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import READINGS, Evidence, settle, synchronise
from polydesk_dagster.errors import TransientError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.kinds.services import SERVICE
from tests import world
from tests.changes import world as w
from tests.changes.worker import services
from tests.warm import Program

ALL = services()


class Practice:
    """A clinic whose list of services is read as it is given, reading by reading."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        with engine.begin() as connection:
            self.clinic = world.clinic(connection)
        self.scope = Scope("sync_services", "BO01", self.clinic)
        self.read = 0

    def sync(self, *readings: Iterable[SimpleNamespace], deleted: tuple[str, ...] = (), **more: Any) -> Report:
        coming = iter([w.pages(records, size=10) for records in readings])
        self.read = 0

        def again() -> Iterable[Page]:
            self.read += 1
            return next(coming)

        return synchronise(
            self.engine,
            SERVICE,
            self.scope,
            again(),
            as_of=world.AS_OF,
            evidence=Evidence(again, lambda: deleted),
            **more,
        )

    def here(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(connection.scalars(sa.text("SELECT external_id FROM service WHERE deleted_at IS NULL")))


@pytest.fixture
def practice(engine: sa.Engine) -> Practice:
    practice = Practice(engine)
    assert practice.sync(ALL).counts.created == 30
    assert practice.read == 1  # nothing is gone: one reading is enough
    return practice


def without(*names: str) -> list[SimpleNamespace]:
    return [record for record in ALL if record.id not in names]


def test_what_two_readings_miss_is_retired(practice: Practice) -> None:
    assert practice.sync(without("S3"), without("S3")).counts.retired == 1
    assert practice.read == 2
    assert "S3" not in practice.here()


def test_a_living_record_that_one_reading_missed_stays(practice: Practice) -> None:
    # One deleted and one added between two pages: the eleventh moved into the page that was read already.
    added = w.service("S99", "89.99", "Visita 99")
    report = practice.sync([*without("S0", "S10"), added], [*without("S0"), added], [*without("S0"), added])
    assert (report.outcome, report.counts.created, report.counts.retired) == (Outcome.OK, 1, 1)
    assert {"S10", "S99"} <= practice.here()
    assert "S0" not in practice.here()


def test_what_goes_between_the_readings_needs_one_more(practice: Practice) -> None:
    assert practice.sync(without("S1"), without("S1", "S2"), without("S1", "S2")).counts.retired == 2
    assert practice.read == 3


KILLED = """
import sys
from tests.changes.worker import main
main(sys.argv[1], "absent", *map(int, sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_reading_before_a_death_proves_nothing(practice: Practice) -> None:
    """Killed before, or in the middle of, the reading that would have been the second to miss two services."""
    url = practice.engine.url.render_as_string(hide_password=False)
    for page in ("1", "2"):
        assert Program(KILLED, url, page, "2", str(practice.clinic)).wait() == -9
        assert len(practice.here()) == 30
    # The first of the next run misses both once more, and that is one reading.
    report = practice.sync(without("S0", "S1"), without("S0"))
    assert (report.outcome, report.counts.retired, practice.read) == (Outcome.OK, 1, 2)
    assert practice.here() == {record.id for record in without("S0")}
    with practice.engine.connect() as connection:
        rows = set(connection.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'plan_rows'")))
        assert rows == set(connection.scalars(sa.text("SELECT 'p' || id FROM plan WHERE rows_kept")))


def test_what_the_source_says_is_gone_needs_no_second_reading(practice: Practice) -> None:
    assert practice.sync(without("S3"), deleted=("S3",)).counts.retired == 1
    assert practice.sync(without("S3", "S4", "S5"), without("S3", "S4", "S5"), deleted=("S4",)).counts.retired == 2


def test_a_key_on_two_pages_means_that_the_list_moved(practice: Practice) -> None:
    moved = [*ALL[:10], ALL[9], *ALL[10:15], *ALL[16:]]
    report = practice.sync(moved, ALL)
    assert (report.outcome, practice.read) == (Outcome.NOTHING_TO_DO, 2)
    assert len(practice.here()) == 30


def test_a_record_that_is_always_said_twice_is_the_sources_own(practice: Practice) -> None:
    twice = [*ALL, ALL[0]]
    report = practice.sync(twice, twice)
    assert (report.outcome, report.counts.changed) == (Outcome.NOTHING_TO_DO, 0)


def test_a_list_that_never_stands_still_is_a_failure_and_changes_nothing(practice: Practice) -> None:
    readings = [without(*(f"S{n}" for n in range(turn + 1))) for turn in range(READINGS)]
    with pytest.raises(TransientError) as failed:
        practice.sync(*readings)
    assert failed.value.reason.code == "list_unsteady"
    assert len(practice.here()) == 30


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seen=st.lists(st.sets(st.integers(0, 29), max_size=3), min_size=READINGS, max_size=READINGS))
def test_never_is_anything_retired_that_the_last_two_readings_did_not_both_miss(
    practice: Practice, seen: list[set[int]]
) -> None:
    readings = [without(*(f"S{n}" for n in missing)) for missing in seen]
    with practice.engine.begin() as connection:
        connection.execute(sa.text("UPDATE service SET deleted_at = NULL, active = true"))
    try:
        report = practice.sync(*readings, preview=True)
    except TransientError:
        return
    with practice.engine.connect() as connection:
        plan = plans.load(connection, report.plan_id or 0)
        query = f"SELECT external_id FROM {plan.rows} WHERE action = 'retire'"
        gone = connection.scalars(sa.text(query)).all() if plan.rows_kept else []
    last = seen[practice.read - 1]
    before = seen[practice.read - 2] if practice.read > 1 else set()
    assert {int(name[1:]) for name in gone} == last
    assert last <= before


def test_little_by_little_is_told_from_the_state_that_a_person_confirmed(practice: Practice) -> None:
    for night in range(1, 4):  # three of thirty a night: within every limit of one night
        left = ALL[: 30 - 3 * night]
        assert practice.sync(left, left).outcome is Outcome.OK
    left = ALL[:18]
    stopped = practice.sync(left, left)
    assert stopped.outcome is Outcome.REFUSED
    plan = practice_plan(practice, stopped)
    # A reading that is shorter than the confirmed one by more than a third is short as well, however slowly it came.
    assert [guard.name for guard in plan.failed_guards] == ["source_short", "too_many_since_confirmed"]
    assert len(practice.here()) == 21
    confirmed = settle(
        practice.engine,
        SERVICE,
        practice.scope,
        plan,
        as_of=world.AS_OF,
        actor="desk:anna",
        reason="prestazioni davvero cessate",
        past_guards=["source_short", "too_many_since_confirmed"],
    )
    assert (confirmed.outcome, confirmed.counts.retired) == (Outcome.OK, 3)
    left = ALL[:16]
    assert practice.sync(left, left).outcome is Outcome.OK  # counted from eighteen now


def test_what_was_taken_back_counts_no_more(practice: Practice) -> None:
    gone = practice.sync(ALL[:25], ALL[:25])
    with practice.engine.begin() as connection:
        assert changes.undo(connection, gone.plan_id or 0, as_of=world.AS_OF, actor="dagster").counts.updated == 5
    for night in (1, 2):
        left = ALL[5 * night :]
        assert practice.sync(left, left).outcome is (Outcome.OK if night == 1 else Outcome.REFUSED)


def practice_plan(practice: Practice, report: Report) -> plans.Plan:
    with practice.engine.connect() as connection:
        return plans.load(connection, report.plan_id or 0)


def test_nothing_is_made_for_a_source_that_has_not_changed(engine: sa.Engine) -> None:
    practice, said = Practice(engine), list[str]()

    def unchanged() -> Iterable[Page]:
        raise InterruptedError
        yield

    sa.event.listen(engine, "before_cursor_execute", lambda *given: said.append(given[2]))
    with pytest.raises(InterruptedError):
        synchronise(engine, SERVICE, practice.scope, unchanged(), as_of=world.AS_OF)
    assert said == []
