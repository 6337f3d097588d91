"""Pages of the web, read whole and in their own encoding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polydesk_dagster.knowledge.formats.text import Loss
from polydesk_dagster.knowledge.reading import Reader


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader


def test_a_page_of_the_web_is_whole(reader: Reader) -> None:
    """Navigation, forms and elements without end; what it hides is said."""
    page = (
        "<html><body><nav>Prelievi e tamponi</nav><h1>Digiuno</h1><p>Otto <b>ore</b>.</p><form><label>Cognome"
        "</label><select><option>mattina</option></select></form><p style='display: none'>testo che non si vede</p>"
        "<script>var no</script><p>Fine.</p></body></html>"
    )
    reading = reader.read(page.encode(), ".html")
    told = "\n".join(passage.text for passage in reading.passages)
    for words in ("Prelievi e tamponi", "Otto ore.", "Cognome", "mattina", "Fine."):
        assert words in told
    assert reading.losses == (Loss("hidden_text", 5),)
    deep = reader.read(("<b>x " * 5_000).encode(), ".html")
    assert sum(passage.text.count("x") for passage in deep.passages) == 5_000


def test_html_keeps_its_encoding_and_leaves_its_head(reader: Reader) -> None:
    page = (
        '<html><head><meta http-equiv="Content-Type" content="text/html; charset=windows-1252">'
        '<meta name="description" content="parole di servizio"><title>Città</title></head>'
        "<body><p>perché è già così</p></body></html>"
    )
    reading = reader.read(page.encode("cp1252"), ".html")
    assert (reading.title, [p.text for p in reading.passages]) == ("Città", ["perché è già così"])
    greek = '<meta charset="iso-8859-7"><p>\u03b1\u03b2\u03b3 esame</p>'.encode("iso-8859-7")
    assert reader.read(greek, ".html").passages[0].text == "\u03b1\u03b2\u03b3 esame"
