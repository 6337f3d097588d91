"""What nightly clean-up may delete as it stands and what waits for a person's word, and orders that are left open."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import changes
from polydesk_dagster.changes import plans, show
from polydesk_dagster.changes.kind import FINDINGS
from polydesk_dagster.clinic.upkeep import registry, retention
from polydesk_dagster.database.engine import create_engine, plain_url
from polydesk_dagster.database.service_runs import recorded
from polydesk_dagster.jobs.plans import apply_plan
from polydesk_dagster.outcome import Counts, Outcome, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from polydesk_dagster.values import Term
from tests import world
from tests.upkeep.world import DAY, MINUTE, count, old_holds, old_messages
from tests.waiting import PATIENCE
from tests.world import AS_OF


@pytest.fixture
def far_more_holds(engine: sa.Engine) -> world.Practice:
    """10,001 old holds where there used to be a hundred a night, and one old message."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        old_holds(connection, practice, 10_001, 40 * DAY)
        old_messages(connection, practice, 0, 1, "reminder", "sent")
        for number in range(3):
            connection.execute(
                sa.text("""INSERT INTO cleanup (dataset, cutoff, expected, oldest, newest, ordered_at, removed,
                                                finished_at)
                           VALUES ('ended_holds', :at, 100, :old, :old, :at, 100, :at)"""),
                {"at": AS_OF - number * DAY, "old": AS_OF - 60 * DAY},
            )
    return practice


def test_ten_times_the_usual_waits_for_a_persons_word_and_the_rest_goes_on(
    engine: sa.Engine, far_more_holds: world.Practice
) -> None:
    stopped = retention.clean(engine, AS_OF)
    assert stopped.outcome is Outcome.PARTIAL
    assert (count(engine, "hold"), count(engine, "message"), count(engine, "message_attempt")) == (10_001, 0, 0)
    reason = stopped.reasons[0]
    assert reason.code == "far_more_than_usual"
    said = teller("it").reason(reason)
    assert "orari bloccati già conclusi: ci sarebbero da pulire 10001 righe" in said
    assert f"polydesk plan apply {stopped.plan_id} --past-guard unusual_volume" in said
    assert (Term("data_set", "message_attempts"), 1) in {(row[0], row[2]) for row in stopped.tables[0].rows}
    assert retention.clean(engine, AS_OF).outcome is Outcome.REFUSED, "nothing else is left"

    assert stopped.plan_id is not None
    why, past = "campagna vaccinale di febbraio", ["unusual_volume"]
    with engine.begin() as connection:
        assert changes.apply(connection, stopped.plan_id, as_of=AS_OF, actor="desk:anna").outcome is Outcome.REFUSED
        passed = changes.apply(
            connection, stopped.plan_id, as_of=AS_OF, actor="desk:anna", reason=why, past_guards=past
        )
    assert passed.counts.created == 1
    assert count(engine, "cleanup", "dataset = 'ended_holds' AND finished_at IS NULL") == 1
    worked = retention.clean(engine, AS_OF)
    assert (worked.outcome, worked.counts.retired) == (Outcome.OK, 10_001)


def test_a_preview_names_what_is_far_more_than_usual(engine: sa.Engine, far_more_holds: world.Practice) -> None:
    shown = retention.clean(engine, AS_OF, preview=True)
    (reason,) = (each for each in shown.reasons if each.code == "far_more_than_usual")
    assert teller("it").reason(reason).startswith("orari bloccati già conclusi: ")
    assert len(shown.tables[0].rows) == 3
    assert shown.counts == Counts(retired=10_001 + 2), "of rows, not of orders"
    assert (count(engine, "cleanup"), count(engine, "hold")) == (3, 10_001)


def test_an_order_that_was_left_open_is_worked_off_whatever_is_stopped(
    engine: sa.Engine, far_more_holds: world.Practice
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO cleanup (dataset, cutoff, expected, oldest, newest, ordered_at)
                       VALUES ('old_messages', :cutoff, 1, :old, :old, :cutoff)"""),
            {"cutoff": AS_OF - 731 * DAY, "old": AS_OF - 800 * DAY},
        )
    chosen = registry.data_sets(["ended_holds", "old_messages"])
    assert retention.clean(engine, AS_OF, chosen=chosen).outcome is Outcome.PARTIAL
    assert (count(engine, "hold"), count(engine, "message")) == (10_001, 0)


def test_a_data_set_that_another_service_orders_just_now_keeps_nothing_else(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        old_holds(connection, practice, 5, 40 * DAY)
        slot = world.slot(connection, practice.agenda, AS_OF - 20 * DAY)
        world.appointment(
            connection, slot, service_id=practice.service, patient_id=None, status="expired", channel="online",
            expired_at=AS_OF - 20 * DAY, verification_expires_at=AS_OF - 20 * DAY, seat=False,
        )  # fmt: skip
    met = threading.Barrier(2)
    apply = changes.apply

    def at_once(*args: Any, **kwargs: Any) -> Report:
        with suppress(threading.BrokenBarrierError):  # the second waits for the first's orders
            met.wait(1)
        return apply(*args, **kwargs)

    monkeypatch.setattr(changes, "apply", at_once)
    with ThreadPoolExecutor(2) as pool:
        nightly = pool.submit(retention.clean, engine, AS_OF)
        hourly = pool.submit(
            retention.clean,
            engine,
            AS_OF,
            service="delete_unverified_appointments",
            chosen=registry.UNVERIFIED_BOOKINGS,
        )
        reports = [nightly.result(timeout=PATIENCE), hourly.result(timeout=PATIENCE)]
    assert Outcome.REFUSED not in {report.outcome for report in reports}
    assert sum(report.counts.retired for report in reports) == 6
    assert (count(engine, "hold"), count(engine, "appointment")) == (0, 0)


def test_a_plan_says_in_words_what_goes_and_why(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    number = retention.clean(engine, AS_OF, preview=True).plan_id
    assert number is not None
    with engine.connect() as connection:
        plan = plans.load(connection, number)
        ((_, action, what, _, why),) = show.table(connection, plan, retention.CLEANUP).rows
    said = teller("it").value
    assert [said(each) for each in (action, what, why)] == [
        "pulizia",
        "orari bloccati già conclusi",
        "oltre il termine di conservazione",
    ]
    assert teller("it").counts(plan.counts, preview=True, kind=plan.kind) == "1 insieme di dati da pulire"
    assert plan.tally.keys() & {*FINDINGS} == set()  # nothing is missing here: it is there, and too old


def test_a_plan_that_is_applied_by_hand_says_when_its_orders_are_worked_off(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    plan = retention.clean(engine, AS_OF, preview=True).plan_id
    assert plan is not None
    with engine.begin() as connection:
        report = changes.apply(connection, plan, as_of=AS_OF, actor="desk:anna")
    assert (report.outcome, report.counts.created) == (Outcome.OK, 1)
    (reason,) = report.reasons
    assert "ordinata: orari bloccati già conclusi, 5 righe" in teller().reason(reason)
    assert "«Pulizia notturna dati» il 11/03/2026 02:30" in teller().reason(reason)
    assert count(engine, "hold") == 5
    assert retention.clean(engine, AS_OF).counts.retired == 5


def test_a_plan_whose_rows_a_night_has_cleaned_since_orders_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    plan = retention.clean(engine, AS_OF, preview=True).plan_id
    assert plan is not None
    retention.clean(engine, AS_OF + MINUTE)
    with engine.begin() as connection:
        report = changes.apply(connection, plan, as_of=AS_OF + MINUTE, actor="desk:anna")
    assert (report.counts.created, report.counts.skipped) == (0, 1)
    assert count(engine, "cleanup") == 1


def _clean_slowly(url: URL, ready: Any) -> None:
    """Stops for good after the second batch."""
    engine = create_engine(url)
    batches = 0

    def rest() -> None:
        nonlocal batches
        batches += 1
        if batches == 2:
            ready.set()
            signal.pause()

    retention.clean(engine, AS_OF, batch=10, rest=rest)


def test_a_killed_clean_up_is_finished_by_the_next(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 45, 40 * DAY)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_clean_slowly, args=(engine.url, ready))
    process.start()
    assert ready.wait(PATIENCE)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert count(engine, "hold") == 25
    report = retention.clean(engine, AS_OF, batch=10)
    assert report.counts.retired == 25
    assert count(engine, "hold") == 0
    with engine.connect() as connection:
        lines = connection.scalars(sa.text("SELECT detail FROM audit WHERE action = 'cleanup'")).all()
    assert [line["removed"] for line in lines] == [45], "one line for the whole order, killed or not"


def test_an_order_that_has_begun_cannot_be_undone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    plan = retention.clean(engine, AS_OF).plan_id
    assert plan is not None
    with engine.begin() as connection:
        report = changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")
    assert report.counts.changed == 0
    assert "già eseguita" in " ".join(teller().reason(reason) for reason in report.reasons)


def test_applied_on_the_page_it_says_what_goes_when_and_counts_nothing_as_added(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    plan = retention.clean(engine, datetime.now(UTC), preview=True).plan_id
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        done = apply_plan.execute_in_process(
            run_config={"ops": {"apply": {"config": {"plan": plan}}}},
            resources={"polydesk": PolydeskResource()},
            instance=instance,
        )
    assert done.success
    with engine.connect() as connection:
        ((_, report),) = recorded(connection, done.run_id, "apply_plan")
    assert (report.outcome, teller("it").counts(report.counts)) == (Outcome.OK, "")
    assert [reason.code for reason in report.reasons] == ["ordered"]
    assert not any(figure.startswith("finding") for figure in report.figures)
