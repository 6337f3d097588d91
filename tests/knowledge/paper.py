"""PDF files made for tests, page by page: lines of text, a picture instead, fields of a form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SCANNED = None
"""A page that holds nothing but a picture."""

LETTERHEAD = "Poliambulatorio Santa Lucia - Direzione Sanitaria"
"""A line that stands over the picture of a page, if it is alone, or beside text."""

FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"
PICTURE = (
    b"<</Type/XObject/Subtype/Image/Width 1/Height 1/ColorSpace/DeviceGray/BitsPerComponent 8/Length 1>>stream\n\x80\n"
    b"endstream"
)


def pdf(pages: Sequence[Sequence[str] | None], fields: Mapping[str, str] | None = None) -> bytes:
    """A PDF of these pages (lines, top to bottom, or ``SCANNED``); ``fields`` (label to value) stand on the first."""
    objects: dict[int, bytes] = {3: FONT, 4: PICTURE}
    widgets = [_add(objects, _widget(number, *field)) for number, field in enumerate((fields or {}).items())]
    kids = []
    for number, lines in enumerate(pages):
        drawn = _drawn(lines)
        content = _add(objects, b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn))
        annotations = f"/Annots[{_references(widgets)}]" if widgets and not number else ""
        picture = "/XObject<</I 4 0 R>>" if lines is SCANNED or LETTERHEAD in lines else ""
        page = f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents {content} 0 R{annotations}"
        kids.append(_add(objects, f"{page}/Resources<</Font<</F 3 0 R>>{picture}>>>>".encode()))
    form = f"/AcroForm<</Fields[{_references(widgets)}]>>" if widgets else ""
    objects[1] = f"<</Type/Catalog/Pages 2 0 R{form}>>".encode()
    objects[2] = f"<</Type/Pages/Count {len(kids)}/Kids[{_references(kids)}]>>".encode()
    return file_of(objects)


def _add(objects: dict[int, bytes], body: bytes) -> int:
    number = max(objects) + 1
    objects[number] = body
    return number


def _references(numbers: Sequence[int]) -> str:
    return " ".join(f"{number} 0 R" for number in numbers)


def _widget(number: int, label: str, value: str) -> bytes:
    top = 700 - 30 * number
    named = f"/T({_escaped(label)})/V({_escaped(value)})"
    return f"<</Type/Annot/Subtype/Widget/FT/Tx{named}/Rect[50 {top} 300 {top + 20}]/F 4>>".encode("cp1252")


def _drawn(lines: Sequence[str] | None) -> bytes:
    if lines is SCANNED:
        return b"q 500 0 0 700 50 50 cm /I Do Q"
    behind = "q 500 0 0 700 50 50 cm /I Do Q " if LETTERHEAD in lines else ""
    rows = [f"1 0 0 1 50 {780 - 18 * row} Tm ({_escaped(line)}) Tj" for row, line in enumerate(lines)]
    return f"{behind}BT /F 11 Tf {' '.join(rows)} ET".encode("cp1252")


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def file_of(objects: Mapping[int, bytes]) -> bytes:
    data = b"%PDF-1.4\n"
    places = []
    for number, body in sorted(objects.items()):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    rows = b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, rows)
    return data + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
