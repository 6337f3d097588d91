"""The one truth about services: what may start by itself, what ran last for whom, what waits for a person."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._core.scheduler.instigation import TickStatus
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import BY_KEY, SERVICES, OnDemand, next_run
from polydesk_dagster.changes import audit
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.runtime.state.activity import SwitchError
from polydesk_dagster.runtime.state.model import Condition, Mode, Queue, ServiceState, full_queue
from polydesk_dagster.runtime.state.services import service_state, service_states
from polydesk_dagster.settings import Settings
from tests import world
from tests.runtime import written

NOW = datetime(2026, 3, 27, 12, 0, tzinfo=UTC)
WHY = "messaggi provati con la direzione"


def _state(connection: sa.Connection, key: str, at: datetime = NOW, *, live: bool = True) -> ServiceState:
    return service_state(connection, None, key, at, live=live)


def _ran(
    connection: sa.Connection,
    service: str,
    at: datetime,
    outcome: str = "ok",
    clinic: str | None = None,
    reasons: str = "[]",
    preview: bool = False,
) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO service_run (service, clinic_id, preview, outcome, counts, reasons, as_of, started_at, seconds)
            VALUES (:service, (SELECT id FROM clinic WHERE code = :clinic), :preview, :outcome, '{"created": 1}',
                    CAST(:reasons AS jsonb), :at, :at, 1)"""),
        {
            "service": service,
            "clinic": clinic,
            "preview": preview,
            "outcome": outcome,
            "reasons": reasons,
            "at": at,
        },
    )


@pytest.fixture
def clinics(connection: sa.Connection) -> None:
    """MI01 and TO01 with a studiolab, RM01 without, GE01 closed."""
    for code in ("MI01", "TO01", "RM01", "GE01"):
        clinic = world.clinic(connection, code, active=code != "GE01")
        world.integration(connection, clinic, "http://studiolab", active=code != "RM01")


class TestActivity:
    def test_a_real_installation_waits_and_a_played_one_works(self, connection: sa.Connection) -> None:
        assert _state(connection, "send_reminders", live=False).activity.mode is Mode.NOT_LIVE
        assert _state(connection, "send_reminders", live=True).activity.mode is Mode.ON
        assert _state(connection, "clear_caches", live=False).activity.mode is Mode.ON_DEMAND

    def test_who_lets_a_service_go_live_is_known_and_audited(self, connection: sa.Connection) -> None:
        let = activity.go_live(connection, ["send_reminders"], actor="desk:anna", reason=WHY, as_of=NOW)
        assert let == ("send_reminders",)
        state = _state(connection, "send_reminders", live=False)
        assert (state.activity.mode, state.activity.actor, state.activity.reason) == (Mode.ON, "desk:anna", WHY)
        assert state.next_run == next_run(BY_KEY["send_reminders"], NOW)
        assert _state(connection, "refresh_caches", live=False).next_run is None
        again = activity.go_live(connection, ["send_reminders"], actor="desk:ugo", reason=WHY, as_of=NOW)
        assert again == ()
        lines = connection.execute(sa.text("SELECT actor, action, service, detail ->> 'reason' FROM audit")).all()
        assert [tuple(line) for line in lines] == [("desk:anna", "go_live", "send_reminders", WHY)]
        assert audit.verify(connection) == []

    def test_all_at_once(self, connection: sa.Connection) -> None:
        let = activity.go_live(connection, activity.STANDING, actor="desk:anna", reason=WHY, as_of=NOW)
        assert let == tuple(s.key for s in SERVICES if not isinstance(s.cadence, OnDemand))
        assert all(
            state.activity.works for state in service_states(connection, None, NOW, live=False) if state.next_run
        )

    def test_a_pause_ends_by_itself_and_its_service_is_not_late_then(self, connection: sa.Connection) -> None:
        until = NOW + timedelta(hours=3)
        _ran(connection, "refresh_caches", NOW - timedelta(minutes=5))
        activity.pause(connection, "refresh_caches", until=until, actor="desk:anna", reason=WHY, as_of=NOW)
        paused = _state(connection, "refresh_caches")
        assert (paused.condition, paused.activity.mode) == (Condition.STANDING, Mode.PAUSED)
        assert (paused.activity.until, paused.activity.actor, paused.activity.reason) == (until, "desk:anna", WHY)
        assert paused.next_run == next_run(BY_KEY["refresh_caches"], until)
        after = _state(connection, "refresh_caches", until + timedelta(minutes=5))
        assert (after.condition, after.activity.mode, after.activity.since) == (Condition.WELL, Mode.ON, until)
        late = _state(connection, "refresh_caches", until + timedelta(minutes=25))
        assert late.condition is Condition.OVERDUE

    def test_what_never_started_is_late_once_the_installation_is_older_than_its_cadence(
        self, connection: sa.Connection
    ) -> None:
        assert _state(connection, "refresh_caches").condition is Condition.NEVER_RAN, "there is no clinic yet"
        world.integration(connection, world.clinic(connection, "MI01"), "http://studiolab")
        for minutes, condition in ((19, Condition.NEVER_RAN), (21, Condition.OVERDUE)):
            connection.execute(sa.text("UPDATE clinic SET created_at = :at"), {"at": NOW - timedelta(minutes=minutes)})
            assert _state(connection, "refresh_caches").condition is condition
            assert _state(connection, "generate_slots").condition is Condition.NEVER_RAN
        assert _state(connection, "refresh_caches", live=False).condition is Condition.STANDING
        connection.execute(sa.text("UPDATE clinic SET created_at = :at"), {"at": NOW - timedelta(days=3)})
        assert _state(connection, "generate_slots").condition is Condition.OVERDUE

    def test_a_studiolab_is_expected_to_be_read_since_it_was_switched_on(self, connection: sa.Connection) -> None:
        world.integration(connection, world.clinic(connection, "MI01"), "http://studiolab")
        connection.execute(sa.text("UPDATE clinic SET created_at = :at"), {"at": NOW - timedelta(days=30)})
        for days, condition in ((1, Condition.NEVER_RAN), (3, Condition.OVERDUE)):
            connection.execute(sa.text("UPDATE integration SET updated_at = :at"), {"at": NOW - timedelta(days=days)})
            assert _state(connection, "import_patients").condition is condition
        connection.execute(sa.text("UPDATE integration SET active = false"))
        assert _state(connection, "import_patients").condition is Condition.NEVER_RAN

    @pytest.mark.usefixtures("clinics")
    def test_a_clinic_that_a_nightly_service_comes_to_no_more_is_named_though_it_comes_to_others(
        self, connection: sa.Connection
    ) -> None:
        connection.execute(sa.text("UPDATE clinic SET created_at = :at"), {"at": NOW - timedelta(days=30)})
        connection.execute(sa.text("UPDATE integration SET updated_at = :at"), {"at": NOW - timedelta(days=20)})
        _ran(connection, "sync_prices", NOW - timedelta(hours=9), clinic="MI01")
        never = _state(connection, "sync_prices")
        assert (never.condition, never.behind) == (Condition.OVERDUE, {"TO01": NOW - timedelta(days=20)})
        for hours, condition in ((49, Condition.OVERDUE), (47, Condition.WELL)):
            _ran(connection, "sync_prices", NOW - timedelta(hours=hours), clinic="TO01")
            assert _state(connection, "sync_prices").condition is condition
        late = NOW + timedelta(hours=36)
        assert _state(connection, "sync_prices", late).behind == {"TO01": NOW - timedelta(hours=47)}
        assert _state(connection, "sync_prices", NOW + timedelta(hours=40)).behind == {}, "nobody's: all of it is late"
        _ran(connection, "sync_events", NOW - timedelta(hours=9), clinic="MI01")
        assert _state(connection, "sync_events", late).behind == {}, "it runs where there is news"
        activity.pause(connection, "sync_prices", until=NOW + timedelta(hours=30), actor="manager:ugo", reason=WHY,
                       as_of=NOW, clinic="TO01")  # fmt: skip
        assert _state(connection, "sync_prices", NOW + timedelta(hours=29)).behind == {}
        assert _state(connection, "sync_prices", late).behind == {}, "its next night is still to come"

    def test_a_pause_is_ended_by_hand_once(self, connection: sa.Connection) -> None:
        until = NOW + timedelta(hours=3)
        activity.pause(connection, "refresh_caches", until=until, actor="desk:anna", reason=WHY, as_of=NOW)
        later = NOW + timedelta(hours=1)
        assert activity.resume(connection, "refresh_caches", actor="desk:ugo", reason=WHY, as_of=later)
        assert not activity.resume(connection, "refresh_caches", actor="desk:ugo", reason=WHY, as_of=later)
        assert _state(connection, "refresh_caches", later).activity.mode is Mode.ON
        said = [(line.action, line.actor) for line in activity.history(connection, "refresh_caches")]
        assert said == [("resume", "desk:ugo"), ("pause", "desk:anna")]

    def test_going_live_leaves_a_pause_as_it_is(self, connection: sa.Connection) -> None:
        until = NOW + timedelta(hours=3)
        activity.pause(connection, "send_reminders", until=until, actor="desk:anna", reason=WHY, as_of=NOW)
        assert _state(connection, "send_reminders", live=False).activity.mode is Mode.NOT_LIVE
        activity.go_live(connection, activity.STANDING, actor="desk:ugo", reason=WHY, as_of=NOW)
        state = _state(connection, "send_reminders", live=False)
        assert (state.activity.mode, state.activity.actor) == (Mode.PAUSED, "desk:anna")

    @pytest.mark.parametrize(
        ("service", "reason", "hours", "code"),
        [
            ("nothing", WHY, 1, "switch_unknown"),
            ("clear_caches", WHY, 1, "switch_on_demand"),
            ("send_reminders", "  boh  ", 1, "switch_no_reason"),
            ("send_reminders", WHY, 0, "switch_past"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, connection: sa.Connection, service: str, reason: str, hours: int, code: str
    ) -> None:
        until = NOW + timedelta(hours=hours)
        with pytest.raises(SwitchError) as refused:
            activity.pause(connection, service, until=until, actor="desk:anna", reason=reason, as_of=NOW)
        assert refused.value.reason.code == code
        assert connection.scalar(sa.text("SELECT count(*) FROM service_switch")) == 0

    def test_what_was_said_is_never_unsaid(self, connection: sa.Connection) -> None:
        activity.go_live(connection, ["send_reminders"], actor="desk:anna", reason=WHY, as_of=NOW)
        with pytest.raises(sa.exc.ProgrammingError, match="append-only"):
            connection.execute(sa.text("DELETE FROM service_switch"))

    @pytest.mark.parametrize(
        ("given", "played", "live"),
        [
            ({}, "", True),
            ({"database_url": SecretStr("postgresql://u@h/d")}, "", False),
            ({"smtp_url": SecretStr("smtp://h"), "mail_from": "a@b.example"}, "", False),
            ({"smtp_url": SecretStr("smtp://h"), "mail_from": "a@b.example"}, "central,mail", True),
        ],
    )
    def test_only_what_is_played_starts_live(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], played: str, live: bool
    ) -> None:
        monkeypatch.setenv(activity.PLAYED, played)
        assert activity.starts_live(Settings(home=tmp_path, **given)) is live  # type: ignore[arg-type]


@pytest.mark.usefixtures("clinics")
class TestLastRuns:
    def test_one_failure_of_the_chain_is_void_once_a_clinic_has_run(self, connection: sa.Connection) -> None:
        _ran(connection, "sync_prices", NOW - timedelta(hours=3), "failed")
        assert _state(connection, "sync_prices").condition is Condition.FAILED
        _ran(connection, "sync_prices", NOW - timedelta(hours=1), "ok", "MI01")
        state = _state(connection, "sync_prices")
        assert [(run.clinic, run.outcome) for run in state.runs] == [("MI01", "ok")]
        assert state.condition is Condition.WELL

    def test_the_worst_current_clinic_comes_first(self, connection: sa.Connection) -> None:
        for clinic, outcome in (("MI01", "ok"), ("TO01", "failed"), ("RM01", "refused"), ("GE01", "failed")):
            _ran(connection, "import_patients", NOW - timedelta(hours=2), outcome, clinic)
        state = _state(connection, "import_patients")
        assert [(run.clinic, run.outcome) for run in state.runs] == [("TO01", "failed"), ("MI01", "ok")]
        assert state.last is not None
        assert (state.last.clinic, dict(state.last.counts)) == ("TO01", {"created": 1})

    def test_a_run_of_the_whole_chain_makes_a_clinics_own_void(self, connection: sa.Connection) -> None:
        _ran(connection, "generate_slots", NOW - timedelta(hours=2), "failed", "MI01")
        _ran(connection, "generate_slots", NOW - timedelta(hours=1), "ok")
        assert [(run.clinic, run.outcome) for run in _state(connection, "generate_slots").runs] == [(None, "ok")]
        _ran(connection, "generate_slots", NOW - timedelta(minutes=30), "failed", "TO01")
        assert [(run.clinic) for run in _state(connection, "generate_slots").runs] == ["TO01", None]

    def test_a_preview_and_a_second_press_are_no_runs(self, connection: sa.Connection) -> None:
        _ran(connection, "nightly_cleanup", NOW - timedelta(hours=3), "failed")
        _ran(connection, "nightly_cleanup", NOW - timedelta(hours=2), "ok", preview=True)
        _ran(
            connection, "nightly_cleanup", NOW - timedelta(hours=1), "skipped", reasons='[{"code": "already_running"}]'
        )
        assert _state(connection, "nightly_cleanup").condition is Condition.FAILED
        _ran(connection, "preview_prices", NOW, "ok", "MI01", preview=True)
        assert _state(connection, "preview_prices").condition is Condition.WELL

    def test_a_guard_that_stopped_a_part_wants_a_look(self, connection: sa.Connection) -> None:
        _ran(connection, "nightly_cleanup", NOW, "partial", reasons='[{"code": "moved"}]')
        assert _state(connection, "nightly_cleanup").condition is Condition.WELL
        _ran(connection, "nightly_cleanup", NOW, "partial", reasons='[{"code": "moved"}, {"code": "guard"}]')
        state = _state(connection, "nightly_cleanup")
        assert state.condition is Condition.FAILED
        assert state.runs[0].stopped

    def test_what_waits_for_a_person_is_counted_by_clinic(self, connection: sa.Connection) -> None:
        connection.execute(
            sa.text("""
                INSERT INTO patient_review (clinic_id, external_id, cause, record, found_at)
                SELECT id, n::text, 'twin', '{}', CAST(:at AS timestamptz) + n * interval '1 hour'
                FROM clinic, generate_series(1, 3) n WHERE code = 'MI01'"""),
            {"at": NOW},
        )
        (waiting,) = _state(connection, "import_patients").waiting
        assert (waiting.code, waiting.clinic, waiting.count) == ("review", "MI01", 3)
        assert waiting.since == NOW + timedelta(hours=1)


class TestDagster:
    @pytest.fixture
    def settings(self, database: URL, tmp_path: Path) -> Settings:
        return Settings(home=tmp_path, database_url=SecretStr(database.render_as_string(hide_password=False)))

    @pytest.fixture
    def dagster(self, settings: Settings) -> Iterator[tuple[DagsterInstance, sa.Engine]]:
        with written.storage(settings) as opened:
            yield opened

    def test_looks_and_runs_under_way_are_dagsters(
        self, connection: sa.Connection, dagster: tuple[DagsterInstance, sa.Engine]
    ) -> None:
        instance, storage = dagster
        _ran(connection, "refresh_caches", NOW - timedelta(hours=5))
        _ran(connection, "sync_events", NOW - timedelta(days=3))
        run = written.ran(instance, storage, "clear_caches", "STARTED", NOW - timedelta(minutes=1))
        written.ticked(instance, "refresh_caches", NOW - timedelta(minutes=10), why="Niente è cambiato.")
        written.ticked(instance, "refresh_caches", NOW - timedelta(minutes=1), TickStatus.FAILURE)
        written.ticked(instance, "studiolab_events", NOW - timedelta(minutes=1), why="nessuna novità")
        with storage.connect() as theirs:
            states = {s.service.key: s for s in service_states(connection, theirs, NOW, live=True)}
        assert states["refresh_caches"].condition is Condition.WELL
        assert states["refresh_caches"].look is not None
        assert states["refresh_caches"].look.status == "FAILURE"
        assert states["sync_events"].condition is Condition.WELL
        assert states["sync_events"].look is not None
        assert states["sync_events"].look.skip_reason == "nessuna novità"
        assert [each.run_id for each in states["clear_caches"].running] == [run]

    def test_the_queue_is_full_once_its_first_has_waited_for_a_minute(
        self, connection: sa.Connection, dagster: tuple[DagsterInstance, sa.Engine]
    ) -> None:
        instance, storage = dagster
        first = NOW - timedelta(seconds=59)
        written.ran(instance, storage, "clear_caches", "STARTED", NOW - timedelta(minutes=9))
        written.ran(instance, storage, "clear_caches", "QUEUED", first)
        written.ran(instance, storage, "sync_events", "QUEUED", NOW - timedelta(seconds=50))
        with storage.connect() as theirs:
            states = {s.service.key: s for s in service_states(connection, theirs, NOW, live=True)}
        assert states["clear_caches"].queued_since is None
        assert states["sync_events"].queued_since == NOW - timedelta(seconds=50)
        assert full_queue(states.values(), NOW) is None
        assert full_queue(states.values(), NOW + timedelta(seconds=1)) == Queue(1, 2, first)
        del states["clear_caches"]
        assert full_queue(states.values(), NOW) is None
