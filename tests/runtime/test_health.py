"""Health sees what an operator must: a dead daemon, a stuck run, a service overdue, a storage that grows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster import definitions
from polydesk_dagster.catalog import SERVICES, Every, OnDemand
from polydesk_dagster.database.engine import dagster_url, plain_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.runtime import health, progress
from polydesk_dagster.runtime.following import Follower, followed
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.told.state import told_of_finding
from tests import world as chain
from tests.keeping.world import drop
from tests.runtime import written as world

NOW = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services start by themselves here without anybody's word."""
    monkeypatch.setattr(health, "starts_live", lambda _: True)


@pytest.fixture
def settings(database: URL, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=SecretStr(database.render_as_string(hide_password=False)))


@pytest.fixture
def written(settings: Settings) -> Iterator[tuple[DagsterInstance, sa.Engine]]:
    """Dagster's own storage of this installation, with daemons that beat."""
    with world.storage(settings) as (dagster, engine):
        for kind in health.DAEMONS:
            world.beats(dagster, kind, NOW)
        yield dagster, engine


@pytest.fixture
def dagster(written: tuple[DagsterInstance, sa.Engine]) -> DagsterInstance:
    return written[0]


@pytest.fixture
def storage(written: tuple[DagsterInstance, sa.Engine]) -> sa.Engine:
    return written[1]


def _ran(engine: sa.Engine, service: str, at: datetime, outcome: str = "ok", reasons: str = "[]") -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, outcome, counts, reasons, as_of, started_at, seconds)
                VALUES (:service, :outcome, '{}', CAST(:reasons AS jsonb), :at, :at, 1)"""),
            {"service": service, "outcome": outcome, "reasons": reasons, "at": at},
        )


def _bad(settings: Settings) -> list[tuple[str, str | None]]:
    return [(finding.code, finding.subject) for finding in health.examine(settings, NOW) if not finding.ok]


@pytest.mark.usefixtures("written")
def test_a_fresh_installation_is_well(settings: Settings) -> None:
    assert _bad(settings) == []


def test_a_quiet_installation_whose_schedules_only_look_is_well(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    for service in (s for s in SERVICES if isinstance(s.cadence, Every)):
        _ran(engine, service.key, NOW - timedelta(hours=20))
        world.ticked(dagster, service.sensor or service.key, NOW - timedelta(seconds=40), why="Niente è cambiato.")
    assert _bad(settings) == []


def test_a_dead_daemon_is_seen(settings: Settings, dagster: DagsterInstance, storage: sa.Engine) -> None:
    world.beats(dagster, "SENSOR", NOW - timedelta(minutes=4))
    with storage.begin() as connection:
        connection.execute(sa.text("DELETE FROM daemon_heartbeats WHERE daemon_type = 'SCHEDULER'"))
    assert _bad(settings) == [("daemon", "SCHEDULER"), ("daemon", "SENSOR")]


@pytest.mark.parametrize(
    ("status", "minutes", "stuck"),
    [("STARTED", 239, False), ("STARTED", 241, True), ("QUEUED", 31, True), ("SUCCESS", 9999, False)],
)
def test_a_stuck_run_is_seen(
    settings: Settings, dagster: DagsterInstance, storage: sa.Engine, status: str, minutes: int, stuck: bool
) -> None:
    run = world.ran(dagster, storage, "clear_caches", status, NOW - timedelta(minutes=minutes))
    assert _bad(settings) == ([("stuck_run", run)] if stuck else [])


def test_many_stuck_runs_are_one_finding_of_each_service(
    settings: Settings, dagster: DagsterInstance, storage: sa.Engine
) -> None:
    first = world.ran(dagster, storage, "clear_caches", "QUEUED", NOW - timedelta(minutes=90))
    for minutes in (40, 50):
        world.ran(dagster, storage, "clear_caches", "QUEUED", NOW - timedelta(minutes=minutes))
    other = world.ran(dagster, storage, "sync_events", "QUEUED", NOW - timedelta(minutes=45))
    assert _bad(settings) == [("stuck_run", first), ("stuck_run", other)]
    assert [each for each in _said(settings) if "blocca" in each] == [
        "3 esecuzioni di «Svuota tutta la cache» sono bloccate (in coda), la prima da 1 ora e 30 minuti.",
        "L'esecuzione di «Sincronizzazione eventi» è bloccata (in coda) da 45 minuti.",
    ]


def test_a_nightly_service_overdue_by_two_intervals_is_seen(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    _ran(engine, "generate_slots", NOW - timedelta(hours=47))
    assert _bad(settings) == []
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE service_run SET started_at = started_at - interval '2 hours'"))
    assert _bad(settings) == [("service_overdue", "generate_slots")]
    # its schedule still looks, but it is a service that must run once a day
    world.ticked(dagster, "generate_slots", NOW - timedelta(hours=1))
    assert _bad(settings) == []


@pytest.mark.usefixtures("written")
def test_a_service_that_never_started_is_seen_once_it_should_have(settings: Settings, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        chain.clinic(connection, "MI01")
        connection.execute(sa.text("UPDATE clinic SET created_at = :at"), {"at": NOW - timedelta(hours=1)})
    bad = {subject for code, subject in _bad(settings) if code == "service_overdue"}
    assert {"refresh_caches", "send_reminders"} <= bad
    assert "generate_slots" not in bad
    said = [each for each in _said(settings) if "Aggiornamento cache" in each]
    assert said == ["«Aggiornamento cache» non è mai partito, e doveva già farlo: è atteso da 1 ora."]


def test_a_frequent_service_is_on_time_while_its_schedule_looks(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    _ran(engine, "refresh_statistics", NOW - timedelta(hours=20))
    assert _bad(settings) == [("service_overdue", "refresh_statistics")]
    world.ticked(dagster, "refresh_statistics", NOW - timedelta(minutes=29))
    assert _bad(settings) == []
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE service_run SET started_at = started_at - interval '5 hours'"))
    assert _bad(settings) == [("service_overdue", "refresh_statistics")]


def test_every_service_on_a_cadence_is_on_time_by_what_dagster_looks_with(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    scheduled = [s.key for s in SERVICES if not isinstance(s.cadence, OnDemand)]
    for service in scheduled:
        _ran(engine, service, NOW - timedelta(hours=23))
    assert ("service_overdue", "sync_events") in _bad(settings)
    repository = definitions.defs.get_repository_def()
    names = [schedule.name for schedule in repository.schedule_defs]
    names += [sensor.name for sensor in repository.sensor_defs if not sensor.name.startswith("asked_")]
    for name in names:
        world.ticked(dagster, name, NOW - timedelta(minutes=1))
    assert _bad(settings) == []


def test_a_studiolab_without_news_for_days_is_no_fault(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    (sensor,) = (s for s in definitions.defs.get_repository_def().sensor_defs if s.name == "studiolab_events")
    assert sensor.job_name == "sync_events"
    _ran(engine, sensor.job_name, NOW - timedelta(days=3))
    assert _bad(settings) == [("service_overdue", "sync_events")]

    world.ticked(dagster, sensor.name, NOW - timedelta(minutes=1))
    assert _bad(settings) == []


def test_the_last_failure_of_a_service_is_seen_until_it_succeeds(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    _ran(engine, "generate_slots", NOW - timedelta(hours=2), "failed")
    assert _bad(settings) == [("service_failed", "generate_slots")]
    _ran(engine, "generate_slots", NOW - timedelta(hours=1))
    assert _bad(settings) == []


def test_a_service_that_failed_at_many_clinics_is_one_finding_that_names_the_first(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        for number in range(1, 8):
            chain.integration(connection, chain.clinic(connection, f"C{number:02}"), "http://127.0.0.1:9")
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, clinic_id, outcome, counts, reasons, as_of, started_at, seconds)
                SELECT 'sync_prices', id, CASE code WHEN 'C07' THEN 'refused' ELSE 'failed' END, '{}', '[]', :at, :at, 1
                FROM clinic"""),
            {"at": NOW - timedelta(hours=2)},
        )
    failed, refused = (each for each in _said(settings) if "ultima esecuzione" in each and "per C" in each)
    assert "per C01, C02, C03, C04, C05 e un'altra clinica (28/03/2026 11:00) è fallita." in failed
    assert "per C07 (28/03/2026 11:00) è stata rifiutata." in refused


def test_clinics_that_a_nightly_service_comes_to_no_more_are_seen_whatever_became_of_others(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        for number in range(1, 4):
            chain.integration(connection, chain.clinic(connection, f"C{number:02}"), "http://127.0.0.1:9")
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, clinic_id, outcome, counts, reasons, as_of, started_at, seconds)
                SELECT 'sync_prices', id, CASE code WHEN 'C01' THEN 'failed' ELSE 'ok' END, '{}', '[]', t.at, t.at, 1
                FROM clinic, LATERAL (SELECT CAST(:now AS timestamptz)
                                             - CASE code WHEN 'C02' THEN 3 ELSE 0 END * interval '1 day' AS at) t"""),
            {"now": NOW - timedelta(hours=2)},
        )
        connection.execute(sa.text("UPDATE integration SET updated_at = :at"), {"at": NOW - timedelta(days=9)})
        connection.execute(sa.text("UPDATE clinic SET created_at = :at"), {"at": NOW - timedelta(days=9)})
    bad = [each for each in _bad(settings) if each[1] == "sync_prices"]
    assert bad == [("service_failed", "sync_prices"), ("service_overdue", "sync_prices")]
    said = "«Sync prezzi e convenzioni» non arriva più a C02: nessuna esecuzione da 3 giorni e 2 ore."
    assert said in _said(settings)


def test_a_service_that_a_guard_stopped_in_part_is_seen(
    settings: Settings, dagster: DagsterInstance, engine: sa.Engine
) -> None:
    _ran(engine, "nightly_cleanup", NOW - timedelta(hours=3), "partial", '[{"code": "moved"}]')
    assert _bad(settings) == []
    _ran(engine, "nightly_cleanup", NOW - timedelta(hours=2), "partial", '[{"code": "moved"}, {"code": "guard"}]')
    assert _bad(settings) == [("service_failed", "nightly_cleanup")]
    _ran(engine, "nightly_cleanup", NOW - timedelta(hours=1))
    assert _bad(settings) == []


def test_a_database_that_does_not_answer_is_a_finding(settings: Settings) -> None:
    assert _bad(settings) == [("dagster_database", None)]


def test_a_large_storage_is_seen(settings: Settings, storage: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LARGEST_STORAGE", 1000)
    assert _bad(settings) == [("dagster_storage", None)]


def test_what_was_found_is_an_object_of_codes_values_and_words(
    settings: Settings, dagster: DagsterInstance, storage: sa.Engine
) -> None:
    def ask(language: str = "it") -> dict[str, Any]:
        now = datetime.now(UTC)
        return health.as_object(health.examine(settings, now), now, teller(language))

    for kind in health.DAEMONS:
        world.beats(dagster, kind, datetime.now(UTC))
    assert ask()["ok"] is True
    with storage.begin() as connection:
        connection.execute(sa.text("DELETE FROM daemon_heartbeats"))
    ill = ask()
    assert ill["ok"] is False
    bad = [finding for finding in ill["findings"] if not finding["ok"]]
    assert {finding["subject"] for finding in bad} == set(health.DAEMONS)
    assert bad[0] == {
        "code": "daemon",
        "ok": False,
        "warning": False,
        "subject": "SCHEDULER",
        "how": "never",
        "values": {"daemon": {"domain": "daemon", "term": "SCHEDULER"}},
        "message": "Il processo per gli orari non è mai partito: «polydesk up».",
    }
    said = [finding["message"] for finding in ask("en")["findings"] if not finding["ok"]]
    assert said[0] == "The process for the schedules never started: “polydesk up”."


def _said(settings: Settings, language: str = "it") -> list[str]:
    return [told_of_finding(teller(language), each) for each in health.examine(settings, NOW) if not each.ok]


def test_what_is_wrong_is_told_in_the_zone_and_the_language_of_who_reads(
    settings: Settings, dagster: DagsterInstance, storage: sa.Engine, engine: sa.Engine
) -> None:
    world.beats(dagster, "SENSOR", NOW - timedelta(minutes=69))
    world.ran(dagster, storage, "clear_caches", "QUEUED", NOW - timedelta(minutes=31))
    _ran(engine, "nightly_cleanup", NOW - timedelta(hours=2), "failed")
    _ran(engine, "generate_slots", NOW - timedelta(days=3, hours=1))
    assert _said(settings) == [
        "Fermo il processo per i sensori; ultima attività: 1 ora e 9 minuti fa (28/03/2026 11:51).",
        "L'esecuzione di «Svuota tutta la cache» è bloccata (in coda) da 31 minuti.",
        "«Generazione automatica schedule agende» doveva già essere ripartito; ultima attività: 3 giorni e 1 ora fa.",
        "«Pulizia notturna dati»: l'ultima esecuzione per tutta la catena (28/03/2026 11:00) è fallita.",
    ]
    assert "The process for the sensors stands still; last active 1 hour and 9 minutes ago (28 Mar 2026 11:51)." in (
        _said(settings, "en")
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.usefixtures("written")
def test_every_finding_has_its_sentence(settings: Settings, language: str) -> None:
    said = [told_of_finding(teller(language), each) for each in health.examine(settings, NOW)]
    assert len(said) > len(health.DAEMONS)
    assert not [each for each in said if each.startswith("finding.")]


def test_progress_is_told_to_the_log_and_to_who_watches(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[tuple[int, int, str]] = []
    log = logging.getLogger("progress")
    with caplog.at_level("INFO", "progress"), followed(Follower(lambda *what: shown.append(what))):
        report = progress.reporter(log)
        for done in range(1, 1001):
            report(done, 1000, "progress.clinics")
    assert [record.message for record in caplog.records] == ["Cliniche: 1/1000", "Cliniche: 1000/1000"]
    assert shown[0] == (1, 1000, "progress.clinics")
    assert shown[-1] == (1000, 1000, "progress.clinics")
    assert len(shown) < 20
    with caplog.at_level("INFO", "progress"):
        progress.reporter(log)(1, 1, "nessuno guarda")
    assert len(shown) < 20


def test_before_the_first_start_dagsters_storage_is_empty_and_ours_answers(engine: sa.Engine, tmp_path: Path) -> None:
    storage = dagster_url(Settings(home=tmp_path, database_url=plain_url(engine.url)))
    create_database(storage.set(drivername="postgresql+psycopg"))
    try:
        bad = _said(Settings(home=tmp_path, database_url=plain_url(engine.url)))
    finally:
        drop(storage.set(drivername="postgresql+psycopg"))
    assert [each for each in bad if "Dagster" in each]
    assert not [each for each in bad if "non risponde" in each]
