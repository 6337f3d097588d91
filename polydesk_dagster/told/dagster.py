"""A report as an operator reads it on Dagster's page: metadata without Markdown, which could hold live images, but for
the addresses of our own pictures."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from polydesk_dagster.outcome import SHOWN_ROWS, Outcome, Report, Table
from polydesk_dagster.told import pictures
from polydesk_dagster.told.speaking import teller
from polydesk_dagster.values import Reason, Value


def metadata(report: Report) -> dict[str, dg.MetadataValue]:
    """Outcome, counts, figures, reasons and tables of ``report``, by Italian label."""
    t = teller()
    shown: dict[str, dg.MetadataValue] = {
        t.label("figure", "outcome"): dg.MetadataValue.text(t.outcome(report.outcome, preview=report.preview))
    }
    for key, number in report.counts.as_dict().items():
        shown[t.label("column", f"to_be.{key}" if report.preview else key)] = dg.MetadataValue.int(number)
    shown |= figures(report.figures)
    if report.plan_id is not None:
        shown[t.label("figure", "plan")] = dg.MetadataValue.int(report.plan_id)
    if report.reasons:
        shown[t.label("table", "reasons")] = _table(_reasons(report.reasons))
    for table in report.tables:
        shown[t.label("table", table.key)] = _table(table)
    return shown


def brief(report: Report) -> dict[str, dg.MetadataValue]:
    """What is told of one clinic of a run for many: the outcome with its counts in a sentence, the plan, and why where
    it is not well. The record of the run has all of it, and of a thousand clinics Dagster's storage keeps each word."""
    t = teller()
    shown: dict[str, dg.MetadataValue] = {t.label("figure", "outcome"): dg.MetadataValue.text(t.summary(report))}
    if report.plan_id is not None:
        shown[t.label("figure", "plan")] = dg.MetadataValue.int(report.plan_id)
    if report.reasons and report.outcome not in {Outcome.OK, Outcome.NOTHING_TO_DO}:
        shown[t.label("table", "reasons")] = _table(_reasons(report.reasons))
    return shown


def figures(given: Mapping[str, Value]) -> dict[str, dg.MetadataValue]:
    """Figures by Italian label; numbers stay numbers."""
    return {teller().label("figure", key): _figure(value) for key, value in given.items()}


def picture(run: str, key: str, label: str) -> dict[str, dg.MetadataValue]:
    """The picture ``key`` of a Dagster run under its Italian ``label``: its address at the door, which draws it when
    somebody looks at it."""
    title = teller().label("figure", label)
    return {title: dg.MetadataValue.md(f"![{title}]({pictures.address(run, key)})")}


def _figure(value: Value) -> dg.MetadataValue:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return dg.MetadataValue.text(teller().value(value))
    return dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(value)


def _reasons(reasons: tuple[Reason, ...]) -> Table:
    t = teller()
    rows = tuple((each.clinic or t.text("all_clinics"), each, each.count) for each in reasons)
    return Table("reasons", ("clinic", "reason", "how_many"), rows, len(rows))


def _table(table: Table) -> dg.MetadataValue:
    t = teller()
    titles = [t.label("column", key) for key in table.columns]
    rows: list[Mapping[str, str]] = [
        {title: "" if cell is None else t.value(cell) for title, cell in zip(titles, row, strict=True)}
        for row in table.rows[:SHOWN_ROWS]
    ]
    if left := table.total - len(rows):
        rows.append({title: t.text("more_rows", count=left) if title == titles[0] else "" for title in titles})
    schema = dg.TableSchema([dg.TableColumn(title, "string") for title in titles])
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema)
