"""The catalogues and the desk's guide use the words of ``docs/glossary.md``, and none that it rules out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from babel.messages.pofile import read_po

from polydesk_dagster.told.catalogue import FOLDER

DOCS = Path(__file__).resolve().parents[2] / "docs"
GLOSSARY = DOCS / "glossary.md"
GUIDE = DOCS / "servizi.md"
"""What the desk reads, in Italian."""


TYPED = re.compile(r"«[^»]*»|--[\w-]+|\w+=|\{\w+\}")
"""What is to be typed, or is somebody else's name: no words of ours."""


def _ruled_out() -> list[str]:
    rows = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("| ") and "---" not in line][1:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert all(len(row) == 5 for row in cells)
    return [word.strip() for row in cells for word in row[4].split(",") if word.strip()]


def _italian() -> dict[str, str]:
    found = {}
    for path in sorted((FOLDER / "it").glob("*.po")):
        with path.open("rb") as file:
            for message in read_po(file, "it"):
                if message.id:
                    name = message.id if isinstance(message.id, str) else message.id[0]
                    texts = message.string if isinstance(message.string, tuple) else (message.string,)
                    found[name] = TYPED.sub("", " ".join(texts))
    for number, line in enumerate(GUIDE.read_text().splitlines(), start=1):
        found[f"{GUIDE.name}:{number}"] = re.sub(r"`[^`]*`", "", TYPED.sub("", line))
    return found


@pytest.mark.parametrize("word", _ruled_out())
def test_a_word_that_is_ruled_out_is_not_said(word: str) -> None:
    said = {name for name, text in _italian().items() if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)}
    assert not said
