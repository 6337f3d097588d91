"""The jobs that keep bookings clean, as Dagster runs them: recorded, refused by name, harmless by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.clinic.bookings import confirming, holds
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.upkeep import temporary
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.jobs import bookings as ordinary
from polydesk_dagster.jobs import caches, emergency
from polydesk_dagster.jobs.dagster_storage import clean_dagster
from polydesk_dagster.outcome import Outcome, Reason
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.names import PERSON_TAG
from polydesk_dagster.told import teller
from tests import world
from tests.world import AS_OF, rome

JOBS = {job.name: job for job in (*ordinary.JOBS, *emergency.JOBS, *caches.JOBS)}
Execute = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def execute(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance) -> Execute:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))

    def run(job: str, person: str | None = None, **config: object) -> dg.ExecuteInProcessResult:
        return JOBS[job].execute_in_process(
            run_config={"ops": {BY_KEY[job].steps[0]: {"config": {"as_of": AS_OF.isoformat(), **config}}}},
            resources={"polydesk": PolydeskResource()},
            instance=instance,
            tags={PERSON_TAG: person} if person else None,
            raise_on_error=False,
        )

    return run


@pytest.fixture
def slot(engine: sa.Engine) -> int:
    with engine.begin() as connection:
        return world.slot(connection, world.practice(connection).agenda, rome("2026-03-11"))


def now(after: timedelta = timedelta(0)) -> str:
    return (datetime.now(UTC) + after).isoformat()


def last(engine: sa.Engine, service: str) -> tuple[str, str]:
    """Outcome and first reason's code of the newest run of a service."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("SELECT outcome, reasons FROM service_run WHERE service = :service ORDER BY id DESC LIMIT 1"),
            {"service": service},
        ).one()
    return row.outcome, row.reasons[0]["code"] if row.reasons else ""


def test_an_expired_hold_is_swept(execute: Execute, engine: sa.Engine, slot: int) -> None:
    with engine.begin() as connection:
        holds.place(
            connection,
            slot_id=slot,
            service_id=world.offered(connection, slot),
            token="t",
            visitor="v",
            as_of=AS_OF - timedelta(minutes=11),
        )
    assert execute("release_expired_holds").success
    assert last(engine, "release_expired_holds") == ("ok", "")
    assert execute("delete_unverified_appointments").success
    assert last(engine, "delete_unverified_appointments") == ("nothing_to_do", "")


def test_a_dangerous_job_does_nothing_by_default(execute: Execute, engine: sa.Engine, slot: int) -> None:
    with engine.begin() as connection:
        holds.place(
            connection, slot_id=slot, service_id=world.offered(connection, slot), token="t", visitor="v", as_of=AS_OF
        )
    assert execute("release_all_holds").success
    with engine.connect() as connection:
        typed = world.typed(connection, Press("prova di un comando pericoloso", "LIBERA 1"))
    given = {"reason": typed.reason, "plan": typed.plan_id}
    assert not execute("release_all_holds", **given, confirm="LIBERA 1").success
    assert last(engine, "release_all_holds") == ("refused", "wrong_phrase")
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT state FROM hold")) == "live"
    assert execute("release_all_holds", **given, confirm=typed.confirm).success
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT state FROM hold")) == "revoked"
        assert str(connection.scalar(sa.text("SELECT actor FROM audit"))).startswith("desk:")


def test_no_dangerous_button_is_pressed_again_by_dagster() -> None:
    assert [job.tags["dagster/max_retries"] for job in emergency.JOBS] == ["0"] * 3


def test_the_nightly_clean_up_refuses_by_name(execute: Execute, engine: sa.Engine) -> None:
    assert not execute("nightly_cleanup", only=["patient"]).success
    assert last(engine, "nightly_cleanup") == ("refused", "unknown_data_set")
    execute("nightly_cleanup", files="../dagster")
    assert last(engine, "nightly_cleanup")[1] == "outside"
    assert not execute("nightly_cleanup", clinic="BO01").success
    assert last(engine, "nightly_cleanup") == ("refused", "whole_chain")
    with engine.connect() as connection:
        reasons = connection.scalars(sa.text("SELECT reasons FROM service_run ORDER BY id")).all()
    said = [teller("it").reason(Reason.from_dict(each[0])) for each in reasons]
    assert "«patient»" in said[0]
    assert "«../dagster»" in said[1]
    assert "BO01" in said[2]


def test_the_nightly_clean_up_cleans_records_and_files(
    execute: Execute, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "KEPT", timedelta(0))
    old = tmp_path / "tmp" / "vecchio.csv"
    old.parent.mkdir()
    old.write_text("x")
    assert execute("nightly_cleanup", preview=True, as_of=now()).success
    assert old.exists()
    assert execute("nightly_cleanup", as_of=now()).success
    assert not old.exists()
    assert last(engine, "nightly_cleanup")[0] == "ok"


def test_only_one_data_set_leaves_the_files_alone(
    execute: Execute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "KEPT", timedelta(0))
    old = tmp_path / "tmp" / "prova" / "vecchio.csv"
    old.parent.mkdir(parents=True)
    old.write_text("x")
    assert execute("nightly_cleanup", only=["ended_holds"], as_of=now()).success
    assert old.exists()
    assert execute("nightly_cleanup", only=["ended_holds"], files="prova", as_of=now()).success
    assert not old.exists()


@pytest.mark.parametrize(
    ("job", "guard", "code"),
    [
        ("nightly_cleanup", "unusual_volume", "guard_not_looked_at"),
        ("delete_unverified_appointments", "many_unverified", "guard_without_clinic"),
    ],
)
def test_a_guard_is_passed_only_by_naming_the_plan(
    execute: Execute, engine: sa.Engine, slot: int, job: str, guard: str, code: str
) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, "RE01")
        stays = world.appointment(
            connection, world.slot(connection, practice.agenda, rome("2026-03-12")), service_id=practice.service,
            patient_id=None, status="unverified", channel="online",
            verification_expires_at=AS_OF - timedelta(minutes=1), contact_email="chi@example.org",
        )  # fmt: skip
    given = {"past_guard": guard, "reason": "gateway guardato stamattina"}
    assert not execute(job, **given).success
    assert last(engine, job) == ("refused", code)
    with engine.connect() as connection:
        (reason,) = connection.scalar(sa.text("SELECT reasons FROM service_run")) or []
        assert f"polydesk plan apply ID --past-guard {guard} --reason '…'" in teller("it").reason(
            Reason.from_dict(reason)
        )
        assert connection.scalar(sa.text("SELECT count(*) FROM plan")) == 0
        assert connection.scalar(sa.text(f"SELECT status FROM appointment WHERE id = {stays}")) == "unverified"
    if job == "delete_unverified_appointments":
        assert execute(job, **given, clinic="RE01").success


def test_a_folder_that_cannot_be_cleaned_does_not_keep_the_records(
    execute: Execute, engine: sa.Engine, tmp_path: Path, slot: int
) -> None:
    (tmp_path / "tmp").symlink_to(tmp_path / "dagster")
    with engine.begin() as connection:
        clinic = connection.scalar(sa.text("SELECT id FROM clinic"))
        at = AS_OF - timedelta(days=40)
        ended = {"created_at": at, "expires_at": at + timedelta(minutes=9), "ended_at": at + timedelta(minutes=9)}
        world.hold(connection, clinic or 0, slot, state="expired", **ended)
    execute("nightly_cleanup")
    assert last(engine, "nightly_cleanup") == ("partial", "no_temporary_folder")
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hold")) == 0


@pytest.mark.parametrize(
    ("job", "config"),
    [
        ("refresh_sort_names", {}),
        ("nightly_cleanup", {}),
        ("release_expired_holds", {}),
        ("delete_unverified_appointments", {}),
        ("release_all_holds", {"reason": "prova di un comando pericoloso", "confirm": "LIBERA 1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_works_in_the_future(
    execute: Execute, engine: sa.Engine, slot: int, job: str, config: dict[str, object]
) -> None:
    with engine.begin() as connection:
        holds.place(
            connection, slot_id=slot, service_id=world.offered(connection, slot), token="t", visitor="v", as_of=AS_OF
        )
    later = now(timedelta(days=3650))
    assert execute(job, **{**config, "as_of": later, "preview": True}).success
    assert not execute(job, **{**config, "as_of": later}).success
    assert last(engine, job) == ("refused", "ahead")
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT state FROM hold")) == "live"
        assert connection.scalar(sa.text("SELECT count(*) FROM audit")) == 0


def test_looking_at_a_dangerous_button_is_recorded_as_a_preview(execute: Execute, engine: sa.Engine, slot: int) -> None:
    assert execute("release_all_holds").success
    execute("release_all_holds", reason="prova di un comando pericoloso")
    with engine.connect() as connection:
        assert connection.scalars(sa.text("SELECT preview FROM service_run ORDER BY id")).all() == [True, False]


def test_who_gave_their_word_is_in_the_audit_trail(execute: Execute, engine: sa.Engine, slot: int) -> None:
    with engine.begin() as connection:
        placed = holds.place(
            connection,
            slot_id=slot,
            service_id=world.offered(connection, slot),
            token="t",
            visitor="v",
            as_of=AS_OF - timedelta(minutes=9),
        )
        confirming.begin_confirming(connection, token="t", as_of=AS_OF - timedelta(minutes=5))
    assert execute("release_expired_holds", unpaid=[placed.hold_id], person="manager:anna@example.org").success
    with engine.connect() as connection:
        actor = connection.scalar(sa.text("SELECT actor FROM audit"))
    assert actor == "manager:anna@example.org"


@dg.asset
def grown() -> None:
    """An asset whose last making must be remembered."""


@dg.job(executor_def=dg.in_process_executor)
def idle() -> None:
    """Nothing but history."""


def test_dagsters_old_runs_go_and_what_is_still_needed_stays(instance: dg.DagsterInstance, engine: sa.Engine) -> None:
    first = dg.materialize([grown], instance=instance).run_id
    newest = dg.materialize([grown], instance=instance).run_id
    plain = idle.execute_in_process(instance=instance).run_id
    tag = {"dagster/schedule_name": "every_night", "dagster/run_key": "2026-03-10"}
    keyed = [idle.execute_in_process(instance=instance, tags=tag).run_id for _ in range(2)]
    made = instance.get_run_records()[0].create_timestamp.replace(tzinfo=AS_OF.tzinfo)

    assert clean_dagster(instance, engine, made).outcome is Outcome.NOTHING_TO_DO, "young runs stay"
    later = made + timedelta(days=31)
    assert clean_dagster(instance, engine, later, preview=True).counts.retired == 3
    assert {run.run_id for run in instance.get_runs()} == {first, newest, plain, *keyed}
    assert clean_dagster(instance, engine, later).counts.retired == 3
    assert {run.run_id for run in instance.get_runs()} == {newest, keyed[1]}
    event = instance.get_latest_materialization_event(dg.AssetKey("grown"))
    assert event is not None
    assert event.run_id == newest
    assert clean_dagster(instance, engine, later).outcome is Outcome.NOTHING_TO_DO
    with engine.connect() as connection:
        line = connection.execute(sa.text("SELECT detail FROM audit")).scalar_one()
    assert (line["dataset"], line["removed"]) == ("dagster_runs", 3)
