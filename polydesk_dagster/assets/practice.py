"""A practice's own data: what a workbook would change, and the import of exactly that."""

import hashlib
from pathlib import Path

import dagster as dg

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, serve
from polydesk_dagster.sources.practice import importing, reading
from polydesk_dagster.told import teller, workbook
from polydesk_dagster.told.dagster import metadata


class LookConfig(ServiceConfig):
    """Which workbook of the folder."""

    file: str = ""
    """The name of a file in the folder of workbooks."""


class ImportConfig(ServiceConfig):
    """Which workbook's plans; the defaults do nothing and say what to fill in."""

    plan: int = 0
    """The number that the preview gave."""
    reason: str = ""
    """Why; needed to pass a guard."""
    guards: list[str] = []  # noqa: RUF012 - Dagster copies it
    """Failed guards that a person has looked at and passes."""


def _look(run: Run, name: str) -> Report:
    folder = run.settings.practice_folder
    path = folder / Path(name).name
    if not name or path.name != name or not path.is_file():
        return Report.refused("workbook_missing", {"file": name, "folder": str(folder)})
    try:
        data = reading.content(path)
        with run.engine.connect() as connection:
            ours = importing.clinics(connection)
        book = reading.read(data, workbook.words(), ours)
    except PermanentError as error:  # what somebody dropped, and nothing of ours
        return Report(Outcome.REFUSED, reasons=(error.reason,))
    snapshot = hashlib.sha256(data).hexdigest()
    with run.engine.begin() as connection:
        found = importing.plan(connection, book, as_of=run.as_of, origin=run.dagster_run, snapshot=snapshot, file=name)
        return importing.shown(connection, found)


def _import(run: Run, config: ImportConfig) -> Report:
    if not config.plan:
        return Report.refused("which_plan")
    with run.engine.begin() as connection:
        try:
            found = importing.load(connection, config.plan)
        except LookupError:
            return Report.refused("no_workbook_plan", {"plan": config.plan})
        return importing.take(
            connection,
            found,
            as_of=run.as_of,
            actor=run.person,
            reason=config.reason.strip() or None,
            past_guards=config.guards,
            preview=run.preview,
        )


@dg.asset(
    key=["practice", "workbook_preview"],
    group_name="practice",
    kinds={"excel", "postgres"},
    description=teller().text("asset.workbook_preview"),
    code_version="1",
)
def workbook_preview(
    context: dg.AssetExecutionContext, config: LookConfig, polydesk: PolydeskResource
) -> dg.MaterializeResult[object]:
    title = teller().service(importing.SERVICE)
    report = serve(
        context,
        polydesk,
        importing.SERVICE,
        config,
        lambda run: _look(run, config.file.strip()),
        title=title,
        alone=False,  # several files may be dropped at once, and each is looked at
    )
    return dg.MaterializeResult(metadata=metadata(report))


@dg.asset(
    key=["practice", "workbook"],
    group_name="practice",
    kinds={"excel", "postgres"},
    description=teller().text("asset.workbook"),
    deps=[["practice", "workbook_preview"]],
    code_version="1",
)
def practice_workbook(
    context: dg.AssetExecutionContext, config: ImportConfig, polydesk: PolydeskResource
) -> dg.MaterializeResult[object]:
    title = teller().service(importing.SERVICE)
    report = serve(context, polydesk, importing.SERVICE, config, lambda run: _import(run, config), title=title)
    return dg.MaterializeResult(metadata=metadata(report))


ASSETS = (workbook_preview, practice_workbook)
