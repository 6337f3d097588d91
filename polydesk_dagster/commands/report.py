"""``polydesk report``: a clinic's figures for a period, as a page or a spreadsheet for its manager."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import typer

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say, told


def report(
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="DATE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE")],
    clinic: Annotated[str | None, typer.Option(metavar="CODE")] = None,
) -> None:
    """Scrive il resoconto di un periodo: appuntamenti, occupazione, assenze, attese, valore, prenotazione online."""
    from polydesk_dagster.clinic.clinics import clinic_id
    from polydesk_dagster.clinic.statistics import manager
    from polydesk_dagster.clinic.statistics.reading import Period
    from polydesk_dagster.told import report as shown

    if output.suffix not in {".html", ".xlsx"}:
        raise typer.BadParameter(say("command.report.wrong_file", file=str(output)))
    days: tuple[date, date] = (first.date(), last.date())
    if days[1] < days[0]:
        raise typer.BadParameter(say("command.report.backwards"))
    if not output.parent.is_dir():
        raise typer.BadParameter(say("command.report.no_folder", folder=str(output.parent)))
    with opened() as installation, installation.engine.connect() as connection:
        gathered = manager.gather(connection, Period(*days, clinic_id(connection, clinic)))
    if output.suffix == ".html":
        output.write_text(shown.as_html(gathered, told()), encoding="utf-8")
    else:
        shown.write_xlsx(gathered, output, told())
    show.out().print(say("command.report.written", file=str(output)))
