"""A clinic whose studiolab is switched off: gone from Dagster's list, its history kept, and no run of it fails."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.sensors.studiolab_events import studiolab_events
from tests import world
from tests.changes.test_plan_dagster import BASE, House, _metadata, _plan, house
from tests.sources.lab import PRICES

__all__ = ["house"]  # a fixture

SERVICES = dg.AssetKey(["studiolab", "services"])
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def live(house: House) -> None:
    with house.engine.begin() as connection:
        activity.go_live(
            connection, ["sync_events"], actor="desk:anna", reason="prova con la clinica", as_of=world.AS_OF
        )


def switch(house: House, active: bool) -> None:
    with house.engine.begin() as connection:
        connection.execute(sa.text("UPDATE integration SET active = :active"), {"active": active})


def tick(house: House) -> Any:
    """One look of the sensor, its requests for partitions carried out as the daemon does."""
    with dg.build_sensor_context(instance=house.instance, resources={"polydesk": PolydeskResource()}) as context:
        result: Any = studiolab_events(context)
    for request in result.dynamic_partitions_requests or ():
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            house.instance.add_dynamic_partitions("clinic", request.partition_keys)
        else:
            for key in request.partition_keys:
                house.instance.delete_dynamic_partition("clinic", key)
    return result


def shown(house: House) -> list[str]:
    return list(house.instance.get_dynamic_partitions("clinic"))


def queued(house: House, job: str) -> dg.DagsterRun:
    """A run of the clinic that somebody has asked for."""
    found = house.definitions.resolve_job_def(job)
    return house.instance.create_run_for_job(found, tags={"dagster/partition": "BO01"})


def test_its_partition_goes_and_comes_back_with_its_history(house: House) -> None:
    tick(house)
    assert shown(house) == ["BO01"]
    assert house.run("sync_services").success
    switch(house, active=False)
    assert "Nessuna clinica" in tick(house).skip_reason.skip_message
    assert shown(house) == []
    assert house.instance.get_latest_materialization_event(SERVICES) is not None
    switch(house, active=True)
    tick(house)
    assert shown(house) == ["BO01"]
    assert house.instance.get_materialized_partitions(SERVICES) == {"BO01"}


def test_it_stays_until_its_run_has_ended(house: House) -> None:
    tick(house)
    run = queued(house, "sync_services")
    switch(house, active=False)
    tick(house)
    assert shown(house) == ["BO01"]
    house.instance.report_run_canceled(run)
    tick(house)
    assert shown(house) == []


@pytest.mark.parametrize("job", ["import_patients", "sync_prices", "preview_services", "sync_events"])
@pytest.mark.parametrize("deleted", [False, True], ids=["shown", "deleted"])
def test_a_run_of_it_ends_skipped_with_its_reason(house: House, job: str, deleted: bool) -> None:
    tick(house)
    run = queued(house, job)
    switch(house, active=False)
    if deleted:
        house.instance.delete_dynamic_partition("clinic", "BO01")
    done = execute_run(InMemoryJob(house.definitions.resolve_job_def(job)), run, house.instance)
    assert done.success
    assert {outcome for _, outcome, _ in house.recorded()} == {"skipped"}
    assert (job, "skipped", job.startswith("preview")) in house.recorded()
    with house.engine.connect() as connection:
        codes = connection.scalars(sa.text("SELECT DISTINCT reasons -> 0 ->> 'code' FROM service_run")).all()
    assert codes == ["integration_off"]
    assert not list(done.filter_events(lambda event: event.is_step_materialization))


def test_the_loser_of_two_runs_ends_skipped_too(house: House) -> None:
    with exclusive(house.engine, "sync_services", "BO01") as alone:
        assert alone
        assert house.run("sync_services").success
    assert house.recorded()[-1] == ("sync_services", "skipped", False)


def test_a_named_plan_leaves_the_services_other_list_alone(house: House) -> None:
    assert house.run("sync_services").success
    assert house.run("sync_prices").success
    house.simulator.hold("BO01", BASE | {"prices": [PRICES[0] | {"amount": "50.50"}, *PRICES[1:]]})
    plan = _plan(house.run("preview_prices"), "prices_preview")
    done = house.run("sync_prices", plan=plan)
    assert done.success
    assert _metadata(done, "prices")["Modificate"] == 1
    assert f"piano {plan}" in _metadata(done, "agreements")["Esito"]  # left alone, so that the prices come after it
    assert "50.50" in house.amounts()


def test_a_check_may_be_asked_for_alone(house: House) -> None:
    tick(house)
    check = dg.AssetCheckKey(dg.AssetKey(["studiolab", "services_preview"]), "too_many_retired")
    whole = house.definitions.resolve_implicit_global_asset_job_def()
    alone = whole.get_subset(asset_selection=set(), asset_check_selection={check})
    done = alone.execute_in_process(instance=house.instance, partition_key="BO01")
    assert [(each.check_name, each.passed) for each in done.get_asset_check_evaluations()] == [
        ("too_many_retired", True)
    ]
    assert not done.asset_materializations_for_node("studiolab__services_preview")


TOWNS = [
    {"cadastral_code": f"{chr(65 + n // 999)}{n % 999 + 1:03d}", "istat_code": f"{n + 1:06d}", "name": f"Comune {n}",
     "province": "BO", "region": "Emilia-Romagna", "valid_from": "1900-01-01"}
    for n in range(7500)
]  # fmt: skip


@pytest.mark.parametrize("fault", ["token", "server", "answer"])
def test_what_belongs_to_no_clinic_is_first_asked_of_one_after_the_other_and_then_of_who_gave_it(
    house: House, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BO01 comes first, and is the one that fails."""
    monkeypatch.setenv("POLYDESK_STUDIOLAB_TOKEN_BZ01", DEMO_TOKEN)
    house.simulator.hold("BZ01", {"municipalities": TOWNS})
    with house.engine.begin() as connection:
        first = connection.scalar(sa.text("SELECT base_url FROM integration"))
        url = str(first).replace("BO01", "BZ01")
        world.integration(connection, world.clinic(connection, "BZ01"), url, token_env="POLYDESK_STUDIOLAB_TOKEN_BZ01")
        if fault == "server":
            connection.execute(
                sa.text("UPDATE integration SET base_url = 'http://127.0.0.1:9' WHERE token_env LIKE '%TOKEN_BO01'")
            )
    if fault == "token":
        monkeypatch.delenv("POLYDESK_STUDIOLAB_TOKEN_BO01")
    if fault == "answer":
        house.simulator.fail("status", "/BO01/api/v1/municipalities", status=403, times=None)
    seen = house.run("import_municipalities")
    assert seen.success
    assert "un'altra clinica" in str(_metadata(seen, "municipalities_preview")["Motivi"])
    with house.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM municipality")) == len(TOWNS)
    for token in ("POLYDESK_STUDIOLAB_TOKEN_BO01", "POLYDESK_STUDIOLAB_TOKEN_BZ01"):
        monkeypatch.delenv(token, raising=False)
    assert not house.run("import_municipalities").success
    with house.engine.connect() as connection:
        last = connection.execute(sa.text("SELECT outcome, reasons::text FROM service_run ORDER BY id DESC")).first()
    assert last is not None
    assert (last.outcome, "BO01" in last.reasons, "BZ01" in last.reasons) == ("failed", False, True)


def test_prices_are_read_where_their_source_has_no_agreements(house: House, tmp_path: Path, monkeypatch: Any) -> None:
    """A price list in a folder, and nothing else of that source."""
    tick(house)
    assert house.run("sync_services").success
    (tmp_path / "listino.csv").write_text("Codice;Prezzo\nS1;45,50\n")
    monkeypatch.setenv("POLYDESK_FILES_TOKEN_BO01", str(tmp_path))
    prices = {"columns": {"service_id": "Codice", "amount": "Prezzo"}, "file": "listino.csv"}
    settings = {"lists": {"prices": prices | {"fixed": {"currency": "EUR", "valid_from": "2026-01-01"}}}}
    settings |= {"token": "POLYDESK_FILES_TOKEN_BO01"}
    with house.engine.begin() as connection:
        connection.execute(
            sa.text("""UPDATE integration SET vendor = 'files', base_url = NULL, token_env = NULL, source = NULL,
                              settings = CAST(:settings AS jsonb)"""),
            {"settings": json.dumps(settings)},
        )
    assert house.run("sync_prices").success
    with house.engine.connect() as connection:
        assert connection.scalars(sa.text("SELECT amount FROM price")).all() == [Decimal("45.50")]
        ended = connection.execute(
            sa.text(
                "SELECT outcome, reasons->0->>'code' FROM service_run WHERE service = 'sync_prices' AND NOT preview"
            )
        ).all()
    assert sorted(map(tuple, ended)) == [("ok", None), ("skipped", "list_not_offered")]
