from __future__ import annotations

import random
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.messages import health
from polydesk_dagster.demo.mailbox import received
from tests import warm, world
from tests.messages.world import AS_OF
from tests.waiting import PATIENCE, until

_FILL = """
    WITH someone AS (
        INSERT INTO patient (last_name, first_name, mobile, email)
        SELECT 'Rossi', 'Mario', :prefix || lpad((n * 10 + 5)::text, 7, '0'), 'p' || n || '@example.org'
        FROM generate_series(CAST(:first AS int), :last) n RETURNING id
    ), news AS (
        INSERT INTO report (id, clinic_id, external_id, patient_id, title, published_at, updated_at)
        SELECT id, :clinic, CAST(id AS text), id, 'Referto', :as_of, :as_of FROM someone
    ), wanted AS (
        INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, context, send_after, expires_at,
                             template_revision, created_at, changed_at)
        SELECT :clinic, 'report_ready', 'patient', id, NULL, :as_of, CAST(:as_of AS timestamptz) + interval '20 days',
               0, :as_of, :as_of
        FROM someone RETURNING id, recipient_id
    )
    INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id, message_id,
                                planned_at)
    SELECT 'report', recipient_id, 1, 'report_ready', 'patient', recipient_id, :clinic, id, :as_of FROM wanted"""


DISPATCH = "import sys; from tests.messages import dispatcher; dispatcher.main(*sys.argv[1:])"


def fill(engine: sa.Engine, count: int, prefix: str | None, first: int = 1) -> None:
    """Plan ``count`` messages to patients of their own, the ``first``th and those after."""
    with engine.begin() as connection:
        clinic = connection.scalar(sa.text("SELECT id FROM clinic")) or world.clinic(connection)
        numbers = {"first": first, "last": first + count - 1}
        connection.execute(sa.text(_FILL), {**numbers, "clinic": clinic, "as_of": AS_OF, "prefix": prefix})


@contextmanager
def process(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program and the first line that it prints."""
    running = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        yield running, running.stdout.readline().strip()
    finally:
        running.kill()
        running.communicate(timeout=PATIENCE)


def run_and_kill(engine: sa.Engine, carrier: str, as_of: datetime, more: int) -> bool:
    """Start a dispatcher and SIGKILL it when ``more`` messages have left its hands; True where it was done before."""
    url = engine.url.render_as_string(hide_password=False)
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    handled = sa.text("SELECT count(*) FROM message WHERE state NOT IN ('planned', 'claimed')")
    with alone.connect() as watcher, warm.program(DISPATCH, url, carrier, as_of.isoformat()) as run:
        stdout = run.stdout
        assert stdout.readline() == "working\n"
        wanted = watcher.scalar(handled) + more
        until(lambda: watcher.scalar(handled) >= wanted or select.select([stdout], [], [], 0)[0], seldom=0.02)
        finished = bool(select.select([stdout], [], [], 0)[0])
        run.kill()
        run.wait()
        return finished


def counted(engine: sa.Engine) -> Counter[str]:
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT state, count(*) AS count FROM message GROUP BY state"))
        return Counter({row.state: row.count for row in rows})


@pytest.mark.slow
def test_killed_twenty_times_the_gateway_has_each_text_exactly_once(engine: sa.Engine, database: URL) -> None:
    count, chance = 1_200, random.Random(20260310)
    fill(engine, count, "+39347")
    with process("polydesk_dagster.demo.simulators.sms", "--port", "0") as (_, carrier):
        admin = carrier.replace("/api/v1", "/admin")
        faults = [
            {"kind": kind, "path": "/messages", "after": chance.randrange(10, 500), "times": times, **more}
            for _ in range(2)
            for kind, times, more in (
                ("status", 5, {"status": 500}),
                ("status", 3, {"status": 429, "retry_after": 0}),
                ("slow", 4, {"seconds": 0.3}),
                ("timeout", 3, {"seconds": 4.0}),
                ("deaf", 2, {"seconds": 4.0}),
                ("html", 2, {}),
                ("cut", 2, {}),
                ("replay", 6, {}),
                ("twice", 6, {}),
            )
        ]
        as_of, kills = AS_OF, 0
        while kills < 20:
            if kills % 4 == 0:
                httpx.post(f"{admin}/faults", json=faults, trust_env=False).raise_for_status()
            if counted(engine)["planned"] < 300:  # of a busy machine more have left the hands before it is killed
                fill(engine, 400, "+39347", first=count + 1)
                count += 400
            kills += not run_and_kill(engine, carrier, as_of, chance.randrange(1, 130))
            as_of += timedelta(minutes=1)
        url = database.render_as_string(hide_password=False)
        for _ in range(20):
            as_of += timedelta(minutes=75)
            with warm.program(DISPATCH, url, carrier, as_of.isoformat()) as running:
                running.wait()
            # What a slow machine had not come to before the last kill is met in the first whole run.
            httpx.delete(f"{admin}/faults", trust_env=False).raise_for_status()
            if counted(engine) == {"sent": count}:
                break
        sent = httpx.get(f"{admin}/messages", trust_env=False, timeout=PATIENCE).json()
    assert counted(engine) == {"sent": count}
    assert len({message["to"] for message in sent}) == len(sent) == count


@pytest.mark.slow
def test_killed_over_smtp_nothing_goes_twice_and_every_doubt_is_listed(
    engine: sa.Engine, database: URL, tmp_path: Path
) -> None:
    count, chance = 0, random.Random(7)
    folder = tmp_path / "mail"
    with process("polydesk_dagster.demo.mailbox", "--port", "0", "--state", str(folder)) as (_, carrier):
        as_of = AS_OF
        for _ in range(20):
            waiting = counted(engine)
            lacking = max(0, 150 - waiting["planned"] - waiting["claimed"])  # each claims all that wait
            fill(engine, lacking, None, first=count + 1)
            count += lacking
            run_and_kill(engine, carrier, as_of, chance.randrange(1, 60))
            as_of += timedelta(minutes=1)
        url = database.render_as_string(hide_password=False)
        with warm.program(DISPATCH, url, carrier, (as_of + timedelta(hours=2)).isoformat()) as last:
            last.wait()
    arrived = Counter(str(message["To"]) for message in received(folder))
    states = counted(engine)
    assert set(arrived.values()) == {1}
    assert set(states) <= {"sent", "unknown"}
    assert states["sent"] + states["unknown"] == count
    assert states["unknown"] <= 20 * 3
    with engine.connect() as connection:
        doubtful = {doubt.address for doubt in health.unknown(connection)}
        sent = set(connection.scalars(sa.text("SELECT address FROM message WHERE state = 'sent'")))
    assert sent <= arrived.keys() <= sent | doubtful


def test_a_dispatcher_that_lives_keeps_its_claims(engine: sa.Engine) -> None:
    from polydesk_dagster.clinic.messages.ledger import Ledger

    fill(engine, 2, "+39347")
    with Ledger(engine) as alive:
        with alive.connection.begin():
            alive.connection.execute(
                sa.text("UPDATE message SET state = 'claimed', dispatcher = :id, on_wire_at = now()"), {"id": alive.id}
            )
        with Ledger(engine) as other:
            assert other.recover(AS_OF) == 0
    with Ledger(engine) as other:
        assert until(lambda: other.recover(AS_OF)) == 2
