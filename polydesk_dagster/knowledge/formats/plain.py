"""Text files and HTML, in whatever encoding they say or show to be in."""

from __future__ import annotations

import codecs
import html
import re

from polydesk_dagster.knowledge.formats.text import Text, UnreadableError, kreuzberg

TEXT = {".md", ".markdown", ".txt", ".rst", ".csv", ".html", ".htm"}

_BINARY = (b"%PDF-", b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\x89PNG", b"\xff\xd8\xff", b"MZ", b"\x7fELF")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_HEAD = re.compile(r"<head\b[^>]*>.*?</head\s*>", re.IGNORECASE | re.DOTALL)
_META = re.compile(r"<(?:meta|link|base)\b[^>]*>", re.IGNORECASE)
_CHARSET = re.compile(rb"""<meta\b[^>]*?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]+)""", re.IGNORECASE)
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
        text = re.sub(r"^(?=[#|>])", r"\\", text, flags=re.MULTILINE)
    return Text([(None, text)])


def _html(data: bytes) -> Text:
    declared = _CHARSET.search(data[:DECLARED_WITHIN])
    text = decode(data, declared.group(1).decode("ascii") if declared else None)
    found = _TITLE.search(text)
    title = " ".join(html.unescape(found.group(1)).split()) or None if found else None
    body = _META.sub("", _TITLE.sub("", _HEAD.sub("", text)))
    return Text([(None, _FRONT_MATTER.sub("", kreuzberg(body.encode(), ".html").content))], title)


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
