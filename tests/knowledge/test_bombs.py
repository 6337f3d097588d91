"""Documents that cost far more than they weigh: each is refused by name, within what a document may take."""

from __future__ import annotations

import io
import zipfile
import zlib

import pytest

from polydesk_dagster.knowledge.formats.text import UnreadableError
from polydesk_dagster.knowledge.reading import MOST_STRETCHES, Reader, ReaderDiedError, stretches
from tests.knowledge.paper import file_of


def pdf(content: bytes = b"BT ET", filters: bytes = b"", *, kids: int = 1, own: bool = False, **more: bytes) -> bytes:
    """A PDF of one page, many times, with a stream that is packed, and other objects (``o6`` and ``o7``)."""
    body = b"<<%s/Length %d>>stream\n%s\nendstream" % (filters, len(content), content)
    drawn = b"/XObject<</X 6 0 R>>" if "o6" in more else b""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<<%s>>>>" % drawn
    shown = b"2 0 R" if own else b"5 0 R " * kids
    tree = b"<</Type/Pages/Count %d/Kids[%s]>>" % (kids, shown)
    catalog, nothing = b"<</Type/Catalog/Pages 2 0 R/Y 7 0 R>>", b"null"
    objects = {1: catalog, 2: tree, 3: nothing, 4: body, 5: page, 6: nothing, 7: nothing}
    return file_of(objects | {int(name[1:]): value for name, value in more.items()})


def packed(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = zlib.compress(data, 9)
    return data


def docx(text: bytes) -> bytes:
    buffer = io.BytesIO()
    types = b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", types)
        archive.writestr("word/document.xml", text)
    return buffer.getvalue()


LAUGHS = (
    b'<!DOCTYPE w [<!ENTITY a "haha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9))
    + b']><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    b"<w:body><w:p><w:r><w:t>&j;</w:t></w:r></w:p></w:body></w:document>"
)
WITHIN_ITSELF = (
    b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 6 0 R>>>>/Length 5>>stream\n/X Do\nendstream"
)
HUGE = (
    b"<</Type/XObject/Subtype/Image/Width 60000/Height 60000/ColorSpace/DeviceRGB/BitsPerComponent 8/Length 1>>"
    b"stream\n0\nendstream"
)
FLATE = b"/FlateDecode"
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "unpacks far": (pdf(packed(bytes(40_000_000)), b"/Filter" + FLATE), ".pdf", "no_text"),
    "unpacks far twice": (pdf(packed(bytes(40_000_000), 2), b"/Filter[%s]" % (FLATE * 2)), ".pdf", "no_text"),
    "stacked": (pdf(packed(b"BT ET", 20), b"/Filter[%s]" % (FLATE * 20)), ".pdf", "no_text"),
    "a page within itself": (pdf(own=True), ".pdf", "damaged"),
    "a form within itself": (pdf(b"/X Do", o6=WITHIN_ITSELF), ".pdf", "no_text"),
    "a picture of ten gigabytes": (pdf(b"/X Do", o6=HUGE), ".pdf", "scan"),
    "deep": (pdf(o7=b"[" * 100_000 + b"]" * 100_000), ".pdf", "no_text"),
    "a number without end": (pdf(o7=b"9" * 100_000), ".pdf", "no_text"),
    "entities": (docx(LAUGHS), ".docx", "damaged"),
    "NUL": (b"# a\0b\n\nciao", ".md", "encoding"),
}


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.mark.slow
@pytest.mark.parametrize(("data", "suffix", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_document_that_would_cost_without_end_is_refused_by_name(
    reader: Reader, data: bytes, suffix: str, code: str
) -> None:
    with reader, pytest.raises(UnreadableError) as caught:
        reader.read(data, suffix)
    assert caught.value.code == code


def test_elements_within_elements_without_end_are_read(reader: Reader) -> None:
    with reader:
        (passage,) = reader.read(b"<div>" * 100_000 + b"x", ".html").passages
    assert passage.text == "x"


def test_pages_that_are_only_said_to_be_there_buy_no_time() -> None:
    endless = pdf(kids=100_000)
    assert stretches(endless) <= MOST_STRETCHES
    assert stretches(b"%PDF-1.7 /Count 999999 ") < 1.1
    with Reader(patience=0.02) as hurried, pytest.raises(ReaderDiedError, match="reader_slow"):
        hurried.read(endless, ".pdf")
