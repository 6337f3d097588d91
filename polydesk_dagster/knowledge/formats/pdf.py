"""PDF: the text of its pages, with the values of its form's fields, and a verdict on every page."""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polydesk_dagster.knowledge.formats import ocr
from polydesk_dagster.knowledge.formats.text import Loss, Text, UnreadableError, kreuzberg

if TYPE_CHECKING:
    from pypdf import PdfReader

LETTERS_A_PAGE = 16
"""Fewer letters than this on a page that holds a picture, and the picture is what it says."""

LETTERS_BESIDE = 150
"""Fewer letters than this beside a picture over most of the page, and they are its letterhead."""

MOST_OF_IT = 0.5
"""Of a page's area."""

EDGE = 2
"""Lines at a page's top and foot among which headers and footers stand."""

LEAST_REPEATS = 4

_NUMBERED = r"\d{1,4}\s*(?:di|of|von|/)\s*\d{1,4}"
_WORD_FOR_PAGE = r"(?:pag(?:ina|\.)?|page|seite|p\.)"
_PAGE_NUMBER = re.compile(rf"[-–—|•\s]*{_WORD_FOR_PAGE}?\s*(?:{_NUMBERED}|\d{{1,4}})[-–—|•\s]*", re.IGNORECASE)
"""A line that says which page it is, and nothing else."""
_COUNTED_PAGE = re.compile(
    rf"\b{_WORD_FOR_PAGE}\s*(?:{_NUMBERED}|\d{{1,4}})|\b{_NUMBERED}\b(?!\s*[a-z€%])", re.IGNORECASE
)
"""The page's number within a line."""
_ROW = re.compile(r"\d\s*(?:€|%|euro\b|$)", re.IGNORECASE)
"""A line that holds an amount or ends in a number, as a price list's rows do."""


def read(data: bytes) -> Text:
    """The pages that have text.

    Raises:
        UnreadableError: if none has.
    """
    if b"%PDF-" not in data[:1024]:
        raise UnreadableError("wrong_extension", suffix=".pdf")
    result = kreuzberg(data, ".pdf", pages=True)
    pages = [(int(page["page_number"]), str(page["content"]).replace("\r", "")) for page in result.pages or []]
    pages, pictured, losses = _beside_the_text(data, pages)
    if pictured and ocr.engine() is not None:
        pages, pictured, seen = _seen(data, pages, pictured)
        losses += seen
    if pages and len(pictured) == len(pages) and all(_letters(text) < LETTERS_A_PAGE for _, text in pages):
        raise UnreadableError("scan", pages=len(pages))
    if pictured:
        losses.append(Loss("pages_without_text", len(pictured), tuple(pictured)))
    kept, dropped = without_running_lines(pages)
    if dropped:
        losses.append(Loss("running_lines", dropped))
    headings = [line.lstrip("# ").strip() for line in result.content.splitlines() if re.match(r"#{1,3} ", line)]
    return Text(_with_headings(kept, headings), None, losses)


def _beside_the_text(data: bytes, pages: list[tuple[int, str]]) -> tuple[list[tuple[int, str]], list[int], list[Loss]]:
    """The pages with their fields' values, those whose picture was not read, and what could not be looked at."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    letters = {number: _letters(text) for number, text in pages}
    bare = [number for number, count in letters.items() if count < LETTERS_A_PAGE]
    try:
        document = PdfReader(io.BytesIO(data))
        filled = fields(document)
        pictured = [
            number
            for number, count in letters.items()
            if (count < LETTERS_A_PAGE and _has_picture(document.pages[number - 1]))
            or (LETTERS_A_PAGE <= count < LETTERS_BESIDE and _pictured(document, number) >= MOST_OF_IT)
        ]
    except (PyPdfError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return pages, [n for n, text in pages if n in bare and not text.strip()], [Loss("form_unread")]
    with_fields = [
        (number, "\n\n".join([text, *(line for line in filled.get(number, ()) if line not in text)]))
        for number, text in pages
    ]
    return with_fields, [number for number in pictured if number not in filled], []


def _seen(
    data: bytes, pages: list[tuple[int, str]], pictured: Sequence[int]
) -> tuple[list[tuple[int, str]], list[int], list[Loss]]:
    """The pages with what an engine sees on those ``pictured``, those on which it sees nothing, and how sure it is."""
    from pypdf import PdfReader

    document = PdfReader(io.BytesIO(data))
    found = {number: _read_picture(document, number) for number in pictured[: ocr.MOST_PAGES]}
    seen = {number: each for number, each in found.items() if each is not None}
    told = []
    for code, numbers in (
        ("ocr", [number for number, each in seen.items() if each.sure >= ocr.DOUBTFUL]),
        ("ocr_doubtful", [number for number, each in seen.items() if each.sure < ocr.DOUBTFUL]),
    ):
        if numbers:
            sure = round(100 * sum(seen[number].sure for number in numbers) / len(numbers))
            told.append(Loss(code, len(numbers), tuple(numbers), sure))
    with_seen = [(n, f"{text}\n\n{seen[n].text}" if n in seen else text) for n, text in pages]
    return with_seen, [number for number in pictured if number not in seen], told


def _read_picture(document: PdfReader, number: int) -> ocr.Seen | None:
    page = document.pages[number - 1]
    try:
        if _pictured(document, number) < MOST_OF_IT:  # a logo, above words that are drawn
            return None
        pictures: list[Any] = [each.image for each in page.images if each.image is not None]
        return ocr.read([picture.rotate(-page.rotation, expand=True) for picture in pictures])
    except Exception:  # noqa: BLE001 - of whatever a picture is made: the page stays one that was not read
        return None


def _letters(text: str) -> int:
    return sum(c.isalpha() for c in text)


def fields(document: PdfReader) -> dict[int, list[str]]:
    """The filled fields of a form, ``label: value``, by the number of their page."""
    found: dict[int, list[str]] = defaultdict(list)
    if "/AcroForm" not in document.root_object:
        return found
    for number, page in enumerate(document.pages, 1):
        annotations = page.get("/Annots")
        for reference in annotations.get_object() if annotations is not None else ():
            widget = reference.get_object()
            if widget.get("/Subtype") == "/Widget" and (line := _field(widget)):
                found[number].append(line)
    return found


def _field(widget: Mapping[str, Any]) -> str | None:
    chain = list(_upwards(widget))
    value = next((each["/V"] for each in chain if "/V" in each), None)
    kind = next((each["/FT"] for each in chain if "/FT" in each), None)
    label = next((str(each[key]) for key in ("/TU", "/T") for each in chain if each.get(key)), "")
    if kind == "/Btn":
        value = "sì" if str(widget.get("/AS", value)) not in {"/Off", "None"} else None
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    text = str(value).strip() if value is not None else ""
    if not text:
        return None
    return f"{label}: {text}" if label else text


def _upwards(field: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for _ in range(20):  # a parent may be its own
        yield field
        parent = field.get("/Parent")
        if parent is None:
            return
        field = parent.get_object()


def _has_picture(page: Mapping[str, Any], depth: int = 3) -> bool:
    resources = page.get("/Resources")
    objects = resources.get_object().get("/XObject") if resources is not None else None
    for reference in objects.get_object().values() if objects is not None else ():
        drawn = reference.get_object()
        if drawn.get("/Subtype") == "/Image" or (
            depth and drawn.get("/Subtype") == "/Form" and _has_picture(drawn, depth - 1)
        ):
            return True
    return False


def _pictured(document: PdfReader, number: int) -> float:
    """The share of a page that its largest picture covers."""
    from pypdf.generic import ContentStream

    page = document.pages[number - 1]
    resources = page.get("/Resources")
    objects = resources.get_object().get("/XObject") if resources is not None else None
    contents = page.get_contents()
    if objects is None or contents is None:
        return 0.0
    objects = objects.get_object()
    scale, kept, largest = 1.0, [], 0.0  # a matrix scales areas by its determinant, and so do matrices in a row
    for operands, operator in ContentStream(contents, document).operations:
        match operator:
            case b"q":
                kept.append(scale)
            case b"Q":
                scale = kept.pop() if kept else 1.0
            case b"cm":
                a, b, c, d = (float(x) for x in operands[:4])
                scale *= abs(a * d - b * c)
            case b"Do" if objects[operands[0]].get_object().get("/Subtype") == "/Image":
                largest = max(largest, scale)
    return largest / (float(page.mediabox.width) * float(page.mediabox.height) or 1.0)


def without_running_lines(pages: Sequence[tuple[int, str]]) -> tuple[list[tuple[int, str]], int]:
    """Headers and footers out, and how many lines that were.

    Only among the first and last lines of a page, and only what says nothing anew: the same words on a third of the
    pages, which stay on the first of them, or the page's number. A line with any other number stays, and so do a
    table's row and what stands over rows: its heading.
    """
    heads = _heads([text for _, text in pages])
    edges = [{place: line for place, line in _edges(text).items() if _shape(line) not in heads} for _, text in pages]
    seen = Counter(shape for places in edges for shape in {_shape(line) for line in places.values()})
    least = max(LEAST_REPEATS, len(pages) // 3)
    running = {shape for shape, count in seen.items() if count >= least}
    told: set[str] = set()
    kept: list[tuple[int, str]] = []
    dropped = 0
    for (number, text), places in zip(pages, edges, strict=True):
        out = set()
        for place, line in places.items():
            shape = _shape(line)
            if shape in running and (shape in told or shape == "#"):
                out.add(place)
            told.add(shape)
        dropped += len(out)
        kept.append((number, "\n".join(line for place, line in enumerate(text.splitlines()) if place not in out)))
    return kept, dropped


def _heads(texts: Sequence[str]) -> set[str]:
    """What stands over two rows on most of the pages that it is on."""
    over: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for text in texts:
        lines = [line for line in text.splitlines() if line.strip()]
        for place, line in enumerate(lines[:EDGE]):
            shape = _shape(line)
            seen[shape] += 1
            below = lines[place + 1 : place + 3]
            over[shape] += len(below) == 2 and all(_ROW.search(row) for row in below)
    return {shape for shape, count in over.items() if 2 * count > seen[shape]}


def _edges(text: str) -> dict[int, str]:
    """Lines at the top and foot of a page that may be headers or footers, by their place; rows of tables are none."""
    places = [place for place, line in enumerate(text.splitlines()) if line.strip()]
    lines = text.splitlines()
    edge = dict.fromkeys([*places[:EDGE], *places[-EDGE:]])
    return {place: lines[place] for place in edge if not _says_something(lines[place])}


def _says_something(line: str) -> bool:
    return line.lstrip().startswith("|") or any(c.isdigit() for c in _shape(line))


def _shape(line: str) -> str:
    """What of a line repeats: all of it but the number of the page."""
    text = " ".join(line.split())
    return "#" if _PAGE_NUMBER.fullmatch(text) else _COUNTED_PAGE.sub("#", text)


def _with_headings(pages: list[tuple[int, str]], headings: Sequence[str]) -> list[tuple[int | None, str]]:
    """Lines that the type size makes headings become so, if they read like one: short, a capital or a number first,
    no sentence's end, not the same again and again."""
    times = Counter(re.sub(r"\s+", " ", heading.replace("\\", "")) for heading in headings)
    titles = {
        heading
        for heading, count in times.items()
        if count <= 2 and 4 <= len(heading) <= 90 and re.match(r"[A-ZÀ-Ý0-9]", heading) and heading[-1] not in ".;:,"
    }
    marked: list[tuple[int | None, str]] = []
    for number, text in pages:
        lines = [
            f"\n## {line.strip()}\n" if re.sub(r"\s+", " ", line.strip()) in titles else line.replace("#", "\\#")
            for line in text.splitlines()
        ]
        marked.append((number, "\n".join(lines)))
    return marked
