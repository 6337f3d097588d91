"""The manager's report of a clinic and a period: what is in it; how it looks is told elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster.clinic.statistics import reading
from polydesk_dagster.clinic.statistics.drawing import Drawing
from polydesk_dagster.clinic.statistics.reading import Period
from polydesk_dagster.clinic.statistics.views import VIEWS
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Table
from polydesk_dagster.values import Instant, Value


@dataclass(frozen=True, slots=True)
class Section:
    """One statistic of the report, by its key."""

    key: str
    drawing: Drawing
    figures: Mapping[str, Value]
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class ManagerReport:
    """What is told; counts of clinical breakdowns below five are not in it."""

    clinic: str | None
    """Its name; None for the chain."""
    period: Period
    refreshed: Instant
    waiting: int
    """Days that changed since, and are not counted yet."""
    sections: tuple[Section, ...]


def gather(connection: sa.Connection, period: Period) -> ManagerReport:
    """Everything of the period, for its clinic or the chain.

    Raises:
        PermanentError: when the statistics were never refreshed, or the period ends before it begins.
    """
    if period.last < period.first:
        raise PermanentError("period_backwards", first=period.first, last=period.last)
    fresh = reading.freshness(connection)
    refreshed = [f.refreshed_at for f in fresh.values() if f.refreshed_at is not None]
    if not refreshed:
        raise PermanentError("statistics_never_refreshed")
    name = connection.scalar(sa.text("SELECT name FROM clinic WHERE id = :id"), {"id": period.clinic_id})
    overview = reading.overview(connection, period)
    sections = tuple(
        Section(
            view.key,
            view.picture(connection, period),
            view.figures(overview),
            tuple(table(connection, period) for table in view.tables),
        )
        for view in VIEWS.values()
    )
    return ManagerReport(name, period, Instant(min(refreshed)), sum(f.waiting for f in fresh.values()), sections)
