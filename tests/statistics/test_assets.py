from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import definitions
from polydesk_dagster.database.engine import plain_url
from tests.light import without
from tests.statistics import world

AS_OF = "2026-03-30T12:00:00+02:00"


@pytest.fixture
def instance(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with engine.begin() as connection:
        world.chain(connection)
        for day in range(1, 29):
            world.appointment(connection, f"2026-03-{day:02} 08:00Z", status="no_show" if day % 9 == 0 else "completed")
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def _run(instance: dg.DagsterInstance, job: str, **config: object) -> dg.ExecuteInProcessResult:
    return (
        definitions.defs.get_repository_def()
        .get_job(job)
        .execute_in_process(run_config={"ops": {f"run_{job}": {"config": config}}}, instance=instance)
    )


@pytest.mark.slow
def test_each_statistic_shows_where_its_plot_is_beside_its_numbers(
    instance: dg.DagsterInstance, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "pandas", "matplotlib")  # they would cost more than the run
    result = _run(instance, "refresh_statistics", as_of=AS_OF)
    shown = {
        event.asset_key.path[1]: event.step_materialization_data.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    assert set(shown) == {
        "appointments",
        "occupancy",
        "attendance",
        "lead_time",
        "revenue",
        "online_funnel",
        "messages",
        "report_turnaround",
    }
    for key, metadata in shown.items():
        assert metadata["Grafico"].value == f"![Grafico](/grafici/{result.run_id}/{key})"
        assert metadata["Aggiornato il"].value == "30/03/2026 12:00"
        assert metadata["Giorni che aspettano un aggiornamento"].value == 0
    assert shown["attendance"]["Assenti su attesi"].value == "3 su 28 (10,7 %)"
    assert shown["revenue"]["Valore accettato"].value == "2.250,00\xa0€"
    assert "Paziente" not in str(shown)
    evaluations = [
        e.asset_check_evaluation_data for e in result.all_events if e.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert [(e.check_name, e.passed) for e in evaluations] == [("same_as_counting_everything", True)]
    with engine.connect() as connection:
        comparison = connection.execute(sa.text("SELECT whole, drifted FROM statistic_comparison")).one()
        assert tuple(comparison) == (True, 0)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE statistic_appointment SET appointments = 99"))
    drifted = [_run(instance, "refresh_statistics", as_of=AS_OF) for _ in range(3)]
    passed = [
        e.asset_check_evaluation_data.passed
        for result in drifted
        for e in result.all_events
        if e.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert False in passed


def test_caches_and_names_run_as_services(instance: dg.DagsterInstance, engine: sa.Engine) -> None:
    built = _run(instance, "refresh_caches", as_of=AS_OF)
    keys = {tuple(event.asset_key.path) for event in built.get_asset_materialization_events() if event.asset_key}
    assert keys == {("caches", "specialists"), ("caches", "locations")}
    _run(instance, "clear_caches", as_of=AS_OF, clinic="BO01")
    _run(instance, "refresh_sort_names", as_of=AS_OF)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT service, outcome, counts FROM service_run ORDER BY id")).all()
        assert [(row.service, row.outcome) for row in rows] == [
            ("refresh_caches", "ok"),
            ("clear_caches", "ok"),
            ("refresh_sort_names", "ok"),
        ]
        assert [row.counts["created"] + row.counts["updated"] for row in rows] == [6, 2, 3]
        generations = connection.execute(
            sa.text("SELECT DISTINCT c.code, v.generation FROM cache_version v JOIN clinic c ON c.id = v.clinic_id")
        )
        assert {tuple(row) for row in generations} == {("BO01", 2), ("LIS1", 1), ("VUO1", 1)}
