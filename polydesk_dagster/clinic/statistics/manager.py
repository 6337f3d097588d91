"""The manager's report of a clinic and a period: one HTML page that needs nothing else, or a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.clinic.statistics import pictures, reading
from polydesk_dagster.clinic.statistics.reading import Period
from polydesk_dagster.clinic.statistics.views import VIEWS
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Table

ROME = ZoneInfo("Europe/Rome")

_PAGE = """<!doctype html>
<html lang="it"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
h3 { font-size: 1rem } img { max-width: 100% }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dt { color: #555 } dd { margin: 0; font-weight: 600 } .note { color: #555; font-size: .9em }
table { border-collapse: collapse; width: 100%; font-size: .9em } th, td { padding: .2rem .5rem; text-align: left }
th { border-bottom: 1px solid #888 } td { border-bottom: 1px solid #eee } td + td { font-variant-numeric: tabular-nums }
@media print { h2 { break-after: avoid } table, img { break-inside: avoid } }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ period }}</p>
<p class="note">{{ note }}</p>
{% for section in sections %}
<h2>{{ section.label }}</h2>
<p class="note">{{ section.description }}</p>
<img alt="{{ section.label }}" src="{{ section.picture }}">
<dl>{% for label, value in section.figures.items() %}<dt>{{ label }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% for table in section.tables if table.rows %}
<h3>{{ table.key }}</h3>
<table><thead><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ "" if cell is none else cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endfor %}
{% endfor %}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One statistic of the report."""

    label: str
    description: str
    png: bytes
    figures: dict[str, str | int | float]
    tables: tuple[Table, ...]

    @property
    def picture(self) -> str:
        return pictures.data_uri(self.png)


@dataclass(frozen=True, slots=True)
class ManagerReport:
    """What is told; counts of clinical breakdowns below five are not in it."""

    title: str
    period: str
    note: str
    sections: tuple[Section, ...]


def gather(connection: sa.Connection, period: Period) -> ManagerReport:
    """Everything of the period, for its clinic or the chain.

    Raises:
        PermanentError: when the statistics were never refreshed, or the period ends before it begins.
    """
    if period.last < period.first:
        raise PermanentError(f"Il periodo finisce ({period.last}) prima di cominciare ({period.first}).")
    fresh = reading.freshness(connection)
    refreshed = [f.refreshed_at for f in fresh.values() if f.refreshed_at is not None]
    if not refreshed:
        raise PermanentError("Le statistiche non sono mai state calcolate: esegui «polydesk run refresh_statistics».")
    name = connection.scalar(sa.text("SELECT name FROM clinic WHERE id = :id"), {"id": period.clinic_id})
    overview = reading.overview(connection, period)
    sections = tuple(
        Section(
            view.label,
            view.description,
            view.picture(connection, period),
            dict(view.figures(overview)),
            tuple(table(connection, period) for table in view.tables),
        )
        for view in VIEWS.values()
    )
    waiting = sum(f.waiting for f in fresh.values())
    return ManagerReport(
        f"Attività di {name}" if name else "Attività di tutte le cliniche",
        f"Dal {period.first:%d/%m/%Y} al {period.last:%d/%m/%Y}",
        f"Aggiornato alle {_moment(min(refreshed))}"
        + (f"; {waiting} giorni modificati dopo non sono ancora contati" if waiting else "")
        + f". Nelle tabelle per prestazione e specialista i conteggi sotto {reading.SMALLEST} non sono riportati"
        f" («{reading.HIDDEN}», «{reading.WITHHELD}»).",
        sections,
    )


def _moment(instant: datetime) -> str:
    return f"{instant.astimezone(ROME):%H:%M del %d/%m/%Y}"


def as_html(report: ManagerReport) -> str:
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(title=report.title, period=report.period, note=report.note, sections=report.sections)


def write_xlsx(report: ManagerReport, target: Path) -> None:
    """A sheet of figures with the plots, then one sheet per table."""
    import pandas as pd

    with pd.ExcelWriter(target, engine="openpyxl") as writer:
        _summary(report, writer.book.create_sheet("Riepilogo"))
        for table in _tables(report):
            frame = pd.DataFrame(list(table.rows), columns=list(table.columns), dtype=object)
            name = table.key[:31]
            frame.to_excel(writer, sheet_name=name, index=False, freeze_panes=(1, 0))
            _dress(writer.sheets[name])


def _summary(report: ManagerReport, sheet: Any) -> None:
    import io

    from openpyxl.drawing.image import Image
    from openpyxl.styles import Font

    for line in (report.title, report.period, report.note):
        sheet.append([line])
    sheet["A1"].font = Font(bold=True, size=14)
    sheet.column_dimensions["A"].width = 34
    for section in report.sections:
        sheet.append([])
        sheet.append([section.label])
        sheet.cell(sheet.max_row, 1).font = Font(bold=True, size=12)
        for label, value in section.figures.items():
            sheet.append([label, value])
        picture = Image(io.BytesIO(section.png))
        sheet.add_image(picture, f"A{sheet.max_row + 1}")
        for _ in range(int(picture.height / 18)):
            sheet.append([""])


def _dress(sheet: Any) -> None:
    """Columns as wide as their titles; a name that begins like a formula stays a name."""
    for column in sheet.iter_cols():
        sheet.column_dimensions[column[0].column_letter].width = max(14, len(str(column[0].value)) + 2)
        for cell in column:
            if isinstance(cell.value, str):
                cell.data_type = "s"


def _tables(report: ManagerReport) -> Iterator[Table]:
    for section in report.sections:
        yield from section.tables
