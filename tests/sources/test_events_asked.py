"""What events ask for: few runs for many clinics, and none is forgotten before its lists were read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from sqlalchemy.engine import URL

from polydesk_dagster import definitions, many
from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.sensors.asked import AGAIN, readings
from polydesk_dagster.sources.events.effects import IMPORT_PATIENTS, PREVIEW_PRICES
from tests.sources import live
from tests.sources.test_events_sensor import news
from tests.sources.test_many_clinics import CLINICS, ILL, Chain, chain  # noqa: F401 - a fixture

NOW = datetime(2026, 3, 27, 10, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


@dataclass
class Asking:
    """The sensor of one service, its cursor, and a clock."""

    engine: sa.Engine
    instance: dg.DagsterInstance
    service: str
    patch: pytest.MonkeyPatch
    cursor: str | None = None
    said: str | None = None

    def look(self, at: datetime, *, cut_short: bool = False) -> list[dg.RunRequest]:
        """A tick; one that is ``cut_short`` leaves nothing to the next."""
        self.patch.setattr(PolydeskResource, "now", lambda _: at)
        repository = definitions.defs.get_repository_def()
        sensor = repository.get_sensor_def(f"asked_{self.service}")
        resources = {"polydesk": PolydeskResource()}
        with (
            dg.partition_loading_context(dynamic_partitions_store=self.instance),
            dg.build_sensor_context(
                self.instance, cursor=self.cursor, repository_def=repository, resources=resources
            ) as context,
        ):
            said = sensor.evaluate_tick(context)
        self.said = said.skip_message
        if not cut_short:
            self.cursor = said.cursor
        return list(said.run_requests or ())

    def whom(self, at: datetime) -> list[set[str]]:
        partitions = self.instance.get_dynamic_partitions
        return [
            {each.partition_key}
            if each.partition_key
            else many.about(self.run(each), partitions("clinic"))
            for each in self.look(at)
        ]  # fmt: skip

    def run(self, asked: dg.RunRequest) -> dg.DagsterRun:
        return dg.DagsterRun(job_name=self.service, run_config=asked.run_config, tags=asked.tags)

    def ask(self, *clinics: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("""INSERT INTO service_request (clinic_id, service, asked_at)
                           SELECT id, :service, :now FROM clinic WHERE code = ANY(:clinics)
                           ON CONFLICT DO NOTHING"""),
                {"service": self.service, "clinics": list(clinics), "now": NOW},
            )

    def ended(
        self, clinic: str, outcome: str, at: datetime, why: str = "remote_silent", run: str = "run", **more: Any
    ) -> None:
        """A list of a run was ended so."""
        row = {"service": self.service, "preview": BY_KEY[self.service].only_looks, "plan": None} | more
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("""
                    INSERT INTO service_run (service, clinic_id, preview, dagster_run, outcome, counts, reasons,
                                             plan_id, as_of, started_at, seconds)
                    SELECT :service, id, :preview, :run, :outcome, '{}',
                           jsonb_build_array(jsonb_build_object('code', CAST(:why AS text))), :plan, :at, :at, 0
                    FROM clinic WHERE code = :clinic"""),
                row | {"clinic": clinic, "outcome": outcome, "at": at, "why": why, "run": run},
            )

    def open(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(
                connection.scalars(
                    sa.text("""SELECT c.code FROM service_request r JOIN clinic c ON c.id = r.clinic_id
                               WHERE r.answered_at IS NULL AND r.service = :service"""),
                    {"service": self.service},
                )
            )


@pytest.fixture
def house(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """A hundred clinics with a studiolab, and everything live."""
    return live.clinics(engine, database, tmp_path, monkeypatch, [f"C{number:02}" for number in range(100)], NOW)


@pytest.fixture
def patients(house: sa.Engine, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(house, instance, IMPORT_PATIENTS, monkeypatch)


@pytest.fixture
def prices(house: sa.Engine, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(house, instance, PREVIEW_PRICES, monkeypatch)


def test_a_hundred_clinics_that_ask_together_are_one_run(patients: Asking) -> None:
    everybody = {f"C{number:02}" for number in range(100)}
    patients.ask(*everybody)
    (asked,) = patients.look(NOW, cut_short=True)
    (again,) = patients.look(NOW + SECOND)
    assert asked.run_key == again.run_key, "a tick that was cut short comes to the same run"
    assert many.about(patients.run(asked), patients.instance.get_dynamic_partitions("clinic")) == everybody
    assert patients.look(NOW + MINUTE) == []
    assert patients.said == "Per 100 cliniche la lettura è in corso, oppure non è riuscita e si ripete più tardi."
    for clinic in everybody - {"C07"}:
        patients.ended(clinic, "ok", NOW + SECOND)
    patients.ended("C07", "failed", NOW + SECOND)
    assert patients.whom(NOW + 6 * MINUTE) == [{"C07"}]
    assert patients.open() == {"C07"}


def test_a_question_stays_open_until_its_list_was_read_and_is_asked_with_longer_pauses(patients: Asking) -> None:
    patients.ask("C01")
    at, keys = NOW, set[str | None]()
    for pause in (*AGAIN, AGAIN[-1]):
        (asked,) = patients.look(at)
        keys.add(asked.run_key)
        patients.ended("C01", "failed", at + SECOND, run=str(at))
        assert patients.look(at + pause - SECOND) == []
        at += pause
    assert len(keys) == len(AGAIN) + 1, "a failed run blocks its own key alone"
    patients.ended("C01", "nothing_to_do", at)
    assert patients.look(at) == []
    assert patients.open() == set()
    assert patients.said == "Nessun evento lo chiede."
    patients.ask("C01")
    assert patients.whom(at + SECOND) == [{"C01"}], "who was answered is asked at once for what is new"


def test_what_does_not_pass_by_itself_is_asked_again_as_seldom_as_can_be(patients: Asking) -> None:
    patients.ask("C01")
    patients.look(NOW)
    patients.ended("C01", "failed", NOW + SECOND, "remote_token")
    assert patients.look(NOW + AGAIN[-1] - SECOND) == []
    assert patients.whom(NOW + AGAIN[-1]) == [{"C01"}]


def test_a_run_that_is_under_way_is_waited_for_and_one_that_was_killed_is_not(patients: Asking) -> None:
    patients.ask("C01", "C02")
    (asked,) = patients.look(NOW)
    job = definitions.defs.resolve_job_def(IMPORT_PATIENTS)
    run = patients.instance.create_run_for_job(job, run_config=asked.run_config, tags=dict(asked.tags))
    assert patients.look(NOW + 10 * MINUTE) == []
    patients.instance.report_run_canceled(run)
    patients.ended("C01", "ok", NOW + SECOND)
    assert patients.whom(NOW + 11 * MINUTE) == [{"C02"}], "it was ended before it came to this one"


def test_what_is_asked_while_a_list_is_read_is_a_question_of_its_own(patients: Asking) -> None:
    patients.ask("C01")
    patients.look(NOW)
    patients.ask("C01")
    patients.ended("C01", "ok", NOW + SECOND)
    assert patients.whom(NOW + MINUTE) == [{"C01"}]
    patients.ended("C01", "ok", NOW + MINUTE + SECOND, run="another")
    assert patients.look(NOW + 2 * MINUTE) == []
    assert patients.open() == set()


def test_a_clock_that_was_set_back_keeps_nobody_waiting(patients: Asking) -> None:
    patients.ask("C01")
    patients.look(NOW)
    assert patients.whom(NOW - 60 * MINUTE) == [{"C01"}]
    assert patients.look(NOW - 59 * MINUTE) == []


def test_who_is_paused_or_switched_off_is_asked_when_she_is_back(patients: Asking) -> None:
    patients.ask("C01", "C02", "C03")
    with patients.engine.begin() as connection:
        activity.pause(connection, IMPORT_PATIENTS, as_of=NOW, clinic="C01", until=NOW + 30 * MINUTE,
                       actor="manager:ugo", reason="anagrafe in revisione")  # fmt: skip
        connection.execute(
            sa.text("""UPDATE integration SET active = false
                       WHERE clinic_id = (SELECT id FROM clinic WHERE code = 'C02')""")
        )
    assert patients.whom(NOW) == [{"C03"}]
    patients.ended("C03", "ok", NOW)
    assert patients.look(NOW + MINUTE) == []
    assert "anagrafe in revisione" in str(patients.said)
    with patients.engine.begin() as connection:
        connection.execute(sa.text("UPDATE integration SET active = true"))
    assert patients.whom(NOW + 30 * MINUTE) == [{"C01", "C02"}]


def test_only_what_has_read_all_lists_after_it_was_taken_answers(prices: Asking) -> None:
    clinics = [f"C{number:02}" for number in range(8)]
    prices.ask(*clinics)
    prices.look(NOW)
    early, one, half, both, night, stopped, named, absent = clinics
    with prices.engine.begin() as connection:
        plans = [
            connection.scalar(
                sa.text("""INSERT INTO plan (service, kind, fingerprint, tally, origin, as_of, expires_at)
                           VALUES ('sync_prices', 'price', 'x', '{}', :run, :now, :now) RETURNING id"""),
                {"run": run, "now": NOW},
            )
            for run in ("run", "before")
        ]  # fmt: skip
    for _ in range(2):
        prices.ended(early, "ok", NOW - SECOND)
        prices.ended(both, "ok", NOW)
        prices.ended(night, "ok", NOW, service="sync_prices", preview=False)
        prices.ended(stopped, "refused", NOW, plan=plans[0])
        prices.ended(named, "ok", NOW, service="sync_prices", preview=False, plan=plans[1])
    prices.ended(one, "ok", NOW)
    prices.ended(half, "failed", NOW)
    prices.ended(half, "ok", NOW)
    prices.ended(absent, "skipped", NOW, "list_not_offered")
    prices.ended(absent, "ok", NOW)
    assert prices.whom(NOW + 6 * MINUTE) == [{early, one, half, named}]
    assert prices.open() == {early, one, half, named}


def test_how_what_is_asked_is_read() -> None:
    assert [(each.service, each.preview, each.lists) for each in readings(IMPORT_PATIENTS)] == [
        ("import_patients", False, 1)
    ]
    assert [(each.service, each.preview, each.lists) for each in readings(PREVIEW_PRICES)] == [
        ("sync_prices", False, 2),
        ("preview_prices", True, 2),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("service", [PREVIEW_PRICES, IMPORT_PATIENTS])
def test_a_studiolab_that_failed_when_it_was_asked_is_asked_again_for_real(
    chain: Chain,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    service: str,
) -> None:
    with chain.engine.begin() as connection:
        live.go_live(connection, NOW)
    asking = Asking(chain.engine, chain.instance, service, monkeypatch)
    if service == PREVIEW_PRICES:
        for clinic in CLINICS:
            chain.simulator.publish(clinic, news(clinic))
        assert chain.run("sync_events").is_success
    else:
        asking.ask(*CLINICS)
    assert asking.open() == set(CLINICS)

    def run(asked: dg.RunRequest) -> dg.DagsterRun:
        job = chain.definitions.resolve_job_def(service)
        tags = {**asked.tags, **({"dagster/partition": asked.partition_key} if asked.partition_key else {})}
        made = chain.instance.create_run_for_job(job, run_config=asked.run_config, tags=tags)
        execute_run(InMemoryJob(job), made, chain.instance)
        ended = chain.instance.get_run_by_id(made.run_id)
        assert ended is not None
        return ended

    wanted = "prices" if service == PREVIEW_PRICES else "patients"
    chain.simulator.fail("cut", f"/{ILL}/api/v1/{wanted}", times=None)
    now = datetime.now(UTC)
    (asked,) = asking.look(now)
    assert many.about(asking.run(asked), CLINICS) == set(CLINICS)
    assert run(asked).is_failure
    assert asking.look(now + MINUTE) == []
    assert asking.open() == {ILL}
    (again,) = asking.look(now + AGAIN[0])
    assert again.partition_key == ILL
    assert run(again).is_failure
    chain.simulator.faults.clear()
    (third,) = asking.look(now + AGAIN[0] + AGAIN[1])
    assert run(third).is_success
    assert asking.look(now + AGAIN[0] + AGAIN[1]) == []
    assert asking.open() == set()
    assert len({asked.run_key, again.run_key, third.run_key}) == 3
