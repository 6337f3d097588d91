"""Text files and HTML, in whatever encoding they say or show to be in."""

from __future__ import annotations

import codecs
import html
import re
from collections import Counter
from html.parser import HTMLParser

from polydesk_dagster.knowledge.formats.text import Loss, Text, UnreadableError, kreuzberg
from polydesk_dagster.knowledge.text import words

TEXT = {".md", ".markdown", ".txt", ".rst", ".csv", ".html", ".htm"}

_BINARY = (b"%PDF-", b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\x89PNG", b"\xff\xd8\xff", b"MZ", b"\x7fELF")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_HEAD = re.compile(r"<head\b[^>]*>.*?</head\s*>", re.IGNORECASE | re.DOTALL)
_META = re.compile(r"<(?:meta|link|base)\b[^>]*>", re.IGNORECASE)
_CHARSET = re.compile(rb"""<meta\b[^>]*?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]+)""", re.IGNORECASE)
_WORDLESS = frozenset({"script", "style", "template", "noscript"})
_VOID = frozenset({"area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})
_INLINE = frozenset(
    {"a", "abbr", "b", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub", "sup", "u", "wbr"}
)
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
LOST_SHARE = 0.02
"""Words of a page that may be missing from what was read of it with its headings and tables."""

DECLARED_WITHIN = 4_096
"""Bytes at a page's start in which its encoding must be declared to count; the standard asks for 1,024."""


def read(data: bytes, suffix: str) -> Text:
    """The text of a file of one of the ``TEXT`` kinds.

    Raises:
        UnreadableError: if it is something else, or its encoding is none.
    """
    if data.startswith(_BINARY):
        raise UnreadableError("wrong_extension", suffix=suffix)
    if suffix in {".html", ".htm"}:
        return _html(data)
    text = decode(data)
    if suffix in {".rst", ".csv"}:
        text = kreuzberg(text.encode(), suffix).content
    elif suffix in {".md", ".markdown"}:
        text = _FRONT_MATTER.sub("", text)
    else:
        text = _escaped(text)
    return Text([(None, text)])


def _escaped(text: str) -> str:
    """Text whose lines are no headings, tables or quotations, however they begin."""
    return re.sub(r"^(?=[#|>])", r"\\", text, flags=re.MULTILINE)


def _html(data: bytes) -> Text:
    declared = _CHARSET.search(data[:DECLARED_WITHIN])
    text = decode(data, declared.group(1).decode("ascii") if declared else None)
    found = _TITLE.search(text)
    title = " ".join(html.unescape(found.group(1)).split()) or None if found else None
    body = _META.sub("", _TITLE.sub("", _HEAD.sub("", text)))
    read = _FRONT_MATTER.sub("", kreuzberg(body.encode(), ".html").content)
    second = _Second()
    second.feed(body)
    second.close()
    shown = "".join(second.shown)
    lost = Counter(words(shown)) - Counter(words(read))
    if lost.total() > LOST_SHARE * len(words(shown)):  # elements within elements without end: their words, then
        read = _escaped(shown)
    hidden = len(words("".join(second.hidden)))
    return Text([(None, read)], title, [Loss("hidden_text", hidden)] if hidden else [])


class _Second(HTMLParser):
    """A page's words once more, in order, apart what it hides."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.hidden: list[str] = []
        self._within: tuple[str, bool] | None = None
        """The outermost element that is not shown, and whether it has words."""
        self._deep = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._within is None:
            given = dict(attrs)
            unseen = "hidden" in given or bool(_UNSEEN.search(given.get("style") or ""))
            if tag not in _VOID and (unseen or tag in _WORDLESS):
                self._within, self._deep = (tag, tag not in _WORDLESS), 1
            elif tag not in _INLINE:
                self.shown.append("\n")
        elif tag == self._within[0]:
            self._deep += 1

    def handle_endtag(self, tag: str) -> None:
        if self._within is not None and tag == self._within[0]:
            self._deep -= 1
            self._within = self._within if self._deep else None
        elif self._within is None and tag not in _INLINE:
            self.shown.append("\n")

    def handle_data(self, data: str) -> None:
        if self._within is None:
            self.shown.append(data)
        elif self._within[1]:
            self.hidden.append(f" {data}")


def decode(data: bytes, declared: str | None = None) -> str:
    """Text of an unknown encoding: UTF-8 or UTF-16 by their marks, as declared, UTF-8, else Windows-1252 if that makes
    sense.

    Raises:
        UnreadableError: if none does.
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    marked = next((name for mark, name in marks.items() if data.startswith(mark)), None)
    texts = (_decoded(data, name) for name in (marked, declared, "utf-8", "cp1252") if name)
    text = next((text for text in texts if text is not None), None)
    if text is None or len(_CONTROL.findall(text)) > len(text) // 200:
        raise UnreadableError("encoding")
    return _CONTROL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode("cp1252" if codecs.lookup(encoding).name == "iso8859-1" else encoding)
    except (UnicodeDecodeError, LookupError):
        return None
