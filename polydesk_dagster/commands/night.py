"""The demo's night: every scheduled service once, in the order of the night, with a table of how each ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polydesk_dagster.catalog import SERVICES, Daily, OnDemand, Service
from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import Installation
from polydesk_dagster.commands.run import as_object, run_service
from polydesk_dagster.commands.show import say
from polydesk_dagster.outcome import Outcome, Report, combine

WELL = {Outcome.OK, Outcome.NOTHING_TO_DO, Outcome.SKIPPED}


def order() -> list[Service]:
    """The scheduled services as the night runs them: the nightly ones by the clock, then the frequent ones."""
    scheduled = [service for service in SERVICES if not isinstance(service.cadence, OnDemand)]
    nightly = [service for service in scheduled if isinstance(service.cadence, Daily)]
    nightly.sort(key=lambda service: service.cadence.at if isinstance(service.cadence, Daily) else None)  # pyrefly: ignore[no-matching-overload]
    return nightly + [service for service in scheduled if not isinstance(service.cadence, Daily)]


def run(installation: Installation) -> list[dict[str, Any]]:
    """Run the night, showing progress on a terminal; returns one object a service, as ``run --json`` prints it."""
    results = []
    services = order()
    with _progress(len(services)) as advance:
        for service in services:
            advance(show.told().service(service.key))
            started, clock = datetime.now(UTC), monotonic()
            try:
                reports = run_service(installation, service, None, {})
                report = combine(each for _, each in reports)
            except Exception as error:  # noqa: BLE001 - one service that breaks must not hide how the others ended
                report = Report.failed("unexpected", {"error": type(error).__name__})
            results.append(as_object(service, None, report, started, monotonic() - clock))
    return results


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=show.err(), transient=True) as progress:
        task = progress.add_task("", total=total)
        shown = 0

        def advance(name: str) -> None:
            nonlocal shown
            progress.update(task, description=name, completed=shown)
            shown += 1

        yield advance


def tell(results: list[dict[str, Any]]) -> None:
    """The table of outcomes, with the first reason where something is not simply well."""
    columns = (*show.columns("service", "key", "ending", "what", "why"), "s")
    show.table(
        say("command.night"),
        columns,
        [
            (
                show.told().service(row["service"]),
                row["service"],
                show.outcome(row["outcome"]),
                show.counts(row["counts"]),
                _why(row),
                f"{row['seconds']:.1f}",
            )
            for row in results
        ],
    )


def _why(row: dict[str, Any]) -> str:
    reasons = [reason for reason in row["reasons"] if reason["code"] != "other_plans"]
    if not reasons or Outcome(row["outcome"]) in {Outcome.OK, Outcome.NOTHING_TO_DO}:
        return ""
    more = say("command.night.more", count=len(reasons) - 1) if len(reasons) > 1 else ""
    return f"{reasons[0]['text']}{more}"


def went_well(results: list[dict[str, Any]]) -> bool:
    """Whether nothing failed or was refused. What a service set aside for a person is that person's work, no fault."""
    return all(
        Outcome(row["outcome"]) in WELL
        or (Outcome(row["outcome"]) is Outcome.PARTIAL and row["counts"]["waiting"] and not row["counts"]["failed"])
        for row in results
    )
