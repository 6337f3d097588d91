"""The manager's report as one HTML page that needs nothing else, or as a spreadsheet."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from polydesk_dagster import inert
from polydesk_dagster.clinic.statistics.manager import ManagerReport
from polydesk_dagster.clinic.statistics.reading import HIDDEN, SMALLEST, WITHHELD
from polydesk_dagster.outcome import Table
from polydesk_dagster.told import pictures
from polydesk_dagster.told.speaking import Teller
from polydesk_dagster.values import Money, Share, Value

_PAGE = """<!doctype html>
<html lang="{{ language }}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
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
<h2>{{ section.name }}</h2>
<p class="note">{{ section.summary }}</p>
<img alt="{{ section.name }}" src="{{ section.picture }}">
<dl>{% for label, value in section.figures %}<dt>{{ label }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% for table in section.tables if table.rows %}
<h3>{{ table.title }}</h3>
<table><thead><tr>{% for column in table.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endfor %}
{% endfor %}
</body></html>
"""


def as_html(report: ManagerReport, t: Teller) -> str:
    from jinja2 import Environment

    title, period, note = head(report, t)
    sections = [
        {
            "name": t.text(f"statistic.{section.key}.name"),
            "summary": t.text(f"statistic.{section.key}.summary"),
            "picture": pictures.data_uri(pictures.png(section.drawing, t)),
            "figures": [(t.label("figure", key), t.value(value)) for key, value in section.figures.items()],
            "tables": [
                {
                    "title": t.label("table", table.key),
                    "columns": [t.label("column", column) for column in table.columns],
                    "rows": [[t.value(cell) for cell in row] for row in table.rows],
                }
                for table in section.tables
            ],
        }
        for section in report.sections
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(language=t.language, title=title, period=period, note=note, sections=sections)


def head(report: ManagerReport, t: Teller) -> tuple[str, str, str]:
    """Its title, its period, and what has to be known of its numbers."""
    title = t.text("report.of_clinic", clinic=report.clinic) if report.clinic else t.text("report.of_chain")
    period = t.text("report.period", first=report.period.first, last=report.period.last)
    waiting = t.text("report.waiting", count=report.waiting) if report.waiting else ""
    note = t.text("report.note", refreshed=report.refreshed, smallest=SMALLEST, hidden=HIDDEN, withheld=WITHHELD)
    return title, period, f"{note} {waiting}".strip()


def write_xlsx(report: ManagerReport, target: Path, t: Teller) -> None:
    """A sheet of figures with the plots, then one sheet per table; numbers stay numbers."""
    import pandas as pd

    with pd.ExcelWriter(target, engine="openpyxl") as writer:
        _summary(report, writer.book.create_sheet(t.text("report.summary")), t)
        for table in (table for section in report.sections for table in section.tables):
            name = t.label("table", table.key)[:31]
            _frame(table, t).to_excel(writer, sheet_name=name, index=False, freeze_panes=(1, 0))
            _dress(writer.sheets[name], table)


def _frame(table: Table, t: Teller) -> Any:
    import pandas as pd

    rows = [[_cell(cell, t) for cell in row] for row in table.rows]
    return pd.DataFrame(rows, columns=[t.label("column", key) for key in table.columns], dtype=object)


def _cell(value: Value, t: Teller) -> Any:
    match value:
        case int() | float() | Decimal():
            return value
        case Money():
            return value.amount
        case Share():
            return value.fraction
        case None:
            return None
        case _:
            return inert.cell(t.value(value))


def _summary(report: ManagerReport, sheet: Any, t: Teller) -> None:
    import io

    from openpyxl.drawing.image import Image
    from openpyxl.styles import Font

    for line in head(report, t):
        sheet.append([line])
    sheet["A1"].font = Font(bold=True, size=14)
    sheet.column_dimensions["A"].width = 34
    for section in report.sections:
        sheet.append([])
        sheet.append([t.text(f"statistic.{section.key}.name")])
        sheet.cell(sheet.max_row, 1).font = Font(bold=True, size=12)
        for key, value in section.figures.items():
            sheet.append([t.label("figure", key), _cell(value, t)])
            sheet.cell(sheet.max_row, 2).number_format = _format(value)
        picture = Image(io.BytesIO(pictures.png(section.drawing, t)))
        sheet.add_image(picture, f"A{sheet.max_row + 1}")
        for _ in range(int(picture.height / 18)):
            sheet.append([""])


def _format(value: Value) -> str:
    match value:
        case Money():
            return "#,##0.00 [$€-x-euro1]"
        case Share():
            return "0.0%"
        case _:
            return "General"


def _dress(sheet: Any, table: Table) -> None:
    """Columns as wide as their titles, money as money; a name that begins like a formula stays a name."""
    for at, column in enumerate(sheet.iter_cols()):
        sheet.column_dimensions[column[0].column_letter].width = max(14, len(str(column[0].value)) + 2)
        for cell, row in zip(column[1:], table.rows, strict=False):  # an empty frame leaves a row
            cell.number_format = _format(row[at])
            if isinstance(cell.value, str):
                cell.data_type = "s"
