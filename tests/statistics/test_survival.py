from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.statistics.refresh import compare, refresh
from polydesk_dagster.errors import TransientError
from polydesk_dagster.outcome import Outcome
from tests.statistics import world
from tests.waiting import until
from tests.warm import Program

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)
WRITERS = 4
REFRESHES = 8

CHANGES = (
    "UPDATE appointment SET status = 'no_show' WHERE id % 7 = :n % 7 AND id % 3 = :n % 3",
    "UPDATE appointment SET starts_at = ends_at, ends_at = ends_at + interval '7 hours' WHERE id % 9 = :n % 9",
    "DELETE FROM appointment WHERE id % 13 = :n % 13 AND id % 2 = 0",
    "UPDATE appointment SET status = 'expired', expired_at = now() WHERE channel = 'online' AND id % 5 = :n % 5",
    "DELETE FROM appointment WHERE status = 'expired' AND id % 2 = :n % 2",
    "UPDATE slot SET state = CASE state WHEN 'free' THEN 'retired' ELSE 'free' END WHERE id % 9 = :n % 9",
)


def _write(engine: sa.Engine, seed: int, stop: threading.Event, failures: list[BaseException]) -> None:
    """Transactions of several statements that stay open for a while, so that they commit during refreshes."""
    pick = random.Random(seed)
    try:
        while not stop.is_set():
            try:
                with engine.begin() as connection:
                    for _ in range(pick.randint(1, 3)):
                        if pick.random() < 0.6:
                            world.appointment(
                                connection,
                                f"2026-04-{pick.randint(1, 28):02} {pick.randint(5, 23):02}:00Z",
                                clinic=pick.choice((1, 2)),
                                channel=pick.choice(("online", "desk")),
                            )
                        else:
                            connection.execute(sa.text(pick.choice(CHANGES)), {"n": pick.randint(0, 1000)})
                        time.sleep(pick.random() * 0.03)
                    if pick.random() < 0.15:
                        connection.rollback()
            except sa.exc.OperationalError as error:
                if getattr(error.orig, "sqlstate", "") != "40P01":  # two writers met: neither is ours to mend
                    raise
    except BaseException as error:  # noqa: BLE001  a thread's failure is the test's
        failures.append(error)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_change_is_lost_while_writers_and_refreshes_overlap(engine: sa.Engine, seed: int) -> None:
    with engine.begin() as connection:
        world.chain(connection)
        world.slots(connection, 1, "2026-04-07", 12)
    stop, failures = threading.Event(), []
    writers = [threading.Thread(target=_write, args=(engine, seed * 100 + n, stop, failures)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        refreshed = 0
        while refreshed < REFRESHES and not failures:
            refreshed += refresh(engine, AS_OF, full=refreshed % 5 == 4).outcome is Outcome.OK
            assert compare(engine, AS_OF, whole=True).drifted == ()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures
    refresh(engine, AS_OF)
    final = compare(engine, AS_OF, whole=True)
    assert (final.cells > 0, final.drifted) == (True, ())
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM statistic_change")) == 0


def test_a_change_that_commits_after_the_refresh_read_stays_for_the_next(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.chain(connection)
        world.appointment(connection, "2026-04-07 08:00Z")
    with engine.connect() as slow:
        world.appointment(slow, "2026-04-07 09:00Z")  # its log row has a lower id than what is read below
        with engine.begin() as connection:
            world.appointment(connection, "2026-04-07 10:00Z")
        assert refresh(engine, AS_OF).outcome is Outcome.OK
        slow.commit()
    count = sa.text("SELECT sum(appointments) FROM statistic_appointment")
    with engine.connect() as connection:
        assert connection.scalar(count) == 2
    assert refresh(engine, AS_OF).counts.updated == 1
    with engine.connect() as connection:
        assert connection.scalar(count) == 3


@pytest.mark.slow
def test_a_killed_refresh_leaves_the_old_numbers_whole(engine: sa.Engine, database: URL) -> None:
    with engine.begin() as connection:
        world.chain(connection)
        world.appointment(connection, "2026-04-07 08:00Z", channel="online", verified=True)
    refresh(engine, AS_OF)
    with engine.begin() as connection:
        world.appointment(connection, "2026-04-07 09:00Z", channel="online")
    code = (
        "import sys; from datetime import UTC, datetime; from sqlalchemy.engine import make_url\n"
        "from polydesk_dagster.clinic.statistics.refresh import refresh\n"
        "from polydesk_dagster.database.engine import create_engine\n"
        "refresh(create_engine(make_url(sys.argv[1])), datetime(2026, 3, 30, tzinfo=UTC))"
    )
    published = sa.text("""
        SELECT (SELECT sum(appointments) FROM statistic_appointment), (SELECT sum(booked) FROM statistic_funnel)""")
    with engine.begin() as blocker:
        blocker.execute(sa.text("LOCK TABLE statistic_funnel IN SHARE MODE"))  # stops it after the appointments
        killed = Program(code, database.render_as_string(hide_password=False))
        waiting = sa.text("""
            SELECT count(*) FROM pg_locks
            WHERE NOT granted AND relation = CAST('statistic_funnel' AS regclass)""")
        until(lambda: blocker.scalar(waiting))
        killed.kill()
        killed.wait()
        assert tuple(blocker.execute(published).one()) == (1, 1)
    report = refresh(engine, AS_OF)
    assert report.outcome is Outcome.OK
    with engine.connect() as connection:
        assert tuple(connection.execute(published).one()) == (2, 2)
    assert compare(engine, AS_OF, whole=True).drifted == ()


def test_a_refresh_waits_for_another_and_says_so_when_it_does_not_end(database: URL, engine: sa.Engine) -> None:
    impatient = sa.create_engine(database, connect_args={"options": "-c lock_timeout=200ms"})
    with engine.begin() as other:
        other.execute(sa.text("LOCK TABLE statistic_publication IN EXCLUSIVE MODE"))
        with pytest.raises(TransientError, match="another_refresh"):
            refresh(impatient, AS_OF)
    impatient.dispose()


def test_a_reader_never_sees_half_a_refresh(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.chain(connection)
        world.appointment(connection, "2026-04-07 08:00Z")
    refresh(engine, AS_OF)
    seen, stop = set(), threading.Event()

    def read() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.is_set():
                seen.add(int(connection.scalar(sa.text("SELECT count(*) FROM statistic_appointment")) or 0))

    reader = threading.Thread(target=read)
    reader.start()
    for price in range(15):
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE appointment SET quoted_price = :price"), {"price": price})
        refresh(engine, AS_OF, full=price % 2 == 0)
    stop.set()
    reader.join()
    assert seen == {1}
