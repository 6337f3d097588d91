"""The words of a practice's workbook, in every language of ours: whoever writes one may use any of them."""

from __future__ import annotations

from functools import cache

from polydesk_dagster.sources.practice.cells import DOMAINS, folded
from polydesk_dagster.sources.practice.exporting import GUIDE, heading
from polydesk_dagster.sources.practice.reading import Words
from polydesk_dagster.sources.practice.sheets import SHEETS
from polydesk_dagster.told import teller
from polydesk_dagster.told.catalogue import LANGUAGES


@cache
def words() -> Words:
    """What sheets, headings and terms are called, by what a person writes, folded; our own codes are understood too."""
    tellers = [teller(language) for language in LANGUAGES]
    titles = {folded(t.term("sheet", key)): key for t in tellers for key in (GUIDE, *(sheet.key for sheet in SHEETS))}
    headings = {
        sheet.key: {folded(heading(t, sheet, column)): column.key for t in tellers for column in sheet.columns}
        for sheet in SHEETS
    }
    also = {
        sheet.key: {
            folded(said): column.key
            for column in sheet.columns
            for t in tellers
            if t.knows(name := f"sheet_also.{sheet.key}.{column.key}")
            for said in t.text(name).split(";")
        }
        for sheet in SHEETS
    }
    terms = {
        domain: {folded(said): code for code in codes for said in (code, *(t.term(domain, code) for t in tellers))}
        for domain, codes in DOMAINS.items()
    }
    terms["yes_no"] |= {"x": "yes"}
    terms["weekday"] |= {said[:3]: code for said, code in terms["weekday"].items()}
    return Words(titles, headings, terms, also)
