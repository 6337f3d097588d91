"""What each sheet of a practice's workbook holds, in the order in which one can refer to the one before.

A row is matched by its number, which an exported workbook carries, or else by what people know it by. A row that is not
in the workbook is left alone; a column that is not there too.
"""

from __future__ import annotations

from polydesk_dagster.sources.practice.sheets import offer, people, times
from polydesk_dagster.sources.practice.sheets.shape import CLINIC, Column, Members, Sheet

__all__ = ["BY_KEY", "CLINIC", "SHEETS", "Column", "Members", "Sheet"]

SHEETS: tuple[Sheet, ...] = (*offer.SHEETS, *times.SHEETS, *people.SHEETS)

BY_KEY = {sheet.key: sheet for sheet in SHEETS}
