"""How a rule runs inside Dagster: alone, its outcome recorded and shown, an unexpected error without its message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import running
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.database.service_runs import recorded
from polydesk_dagster.errors import PASSING, PermanentError, TransientError
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.told.dagster import metadata

Rule = Callable[[Run], Report]


@pytest.fixture
def run(
    database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dg.ExecuteInProcessResult]]:
    """Runs a rule as the service ``generate_slots`` in a real job, against a real database."""
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with dg.DagsterInstance.ephemeral() as instance:

        def execute(rule: Rule, **config: object) -> dg.ExecuteInProcessResult:
            job = _job(rule)
            return job.execute_in_process(
                run_config={"ops": {"generate_slots": {"config": config}}},
                resources={"polydesk": PolydeskResource()},
                instance=instance,
                raise_on_error=False,
            )

        yield execute


def _job(rule: Rule) -> dg.JobDefinition:
    def body(context: dg.OpExecutionContext, config: ServiceConfig, polydesk: PolydeskResource) -> None:
        context.add_output_metadata(metadata(running.serve(context, polydesk, "generate_slots", config, rule)))

    # the annotations of this module are strings, and Dagster reads real ones
    body.__annotations__ = {
        "context": dg.OpExecutionContext,
        "config": ServiceConfig,
        "polydesk": PolydeskResource,
        "return": None,
    }
    operation = dg.op(name="generate_slots")(body)

    @dg.job(name="generate_slots", executor_def=dg.in_process_executor)
    def job() -> None:
        operation()

    return job


def _log(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(str(event) for event in result.all_events)


def _recorded(engine: sa.Engine) -> list[tuple[str, str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT service, outcome, reasons ->> 0 FROM service_run ORDER BY id"))
        return [tuple(row) for row in rows]  # type: ignore[misc]


def test_a_report_is_recorded_and_shown(run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine) -> None:
    report = Report(
        Outcome.PARTIAL,
        Counts(created=3, failed=1),
        (Reason("no_such_clinic", {"given": "Sala | 1"}, "BO01"),),
        {"Giorni": 4, "Quota": 0.5},
        (Table("Tabella", ("A", "B"), ((1, None), ("x|y", 2)), 9),),
        plan_id=7,
    )
    result = run(lambda _: report)
    assert result.success
    shown = next(event for event in result.all_events if event.event_type_value == "STEP_OUTPUT")
    metadata = shown.step_output_data.metadata
    assert metadata["Esito"].value == "riuscito in parte"
    assert metadata["Aggiunte"].value == 3
    assert metadata["Quota"].value == 0.5
    assert [record.data for record in metadata["Tabella"].records] == [
        {"A": "1", "B": ""},
        {"A": "x|y", "B": "2"},
        {"A": "… e altre 7 righe.", "B": ""},
    ]
    with engine.connect() as connection:
        ((clinic, read),) = recorded(connection, result.run_id, "generate_slots")
    assert clinic is None
    assert read == report


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED])
def test_refused_and_failed_fail_the_run_and_are_recorded(
    run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine, outcome: Outcome
) -> None:
    result = run(lambda _: Report(outcome, reasons=(Reason("no_such_clinic", {"given": "Perché sì."}),)))
    assert not result.success
    assert "Perché sì." in _log(result)
    assert [row[:2] for row in _recorded(engine)] == [("generate_slots", outcome.value)]


@pytest.mark.parametrize(
    ("error", "code"), [(TransientError("silent", system="central"), "silent"), (PermanentError("no"), "no")]
)
def test_expected_errors_become_a_failed_report(
    run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine, error: Exception, code: str
) -> None:
    def rule(_: Run) -> Report:
        raise error

    assert not run(rule).success
    ((_, outcome, reason),) = _recorded(engine)
    assert outcome == "failed"
    assert json.loads(reason)["code"] == code


@pytest.mark.parametrize(
    ("sqlstate", "code"),
    [
        *((state, "database_busy") for state in ("40P01", "40001", "55P03")),
        ("53200", "refused_memory"),
        ("57P01", "refused_restarting"),
    ],
)
def test_what_the_database_refuses_for_the_moment_passes(
    run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine, sqlstate: str, code: str
) -> None:
    def rule(given: Run) -> Report:
        with given.engine.begin() as connection:
            connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'Rossi' USING ERRCODE = '{sqlstate}'; END $$"))
        return Report(Outcome.OK)

    result = run(rule)
    ((_, outcome, reason),) = _recorded(engine)
    assert (result.success, outcome, json.loads(reason)["code"]) == (False, "failed", code)
    assert code in PASSING
    for language in LANGUAGES:
        assert "SQLSTATE" not in teller(language).reason(Reason(code, json.loads(reason)["values"]))


def test_an_unexpected_error_never_shows_what_it_quotes(
    run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine
) -> None:
    def rule(given: Run) -> Report:
        with given.engine.begin() as connection:
            insert = "INSERT INTO patient (last_name, first_name, sex) VALUES ('Rossi Segreta', 'Maria', 'X')"
            connection.execute(sa.text(insert))
        return Report(Outcome.OK)

    result = run(rule)
    assert not result.success
    seen = _log(result) + str(_recorded(engine))
    assert "Segreta" not in seen
    assert "IntegrityError" in seen


def test_the_loser_of_two_runs_is_skipped(run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine) -> None:
    def never(_: Run) -> Report:
        raise AssertionError("two at once")

    with exclusive(engine, "generate_slots", None):
        assert run(never).success
    assert [row[:2] for row in _recorded(engine)] == [("generate_slots", "skipped")]


def test_a_rule_works_at_the_instant_it_is_given(run: Callable[..., dg.ExecuteInProcessResult]) -> None:
    seen: list[datetime] = []

    def rule(given: Run) -> Report:
        seen.append(given.as_of)
        return Report(Outcome.OK)

    assert run(rule, as_of="2026-03-29T03:00:00+02:00").success
    assert seen == [datetime(2026, 3, 29, 1, tzinfo=UTC)]
    assert not run(rule, as_of="2026-03-29T03:00:00").success
    assert not run(rule, as_of="ieri").success
    assert len(seen) == 1


def test_a_run_beside_a_newer_schema_says_so_and_touches_nothing(
    run: Callable[..., dg.ExecuteInProcessResult], engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text("COMMENT ON TABLE alembic_version IS 'serves 9999'"))
    result = run(lambda _: Report.nothing_to_do())
    assert not result.success
    assert "Il database è più nuovo di questo programma (schema 9999" in _log(result)
    assert not _recorded(engine)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["caches/locations", "statistics/appointments"])
def test_one_of_the_assets_that_are_made_together_can_be_asked_for(
    key: str, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polydesk_dagster.assets import caches, statistics

    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [*caches.ASSETS, *statistics.ASSETS],
            selection=[key],
            resources={"polydesk": PolydeskResource()},
            instance=instance,
        )
    assert result.success
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert made == {key}
