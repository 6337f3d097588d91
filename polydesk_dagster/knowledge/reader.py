"""The process that opens documents: one request a time on standard input, bounded in memory, replaceable when it dies.

A request is a line of JSON (``suffix``, ``size``) and ``size`` bytes; the answer is a line of JSON with ``pages``
(lists of number and Markdown) and ``title``, or ``code`` and ``message`` (Italian) for a document that has no text to
offer. Nothing of a document but its text leaves this process.
"""

from __future__ import annotations

import html
import io
import json
import os
import re
import resource
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

MEMORY = 4 * 1024**3
"""Bytes of address space; a document that asks for more ends this process, not the one that waits for it."""

UNPACKED = 400 * 1024**2
"""Bytes that an Office file may unpack to."""

LETTERS_A_PAGE = 16
"""Fewer letters than this per page, over a whole PDF, is a scan."""

LEGACY = {".doc", ".xls", ".ppt", ".rtf", ".odt", ".wpd", ".pages"}
TEXT = {".md", ".markdown", ".txt", ".rst", ".csv", ".html", ".htm"}
OFFICE = {".docx": "word/", ".xlsx": "xl/"}
MIME = {
    ".pdf": "application/pdf",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".html": "text/html",
    ".rst": "text/x-rst",
    ".csv": "text/csv",
}
_BINARY = (b"%PDF-", b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\x89PNG", b"\xff\xd8\xff", b"MZ", b"\x7fELF")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)
_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


class UnreadableError(Exception):
    """A document that reading again cannot help; ``code`` is stable, the message is for the operator."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read(data: bytes, suffix: str) -> dict[str, Any]:
    """The text of one document.

    Raises:
        UnreadableError: saying why there is none.
    """
    if not data.strip(b"\x00 \t\r\n\xef\xbb\xbf\xff\xfe"):
        raise UnreadableError("empty", "il file è vuoto")
    if suffix in LEGACY:
        raise UnreadableError("legacy_format", f"il formato «{suffix}» non è letto: salvalo come .docx, .xlsx o .pdf")
    if suffix not in TEXT and suffix not in MIME:
        raise UnreadableError("unsupported", f"il tipo «{suffix or 'senza estensione'}» non è tra quelli letti")
    if suffix in TEXT:
        return _read_text(data, suffix)
    if suffix == ".pdf":
        return _read_pdf(data)
    return _read_office(data, suffix)


def _read_text(data: bytes, suffix: str) -> dict[str, Any]:
    if data.startswith(_BINARY):
        raise UnreadableError("wrong_extension", f"il contenuto non è quello di un file «{suffix}»")
    text = decode(data)
    title = None
    if suffix in {".html", ".htm"}:
        if found := _HTML_TITLE.search(text):
            title = " ".join(html.unescape(found.group(1)).split()) or None
        result = _kreuzberg(_HTML_TITLE.sub("", text).encode(), MIME[".html"]).content
        text = _FRONT_MATTER.sub("", result)
    elif suffix in {".rst", ".csv"}:
        text = _kreuzberg(text.encode(), MIME[suffix]).content
    elif suffix in {".md", ".markdown"}:
        text = _FRONT_MATTER.sub("", text)
    else:
        text = re.sub(r"^(?=[#|>])", r"\\", text, flags=re.MULTILINE)
    return _answer([(None, text)], title)


def decode(data: bytes) -> str:
    """Text of an unknown encoding: UTF-8 or UTF-16 by their marks, UTF-8, else Windows-1252 if that makes sense.

    Raises:
        UnreadableError: if none does.
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    text = _decoded(data, encoding)
    if text is None:
        text = _decoded(data, "cp1252")
    if text is None or len(_CONTROL.findall(text)) > len(text) // 200:
        raise UnreadableError("encoding", "la codifica dei caratteri non si riconosce: salvalo in UTF-8")
    return _CONTROL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _read_pdf(data: bytes) -> dict[str, Any]:
    if b"%PDF-" not in data[:1024]:
        raise UnreadableError("wrong_extension", "il contenuto non è quello di un file «.pdf»")
    result = _kreuzberg(data, MIME[".pdf"], pages=True)
    pages = [(int(page["page_number"]), str(page["content"]).replace("\r", "")) for page in result.pages or []]
    letters = sum(c.isalpha() for _, text in pages for c in text)
    if letters < LETTERS_A_PAGE * max(1, len(pages)):
        raise UnreadableError(
            "scan", f"{_count_pages(len(pages))} senza testo: è una scansione, serve il riconoscimento ottico"
        )
    headings = [line.lstrip("# ").strip() for line in result.content.splitlines() if re.match(r"#{1,3} ", line)]
    return _answer(_with_headings(_without_running_lines(pages), headings), None)


def _count_pages(count: int) -> str:
    return "una pagina" if count == 1 else f"{count} pagine"


def _without_running_lines(pages: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Headers and footers out: first or last lines that, digits apart, stand on a third of the pages."""

    def shape(line: str) -> str:
        return re.sub(r"\d+", "0", line.strip())

    seen: Counter[str] = Counter()
    for _, text in pages:
        lines = [shape(line) for line in text.splitlines() if line.strip()]
        seen.update({*lines[:2], *lines[-2:]})
    running = {line for line, count in seen.items() if count >= max(4, len(pages) // 3)}
    return [
        (number, "\n".join(line for line in text.splitlines() if shape(line) not in running)) for number, text in pages
    ]


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


def _read_office(data: bytes, suffix: str) -> dict[str, Any]:
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise UnreadableError("encrypted", "il file è protetto da una password")
        raise UnreadableError("legacy_format", f"è un file di Office precedente al 2007 con estensione «{suffix}»")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        code = "damaged" if data.startswith(b"PK") else "wrong_extension"
        raise UnreadableError(code, f"il contenuto non è quello di un file «{suffix}» intero") from None
    if not any(member.filename.startswith(OFFICE[suffix]) for member in members):
        raise UnreadableError("wrong_extension", f"il contenuto non è quello di un file «{suffix}»")
    if sum(member.file_size for member in members) > UNPACKED:
        raise UnreadableError("too_large", f"aperto occuperebbe più di {UNPACKED // 1024**2} MB")
    return _answer([(None, _kreuzberg(data, MIME[suffix]).content)], None)


def _kreuzberg(data: bytes, mime: str, *, pages: bool = False) -> Any:
    import kreuzberg

    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        output_format="markdown",
        disable_ocr=True,  # type: ignore[call-arg]  # its type stub lacks it
        enable_quality_processing=False,
        pages=kreuzberg.PageConfig(extract_pages=True) if pages else None,
    )
    try:
        return kreuzberg.extract_bytes_sync(data, mime, config=config)
    except kreuzberg.KreuzbergError as error:
        text = str(error).lower()
        if "password" in text or "encrypt" in text:
            raise UnreadableError("encrypted", "il file è protetto da una password") from None
        raise UnreadableError("damaged", "il file è danneggiato o incompleto") from None


def _answer(pages: Sequence[tuple[int | None, str]], title: str | None) -> dict[str, Any]:
    if not any(c.isalpha() for _, text in pages for c in text):
        raise UnreadableError("no_text", "il file non contiene testo")
    return {"pages": list(pages), "title": title}


def serve(requests: BinaryIO, answer: Callable[[bytes], object]) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        request = json.loads(line)
        try:
            found: dict[str, Any] = read(requests.read(request["size"]), request["suffix"])
        except UnreadableError as error:
            found = {"code": error.code, "message": str(error)}
        except MemoryError:
            found = {"code": "too_large", "message": "la lettura chiede troppa memoria"}
        answer(json.dumps(found).encode() + b"\n")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer
    serve(sys.stdin.buffer, answers.write)


if __name__ == "__main__":
    main()
