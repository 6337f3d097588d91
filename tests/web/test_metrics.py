"""``/metrics``: who may read it, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from polydesk_dagster.runtime.state import activity
from tests import world
from tests.keeping.world import of_dagster
from tests.web.world import Served, served

TOKEN = "sedici lettere almeno"
Figures = dict[tuple[str, ...], float]


@pytest.fixture
def door(engine: sa.Engine, tmp_path: Path) -> Iterator[Served]:
    with of_dagster(engine.url), served(engine, tmp_path) as door:
        yield door


def figures(text: str) -> Figures:
    """By name and values of labels, in the order of the labels' names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_it_answers_the_questions_of_whoever_is_on_call(door: Served, engine: sa.Engine) -> None:
    now = datetime.now(UTC)
    with engine.begin() as connection:
        clinic = world.clinic(connection)
        code = connection.scalar(sa.text("SELECT code FROM clinic WHERE id = :id"), {"id": clinic})
        for outcome, ago in (("ok", 3), ("failed", 2), ("nothing_to_do", 30)):
            _ran(connection, "send_reminders", clinic, outcome, now - timedelta(hours=ago))
        _ran(connection, "nightly_cleanup", None, "ok", now - timedelta(days=2))
        connection.execute(sa.text(UNREADABLE), {"clinic": clinic, "at": now - timedelta(hours=5)})
    found = figures(door.client().get("/metrics").text)
    good = "polydesk_service_last_good_timestamp_seconds"
    assert found[good, code, "send_reminders"] == pytest.approx((now - timedelta(hours=3)).timestamp() + 5, abs=1)
    assert found[good, "chain", "nightly_cleanup"] == pytest.approx((now - timedelta(days=2)).timestamp() + 5, abs=1)
    assert found["polydesk_waiting", code, "quarantine"] == 1
    oldest = found["polydesk_waiting_oldest_timestamp_seconds", code, "quarantine"]
    assert oldest == pytest.approx((now - timedelta(hours=5)).timestamp(), abs=1)
    assert found["polydesk_runs", "queued"] == 0
    assert found["polydesk_run_start_lag_seconds",] == 0
    assert [found["polydesk_database_up", name] for name in ("polydesk", "dagster")] == [1, 1]
    assert found["polydesk_database_bytes", "polydesk"] > 1e6
    assert found["polydesk_disk_free_bytes",] > 0


def test_a_clinic_that_is_not_read_is_told_unless_somebody_keeps_it_waiting(door: Served, engine: sa.Engine) -> None:
    now = datetime.now(UTC)
    since = now - timedelta(minutes=20)
    with engine.begin() as connection:
        for code in ("C01", "C02", "C03"):
            world.integration(connection, world.clinic(connection, code), "http://127.0.0.1:9/api/v1")
        connection.execute(sa.text(NOT_READ), {"codes": ["C02", "C03"], "since": since})
        until, why = now + timedelta(days=1), "trasloco della sede"
        activity.go_live(connection, ["sync_events"], actor="rosa", reason=why, as_of=now - timedelta(days=1))
        activity.pause(connection, "sync_events", clinic="C03", until=until, actor="rosa", reason=why, as_of=now)
    figure = "polydesk_clinic_unread_since_timestamp_seconds"
    told = {key: value for key, value in figures(door.client().get("/metrics").text).items() if key[0] == figure}
    assert told == {(figure, "C02"): pytest.approx(since.timestamp(), abs=1)}


NOT_READ = """
    INSERT INTO event_cursor (clinic_id, read_at, failures, down_since)
    SELECT id, :since, 4, :since FROM clinic WHERE code = ANY(:codes)"""
UNREADABLE = """
    INSERT INTO quarantine (service, clinic_id, kind, record_key, code, message, first_seen_at, last_seen_at)
    VALUES ('sync_prices', :clinic, 'price', 'P1', 'not_number', '-', :at, :at)"""


def _ran(connection: sa.Connection, service: str, clinic: int | None, outcome: str, at: datetime) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO service_run (service, clinic_id, outcome, as_of, started_at, seconds, counts, reasons)
            VALUES (:service, :clinic, :outcome, :at, :at, 5, '{}', '[]')"""),
        {"service": service, "clinic": clinic, "outcome": outcome, "at": at},
    )


def test_a_database_that_does_not_answer_is_told_and_the_rest_too(engine: sa.Engine, tmp_path: Path) -> None:
    with served(engine, tmp_path) as door:  # Dagster's was never made
        found = figures(door.client().get("/metrics").text)
    assert [found["polydesk_database_up", name] for name in ("polydesk", "dagster")] == [1, 0]
    assert ("polydesk_runs", "queued") not in found


def test_without_a_token_only_this_machine_reads_and_no_proxy(door: Served) -> None:
    assert door.client().get("/metrics").status_code == 200
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert door.client(**{header: "127.0.0.1"}).get("/metrics").status_code == 401


def test_with_a_token_only_who_brings_it_reads(engine: sa.Engine, tmp_path: Path) -> None:
    with of_dagster(engine.url), served(engine, tmp_path, metrics_token=TOKEN) as door:

        def asked(**headers: str) -> httpx.Response:
            return door.client(**headers).get("/metrics")

        assert asked(Authorization=f"Bearer {TOKEN}").status_code == 200
        for wrong in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer"},
        ):
            answer = asked(**wrong)
            assert answer.status_code == 401
            assert "polydesk_" not in answer.text
