"""The process that opens documents: one request a time on standard input, bounded in memory, replaceable when it dies.

A request is a line of JSON (``suffix``, ``size``, ``cleared``, ``meaning``) and ``size`` bytes; the answer is a line of
JSON with ``passages`` (lists of text, headings, page, place), ``title`` and ``losses`` (lists of code, count, pages,
sure), or ``code`` and ``values`` for a document that has nothing to offer. Of a document nothing but its passages
leaves this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from polydesk_dagster.knowledge.embedding import Packaged
from polydesk_dagster.knowledge.formats import office, pdf, plain, sheets
from polydesk_dagster.knowledge.formats.text import Loss, Text, UnreadableError
from polydesk_dagster.knowledge.orders import Meaning
from polydesk_dagster.knowledge.screening import objections
from polydesk_dagster.knowledge.splitting import Page, Passage, bare, split, title_of
from polydesk_dagster.knowledge.text import words

MEMORY = 4 * 1024**3
"""Bytes of address space; a document that asks for more ends this process, not the one that waits for it."""

LOST_SHARE, LOST_LEAST = 0.02, 3
"""Words of a page that may be missing from its passages before that is told: a mark, a bullet's letter."""

LEGACY = {".doc", ".xls", ".ppt", ".rtf", ".odt", ".wpd", ".pages"}


def read(data: bytes, suffix: str, *, cleared: bool = False, meaning: Meaning | None = None) -> dict[str, Any]:
    """The passages of one document, those left out that a person must see first unless she has (``cleared``); with
    ``meaning`` that is decided by what sentences mean too.

    Raises:
        UnreadableError: saying why there is none.
    """
    text = _text(data, suffix)
    if not any(c.isalnum() for _, page in text.pages for c in page):
        raise UnreadableError("no_text")
    pages = [Page(markdown, number) for number, markdown in text.pages]
    passages = split(pages)
    losses = [*text.losses, *unsaid(pages, passages)]
    if not cleared:
        objected = objections(["\n".join([*passage.headings, passage.text]) for passage in passages], meaning)
        for code in sorted({each for each in objected if each}):
            held = [passage for passage, each in zip(passages, objected, strict=True) if each == code]
            if len(held) == len(passages):
                raise UnreadableError(code, count=len(held))
            numbers = sorted({passage.page for passage in held if passage.page is not None})
            losses.append(Loss(f"held_{code}", len(held), tuple(numbers)))
        passages = [passage for passage, each in zip(passages, objected, strict=True) if each is None]
    if not passages:
        raise UnreadableError("no_text")
    return {
        "passages": [[passage.text, passage.headings, passage.page, passage.place] for passage in passages],
        "title": text.title or title_of(pages),
        "losses": [[loss.code, loss.count, loss.pages, loss.sure] for loss in losses],
    }


def _text(data: bytes, suffix: str) -> Text:
    if not data.strip(b"\x00 \t\r\n\xef\xbb\xbf\xff\xfe"):
        raise UnreadableError("empty")
    if suffix in LEGACY:
        raise UnreadableError("legacy_format", suffix=suffix)
    if suffix in plain.TEXT:
        return plain.read(data, suffix)
    match suffix:
        case ".pdf":
            return pdf.read(data)
        case ".docx":
            return office.read(data)
        case ".xlsx":
            return sheets.read(data)
    raise UnreadableError("unsupported", suffix=suffix or "—")


def unsaid(pages: Sequence[Page], passages: Sequence[Passage]) -> list[Loss]:
    """Pages of which more words went into the splitting than came out of it."""
    said: dict[int | None, Counter[str]] = {}
    above: Counter[str] = Counter()
    for passage in passages:
        said.setdefault(passage.page, Counter()).update(words(passage.text))
        above.update(words("\n".join(passage.headings)))
    total, numbers = 0, []
    for page in pages:
        given = Counter(words(bare(page.markdown)))
        lost = (given - said.get(page.number, Counter()) - above).total()
        if lost >= LOST_LEAST and lost > LOST_SHARE * given.total():
            total += lost
            numbers += [page.number] if page.number is not None else []
    return [Loss("words_lost", total, tuple(numbers))] if total else []


def serve(requests: BinaryIO, answer: Callable[[bytes], object]) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        request = json.loads(line)
        try:
            meaning = Packaged().embed if request["meaning"] else None
            data = requests.read(request["size"])
            found = read(data, request["suffix"], cleared=request["cleared"], meaning=meaning)
        except UnreadableError as error:
            found = {"code": error.code, "values": error.values}
        except MemoryError:
            found = {"code": "too_large", "values": {"megabytes": MEMORY // 1024**2}}
        answer(json.dumps(found).encode() + b"\n")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer
    serve(sys.stdin.buffer, answers.write)
