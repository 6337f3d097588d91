"""The owner hears of failed runs: once, grouped, with the reason, not of those that are tried again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.demo import mailbox
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime import alerts
from polydesk_dagster.sensors import run_failure
from polydesk_dagster.sensors.run_failure import tell_operator
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from tests.runtime.copied import copied, ended
from tests.runtime.jobs import tiny

NOW = datetime(2026, 3, 28, 3, 0, tzinfo=UTC)


def _failure(
    minutes: int, service: str = "sync_prices", clinic: str | None = None, reason: Reason | None = None
) -> alerts.Failure:
    return alerts.Failure(f"run-{minutes}", service, clinic, NOW + timedelta(minutes=minutes), reason)


class TestPause:
    def test_the_pause_doubles_while_runs_keep_failing_and_is_forgotten_after_a_calm(self) -> None:
        state, now, pauses = alerts.State.load(None, NOW), NOW, []
        for _ in range(6):
            state = state.after_mail([_failure(0)], now)
            quiet_until = state.quiet_until()
            assert quiet_until is not None
            pauses.append(quiet_until - now)
            now = quiet_until
        assert [pause.total_seconds() / 3600 for pause in pauses] == [0.5, 1, 2, 4, 6, 6]
        calm = state.after_mail([_failure(0)], now + timedelta(hours=13)).quiet_until()
        assert calm == now + timedelta(hours=13.5)

    def test_the_cursor_survives_the_trip(self) -> None:
        state = alerts.State.load(None, NOW).after_mail([_failure(3)], NOW)
        assert alerts.State.load(state.dump(), NOW + timedelta(days=1)) == state
        assert state.since() == NOW + timedelta(minutes=3)


class TestTurns:
    def test_of_more_failures_than_one_message_takes_none_is_lost(self) -> None:
        """Each list is told oldest first, and nothing that is younger than what the other still holds back."""
        failed = [_failure(minute) for minute in range(0, 40, 2)]
        stopped = [_failure(minute) for minute in range(1, 60, 3)]
        state, told, most = alerts.State.load(None, NOW - timedelta(minutes=1)), [], 5
        for _ in range(40):
            left = [[each for each in part if each.at > state.since()][:most] for part in (failed, stopped)]
            if turn := alerts.in_turn(*left, most):
                told += turn
                state = state.after_mail(turn, NOW)
        assert sorted(each.run_id for each in told) == sorted(each.run_id for each in (*failed, *stopped))


class TestText:
    def test_failures_are_grouped_by_service_with_the_last_reason(self) -> None:
        mail = alerts.compose(
            [
                _failure(0, clinic="MI01", reason=Reason("unknown_plan", {"plan": 1})),
                _failure(5, clinic="RM02", reason=Reason("unknown_plan", {"plan": 2})),
                _failure(7, "import_municipalities"),
            ],
            "http://polydesk.local:3000",
        )
        assert mail.subject.startswith("Polydesk: 3 esecuzioni fallite (Importa comuni, Sync prezzi e convenzioni)")
        assert "2 volte dal 28/03/2026 04:00 al 28/03/2026 04:05, cliniche MI01 e RM02" in mail.body
        assert "Non esiste il piano 2." in mail.body
        assert "http://polydesk.local:3000/dagster/runs/run-5" in mail.body

    def test_it_speaks_the_language_of_who_is_told(self) -> None:
        mail = alerts.compose([_failure(0, clinic="MI01")], "http://x", teller("en"))
        assert mail.subject.startswith("Polydesk: 1 failed run (")
        assert "28 Mar 2026 04:00, clinic MI01\n  It ended without an outcome: the run's log says why." in mail.body

    def test_the_same_text_has_the_same_key(self) -> None:
        one, two = (alerts.compose([_failure(0)], "http://x") for _ in range(2))
        assert one == two
        assert alerts.compose([_failure(1)], "http://x").key != one.key


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "mail"
    with mailbox.in_thread(folder) as url:
        yield url, folder


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def configured(mail: tuple[str, Path], database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose operator has a mailbox; returns the folder of what was sent."""
    url, folder = mail
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("POLYDESK_SMTP_URL", url)
    monkeypatch.setenv("POLYDESK_MAIL_FROM", "polydesk@example.it")
    monkeypatch.setenv("POLYDESK_OPERATOR_MAIL", "titolare@example.it")
    return folder


def _failed(instance: dg.DagsterInstance, **tags: str) -> str:
    run = instance.create_run_for_job(tiny, tags={"polydesk/service": "sync_prices", **tags})
    instance.report_run_failed(run, "prova")
    return run.run_id


def _tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str, str]:
    """What the tick says, and the cursor after it."""
    with dg.build_sensor_context(instance, cursor=cursor, resources={"polydesk": PolydeskResource()}) as context:
        tick = tell_operator.evaluate_tick(context)
    assert tick.cursor is not None
    return str(tick.skip_message), tick.cursor


LONG_AGO = json.dumps({"told_until": "2020-01-01T00:00:00+00:00"})


def test_the_operator_is_told_once_with_the_services_own_reason(
    instance: dg.DagsterInstance, configured: Path, engine: sa.Engine
) -> None:
    run_id = _failed(instance, **{"dagster/partition": "MI01"})
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, dagster_run, outcome, counts, reasons, as_of, started_at, seconds)
                VALUES ('sync_prices', :run, 'failed', '{}', CAST(:reasons AS jsonb), now(), now(), 1)"""),
            {"run": run_id, "reasons": json.dumps([{"code": "x", "message": "studiolab non risponde"}])},
        )
    said, cursor = _tick(instance, LONG_AGO)
    assert "Avvisato" in said
    [message] = mailbox.received(configured)
    assert message["To"] == "titolare@example.it"
    body = message.get_body(("plain",)).get_content()
    assert "Sync prezzi e convenzioni" in body
    assert "MI01" in body
    assert "studiolab non risponde" in body
    assert run_id in body
    _tick(instance, cursor)
    assert len(mailbox.received(configured)) == 1


def test_the_operator_is_told_of_what_a_guard_stopped_in_part(
    instance: dg.DagsterInstance, configured: Path, engine: sa.Engine
) -> None:
    stop = {"code": "guard", "message": "fermo da un controllo: forse il gateway SMS", "clinic": "BO01"}
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, dagster_run, preview, outcome, counts, reasons, as_of, started_at,
                                         seconds)
                SELECT 'delete_unverified_appointments', 'run-' || n, n = 3, CASE n WHEN 4 THEN 'ok' ELSE 'partial' END,
                       '{}', CASE n WHEN 1 THEN CAST(:stop AS jsonb) WHEN 2 THEN '[{"code": "moved"}]'
                                    ELSE CAST(:stop AS jsonb) END, now(), now(), 1
                FROM generate_series(1, 4) n"""),
            {"stop": json.dumps([{"code": "moved", "message": "cambiato"}, stop])},
        )
    said, cursor = _tick(instance, LONG_AGO)
    assert "Avvisato l'operatore di un'esecuzione fallita" in said
    body = mailbox.received(configured)[0].get_body(("plain",)).get_content()
    assert all(part in body for part in ("BO01", "forse il gateway SMS", "/runs/run-1"))
    said, _ = _tick(instance, cursor)
    assert "Nessuna" in said


def _told_of(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, ticks: int) -> list[str]:
    """The runs that so many ticks tell of, no pause between them."""
    told: list[str] = []
    compose = alerts.compose

    def noted(failures: Sequence[alerts.Failure], web: str) -> alerts.Mail:
        told.extend(failure.run_id for failure in failures)
        return compose(failures, web)

    monkeypatch.setattr(alerts, "compose", noted)
    cursor = LONG_AGO
    for _ in range(ticks):
        _, cursor = _tick(instance, cursor)
        cursor = json.dumps({**json.loads(cursor), "mailed_at": None})
    return told


def test_of_more_failures_than_a_tick_reads_each_is_told_once(
    instance: dg.DagsterInstance, configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _failed(instance)
    failed = [first, *copied(instance, first, 699)]
    assert _told_of(instance, monkeypatch, 3) == failed
    assert len(mailbox.received(configured)) == 2


def test_of_many_that_fail_in_one_moment_none_is_left_out(
    instance: dg.DagsterInstance, configured: Path, monkeypatch: pytest.MonkeyPatch, engine: sa.Engine
) -> None:
    """Runs of Dagster's, and services that a guard stopped: a message ends with a whole moment of either."""
    monkeypatch.setattr(run_failure, "_MOST_RUNS", 3)
    first = _failed(instance)
    failed = [first, *copied(instance, first, 9)]
    moment = {2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2}
    ended(instance, {run: NOW + timedelta(seconds=moment.get(n, n)) for n, run in enumerate(failed)})
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, dagster_run, outcome, counts, reasons, as_of, started_at, seconds)
                SELECT 'send_reminders', 'stopped-' || n, 'partial', '{}', '[{"code": "guard", "values": {}}]', :at,
                       :at, CASE n WHEN 0 THEN 0 ELSE 9 END
                FROM generate_series(0, 7) n"""),
            {"at": NOW},
        )
    told = _told_of(instance, monkeypatch, 9)
    assert sorted(told) == sorted([*failed, *(f"stopped-{n}" for n in range(8))])


def test_a_failure_behind_more_that_are_tried_again_than_a_tick_reads_is_told(
    instance: dg.DagsterInstance, configured: Path, monkeypatch: pytest.MonkeyPatch, engine: sa.Engine
) -> None:
    copied(instance, _failed(instance, **{"dagster/will_retry": "true"}), 600)
    failed = _failed(instance)
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, dagster_run, outcome, counts, reasons, as_of, started_at, seconds)
                VALUES ('send_reminders', 'stopped', 'partial', '{}', '[{"code": "guard", "values": {}}]', now(), now(),
                        60)""")
        )
    assert _told_of(instance, monkeypatch, 2) == [failed, "stopped"]


def test_what_fails_soon_after_waits_for_the_next_message(instance: dg.DagsterInstance, configured: Path) -> None:
    _failed(instance)
    _, cursor = _tick(instance, LONG_AGO)
    _failed(instance)
    said, after = _tick(instance, cursor)
    assert "nel prossimo avviso" in said
    assert after == cursor
    later = {**json.loads(cursor), "mailed_at": "2020-01-01T00:00:00+00:00"}
    _tick(instance, json.dumps(later))
    assert len(mailbox.received(configured)) == 2


def test_a_run_that_is_tried_again_is_not_told(instance: dg.DagsterInstance, configured: Path) -> None:
    _failed(instance, **{"dagster/will_retry": "true"})
    said, _ = _tick(instance, LONG_AGO)
    assert "Nessuna" in said
    assert not mailbox.received(configured)


def test_a_relay_that_refuses_leaves_the_cursor_for_the_next_tick(
    instance: dg.DagsterInstance, configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failed(instance)
    monkeypatch.setenv("POLYDESK_OPERATOR_MAIL", "rifiutata@example.it")
    with pytest.raises(Exception, match="non è partito"):
        _tick(instance, LONG_AGO)
    monkeypatch.setenv("POLYDESK_OPERATOR_MAIL", "titolare@example.it")
    said, _ = _tick(instance, LONG_AGO)
    assert "Avvisato" in said
    assert len(mailbox.received(configured)) == 1


def test_without_the_clinics_database_the_message_goes_all_the_same(
    instance: dg.DagsterInstance, configured: Path, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE service_run CASCADE"))
    _failed(instance)
    _tick(instance, LONG_AGO)
    assert "nel log" in mailbox.received(configured)[0].get_body(("plain",)).get_content()


def test_nobody_to_tell_is_said(
    instance: dg.DagsterInstance, configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYDESK_OPERATOR_MAIL")
    _failed(instance)
    said, _ = _tick(instance, None)
    assert "POLYDESK_OPERATOR_MAIL" in said
