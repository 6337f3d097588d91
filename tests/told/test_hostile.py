"""Whatever a name or a reason holds, no medium takes it for more than text: one property for each that we write."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from functools import cache
from html.parser import HTMLParser

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader, Template

from polydesk_dagster import inert
from polydesk_dagster.clinic.messages.provider import Outgoing
from polydesk_dagster.commands import show
from polydesk_dagster.outcome import Counts, Outcome, Report, Table
from polydesk_dagster.providers.letter import letter
from polydesk_dagster.runtime import alerts
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import metadata
from polydesk_dagster.told.records import fields
from polydesk_dagster.values import Named, Reason, Several
from polydesk_dagster.web import words
from polydesk_dagster.web.door import HERE
from polydesk_dagster.web.plans import sheet
from tests.words import ANY

PIECES = (
    "![x](/graphql?query=mutation)", "[a](javascript:alert(1))", "<script>alert(1)</script>", "<img src=x onerror=x>",
    '" onmouseover="x', "'", "&amp;", "{{ 7 * 7 }}", "{% raw %}", "{plan}", "%s", "</td></tr></table>", "<!--", "]]>",
    "\x1b[2J\x1b]0;x\x07", "\x9b31m", "\r\nBcc: x@example.org\r\n\r\n", "\u202egnp.exe", "\u2066", "\u200b", "\ufeff",
    "\u2028", "\x85", "\x00", "\ud800", "=HYPERLINK(1)", "+39", "-1", "@SUM(A1)", ";=1+1", "\t=1", "＝1", "\n", " ",
    'https://x.example/?a=1&b="<', "- ", "[red]", ":smile:", "[/]", "Ànna", "日本", "👩\u200d⚕️",
)  # fmt: skip
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(ANY, max_size=6), max_size=8).map("".join)
"""What somebody would write to get out of where text stands, mixed with whatever else there is."""
MANY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def report(text: str) -> Report:
    """A report that holds ``text`` wherever one can."""
    why = Reason("no_instant", {"given": text}, text or None)
    values = (text, Named(text, text), Several((text, why)), why, Reason(text, {"what": text}))
    rows = tuple((value, None, 1) for value in values)
    table = Table("reasons", ("clinic", "reason", "how_many"), rows, 9)
    return Report(Outcome.PARTIAL, Counts(updated=1), (why,), {"what_to_do": why, "known": text}, (table,))


def steering(text: str) -> list[str]:
    """Characters that a medium obeys instead of showing them."""
    return [
        each for each in text if each != "\n" and unicodedata.category(each) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    ]


def strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, inner in value.items():
                yield from (*strings(name), *strings(inner))
        case list() | tuple():
            for inner in value:
                yield from strings(inner)


@MANY
@given(HOSTILE)
def test_dagster_is_given_text_and_tables_and_never_what_it_would_draw(text: str) -> None:
    drawn = dg.MarkdownMetadataValue | dg.UrlMetadataValue | dg.NotebookMetadataValue | dg.PathMetadataValue
    for value in metadata(report(text)).values():
        assert not isinstance(value, drawn)
        shown = [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
        assert not [odd for each in strings(shown) for odd in steering(each)]


@MANY
@given(HOSTILE)
@pytest.mark.parametrize("width", [70, 160])
def test_a_terminal_is_given_nothing_that_it_obeys(width: int, text: str) -> None:
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(show, "out", lambda: show._console(file=shown, width=width))
        show.table(text, (text, "b"), [(text, show.Text(text)), (None, 1)])
        show.out().print(text, show.Text.assemble((text, "red"), text), style="bold")
    assert not steering(shown.getvalue())
    said = inert.as_json({"a": [text], text: None})
    assert (said.isprintable(), json.loads(said)) == (True, {"a": [text], text: None})


@MANY
@given(HOSTILE)
def test_a_letter_has_the_headers_that_we_gave_it_and_html_of_paragraphs(text: str) -> None:
    given_ = Outgoing("key", "anna@example.org", text, f"Gentile {text},\n{text}\n\n- {text}", reply_to="b@example.org")
    usual = Outgoing("key", "anna@example.org", "x", "x", reply_to="b@example.org")
    sender = ("Clinica <no@example.org>", "no@example.org", "anna@example.org")
    read, plain = (message_from_bytes(letter(each, *sender), policy=default) for each in (given_, usual))
    assert read.keys() == plain.keys()
    assert read["to"] == "anna@example.org"
    assert not [odd for value in read.values() for odd in steering(str(value))]
    words_, page = (part.get_content() for part in read.iter_parts())
    assert not steering(words_.replace("\r", ""))
    found = Structure.of(page)
    assert {name for name, _ in found.tags} <= {"html", "head", "meta", "title", "body", "p", "br", "ul", "li", "a"}
    assert all(href.startswith("https://") for name, given in found.tags if name == "a" for _, href in given)
    at = datetime(2026, 3, 29, tzinfo=UTC)
    mail = alerts.compose([alerts.Failure("run", text, text, at, Reason("no_instant", {"given": text}))], "https://x")
    letter(Outgoing(mail.key, "a@example.org", mail.subject, mail.body), *sender)


class Structure(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [(name, value or "") for name, value in attrs]))

    def handle_comment(self, data: str) -> None:
        self.tags.append((f"!{data}", []))

    @classmethod
    def of(cls, page: str) -> Structure:
        found = cls()
        found.feed(page)
        found.close()
        return found

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        return [(name, [attribute for attribute, _ in given]) for name, given in self.tags]


PAGE = """{% import "parts.html" as parts with context %}
<a href="/x/{{ text }}" title="{{ text }}">{{ text }}</a>{{ parts.full_report(t, report) }}
{% for name, value in fields %}<p>{{ name }}{{ value }}</p>{% endfor %}<label>{{ t.text(text, who=text) }}</label>"""


@cache
def page() -> Template:
    pages = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)
    pages.globals |= words.GLOBALS
    return pages.from_string(PAGE)


@MANY
@given(HOSTILE)
def test_a_page_has_the_elements_of_its_template_whatever_it_shows(text: str) -> None:
    template, t = page(), teller(page=True)

    def shape(given: str) -> list[tuple[str, list[str]]]:
        told = fields(t, {"name": given, "more": [given]})
        return Structure.of(template.render(t=t, text=given, report=report(given), fields=told)).shape

    assert shape(text or "y") == shape("x")


def test_no_template_switches_its_escaping_off() -> None:
    for path in (HERE / "templates").iterdir():
        assert not {"|safe", "| safe", "autoescape", "Markup"} & set(path.read_text().replace("}", " ").split()), path


@pytest.mark.slow
@MANY
@given(HOSTILE)
def test_no_cell_of_a_plan_s_file_is_a_formula(text: str) -> None:
    import openpyxl

    held = io.StringIO()
    csv.writer(held).writerows([["row", "key", "reason"], [1, inert.cell(text), inert.cell(f"x{text}")]])
    for delimiter in ",;":
        rows = csv.reader(io.StringIO(held.getvalue()), delimiter=delimiter)
        assert not [cell for row in rows for cell in row if cell.strip()[:1] in tuple("=+-@＝＋－＠")]
    cells = [cell for row in openpyxl.load_workbook(io.BytesIO(sheet(held))).active.iter_rows() for cell in row]
    assert "f" not in {cell.data_type for cell in cells}
