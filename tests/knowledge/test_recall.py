"""Word by word beside a second reader: what a page says is in its passages, or the page is named."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from polydesk_dagster.knowledge.reading import Reader, Reading
from polydesk_dagster.knowledge.text import words
from tests.knowledge.paper import SCANNED, pdf

LEAST = 0.98
RUNNING = words("Accordo interregionale per la compensazione della mobilità sanitaria pagina di 131")
"""The header of the real PDF, which its first page tells."""
GLYPHS = {"checkbld"}
"""What the second reader makes of a ticked box."""
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader


def second_reader(data: bytes, every: int = 1) -> Iterator[tuple[int, str]]:
    """Number and text of each page of a PDF, or of one in so many."""
    from pypdf import PdfReader

    pages = PdfReader(io.BytesIO(data)).pages
    for number in range(1, len(pages) + 1, every):
        yield number, pages[number - 1].extract_text()


def recall(reading: Reading, page: int | None, second: str, *, but: Mapping[str, int] = Counter()) -> float:
    """Of the words that a second reader sees on a page, the share that its passages hold; a word that it cuts in two is
    found in what stands together."""
    here = [words("\n".join((*passage.headings, passage.text))) for passage in reading.passages if passage.page == page]
    seen = Counter(words(second)) - Counter(but)
    missing = seen - Counter(word for said in here for word in said)
    together = "".join(word for said in here for word in said)
    lost = sum(count for word, count in missing.items() if word not in together and word not in GLYPHS)
    return 1 - lost / max(1, seen.total())


@pytest.mark.slow
def test_every_page_of_a_real_pdf(reader: Reader, shared_data: Path) -> None:
    data = (shared_data / "kb" / "mobilita_sanitaria_2012.pdf").read_bytes()
    reading = reader.read(data, ".pdf")
    for number, text in second_reader(data, every=4):
        assert recall(reading, number, text, but=Counter([*RUNNING, str(number)])) >= LEAST, number


@pytest.mark.parametrize("name", ["CIR_FOIA_REVe", "faq-diciottenni", "faq-esercenti", "linee-guida-esercenti"])
def test_every_word_of_a_real_word_document(reader: Reader, shared_data: Path, name: str) -> None:
    data = (shared_data / "kb" / f"{name}.docx").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        body = ET.fromstring(archive.read("word/document.xml"))
    paragraphs = ("".join(text.text or "" for text in each.iter(f"{_W}t")) for each in body.iter(f"{_W}p"))
    assert recall(reader.read(data, ".docx"), None, "\n".join(paragraphs)) >= LEAST


def test_made_pages_are_whole_or_named(reader: Reader) -> None:
    lines = [[f"Esame {n}: digiuno da almeno {n} ore.", f"Costa {n},50 euro."] for n in range(1, 9)]
    data = pdf([*lines[:5], SCANNED, *lines[5:]])
    reading = reader.read(data, ".pdf")
    named = {page for loss in reading.losses for page in loss.pages}
    assert named == {6}
    for number, text in second_reader(data):
        assert number in named or recall(reading, number, text) >= LEAST, number
