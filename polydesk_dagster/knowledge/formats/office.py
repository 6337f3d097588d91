"""Word documents: their text without what is marked hidden, with the notes and text boxes that others skip."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from polydesk_dagster.archives import ArchiveTooLargeError, look_through
from polydesk_dagster.knowledge.formats.text import Loss, Text, UnreadableError, kreuzberg

UNPACKED = 400 * 1024**2
"""Bytes that an Office file may unpack to."""

FOLDER = {".docx": "word/", ".xlsx": "xl/"}

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_BODY = "word/document.xml"
_BESIDE = ("word/footnotes.xml", "word/endnotes.xml", _BODY)
_WORD = re.compile(r"\w+")


def check(data: bytes, suffix: str) -> None:
    """Whether this is an Office file of the kind that its name says, and of a bearable size.

    Raises:
        UnreadableError: if it is not.
    """
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise UnreadableError("encrypted")
        raise UnreadableError("legacy_format", suffix=suffix)
    try:
        names = look_through(data, UNPACKED)
    except ArchiveTooLargeError:
        raise UnreadableError("too_large", megabytes=UNPACKED // 1024**2) from None
    except zipfile.BadZipFile:
        raise UnreadableError("damaged" if data.startswith(b"PK") else "wrong_extension", suffix=suffix) from None
    if not any(name.startswith(FOLDER[suffix]) for name in names):
        raise UnreadableError("wrong_extension", suffix=suffix)


def read(data: bytes) -> Text:
    """The text of a ``.docx``.

    Raises:
        UnreadableError: if it has none.
    """
    check(data, ".docx")
    losses: list[Loss] = []
    try:
        parts = _parts(data)
        if hidden := sum(_hide(parts[name], _hidden_styles(data)) for name in parts):
            data = _replaced(data, parts)
            losses.append(Loss("hidden_text", hidden))
        text: str = kreuzberg(data, ".docx").content
        beside = [] if _BODY not in parts else _unsaid(parts, text)
    except (ET.ParseError, zipfile.BadZipFile, KeyError):
        raise UnreadableError("damaged") from None
    return Text([(None, "\n\n".join([text, *beside]))], None, losses)


def _parts(data: bytes) -> dict[str, ET.Element]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: _parsed(archive.read(name)) for name in _BESIDE if name in archive.namelist()}


def _parsed(data: bytes) -> ET.Element:
    for _, (prefix, uri) in ET.iterparse(io.BytesIO(data), events=["start-ns"]):  # noqa: S314 - expat bounds entities, the process the rest
        if not re.fullmatch(r"ns\d+", prefix):
            ET.register_namespace(prefix, uri)
    return ET.fromstring(data)  # noqa: S314 - see above


def _hidden_styles(data: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "word/styles.xml" not in archive.namelist():
            return set()
        styles = list(ET.fromstring(archive.read("word/styles.xml")).iter(f"{_W}style"))  # noqa: S314 - see above
    said = {style.get(f"{_W}styleId", ""): _vanishes(style.find(f"{_W}rPr")) for style in styles}
    above = {style.get(f"{_W}styleId", ""): _named(style, "basedOn") for style in styles}
    return {name for name in said if _inherited(name, said, above)}


def _inherited(name: str | None, said: Mapping[str, bool | None], above: Mapping[str, str | None]) -> bool:
    """Whether a style hides, by itself or by the one that it is based on."""
    for _ in range(20):  # one may be based on itself
        if name is None or name not in said:
            return False
        if (hides := said[name]) is not None:
            return hides
        name = above[name]
    return False


def _named(properties: ET.Element | None, kind: str) -> str | None:
    named = None if properties is None else properties.find(f"{_W}{kind}")
    return None if named is None else named.get(f"{_W}val")


def _vanishes(properties: ET.Element | None) -> bool | None:
    """Whether these hide; None where they do not say."""
    mark = None if properties is None else properties.find(f"{_W}vanish")
    return None if mark is None else mark.get(f"{_W}val", "1") not in {"0", "false", "off"}


def _hide(part: ET.Element, styles: set[str]) -> int:
    """Take the text of hidden runs out; how many there were."""
    hidden = 0
    of_paragraph = {
        run: _named(paragraph.find(f"{_W}pPr"), "pStyle") in styles
        for paragraph in part.iter(f"{_W}p")
        for run in paragraph.iter(f"{_W}r")
    }
    for run in part.iter(f"{_W}r"):
        properties = run.find(f"{_W}rPr")
        hides = _vanishes(properties)
        if hides is None:
            hides = _named(properties, "rStyle") in styles or of_paragraph.get(run, False)
        if hides:
            texts = [text for text in run.findall(f"{_W}t") if (text.text or "").strip()]
            for text in texts:
                text.text = ""
            hidden += bool(texts)
    return hidden


def _replaced(data: bytes, parts: dict[str, ET.Element]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in source.namelist():
            copy.writestr(name, ET.tostring(parts[name], "utf-8") if name in parts else source.read(name))
    return target.getvalue()


def _unsaid(parts: dict[str, ET.Element], text: str) -> list[str]:
    """Paragraphs of notes and text boxes whose words the text does not hold in a row."""
    said = " ".join(_WORD.findall(text.replace("\\", "")))
    unsaid: dict[str, None] = {}
    for name, part in parts.items():
        boxes = part.iter(f"{_W}txbxContent") if name == _BODY else (part,)
        for box in boxes:
            for paragraph in box.iter(f"{_W}p"):
                line = "".join(each.text or "" for each in paragraph.iter(f"{_W}t")).strip()
                sequence = " ".join(_WORD.findall(line))
                if sequence and sequence not in said:
                    unsaid[line] = None
    return list(unsaid)
