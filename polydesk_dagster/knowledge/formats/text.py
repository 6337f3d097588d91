"""What every format gives: pages of Markdown, and what of the document is not in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class UnreadableError(Exception):
    """A document that reading again cannot help; ``code`` and ``values`` say why."""

    def __init__(self, code: str, **values: str | int) -> None:
        super().__init__(code)
        self.code = code
        self.values = values


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of a document that is not in its text; ``pages`` where the document has pages."""

    code: str
    count: int = 1
    pages: tuple[int, ...] = ()
    sure: int | None = None
    """In hundredths, of what was read from a picture."""


@dataclass(slots=True)
class Text:
    """The text of a document: pages (number from 1, or None, and Markdown), title, losses."""

    pages: list[tuple[int | None, str]]
    title: str | None = None
    losses: list[Loss] = field(default_factory=list)


MIME = {
    ".pdf": "application/pdf",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".html": "text/html",
    ".rst": "text/x-rst",
    ".csv": "text/csv",
}


def kreuzberg(data: bytes, suffix: str, *, pages: bool = False) -> Any:
    """What kreuzberg extracts of a file of this kind, as Markdown.

    Raises:
        UnreadableError: for one that is encrypted or damaged.
    """
    import kreuzberg as library

    config = library.ExtractionConfig(
        use_cache=False,
        output_format="markdown",
        disable_ocr=True,  # pyrefly: ignore[unexpected-keyword] - its type stub lacks it
        enable_quality_processing=False,
        html_options={"preprocessing": {"enabled": False, "remove_navigation": False, "remove_forms": False}},
        pages=library.PageConfig(extract_pages=True) if pages else None,
    )
    try:
        return library.extract_bytes_sync(data, MIME[suffix], config=config)
    except library.KreuzbergError as error:
        text = str(error).lower()
        if "password" in text or "encrypt" in text:
            raise UnreadableError("encrypted") from None
        raise UnreadableError("damaged") from None
