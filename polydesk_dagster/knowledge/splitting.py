"""Markdown into passages: cut on headings, paragraphs and table rows, each with its heading path and page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

ENOUGH = 1_000
"""Characters from which a passage takes in no further block."""

MOST = 1_600
"""Characters that a passage never exceeds; a longer block is cut at its sentences, then at its words."""

LONGEST_HEADING = 200
"""Characters; what is longer is a paragraph."""

_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t#]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-{3,})[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_RULE = re.compile(r"^\|?[ \t:|-]+\|?$")
_TAGS = (
    "a|abbr|b|blockquote|br|caption|center|code|col|colgroup|dd|del|details|div|dl|dt|em|figcaption|figure|font|h[1-6]|"
    "hr|i|img|ins|kbd|li|mark|ol|p|pre|s|section|small|span|strong|sub|summary|sup|table|tbody|td|tfoot|th|thead|tr|u|ul"
)
_MARKUP = re.compile(
    rf"!?\[([^\]\n]*)\]\([^)\n]*\)|</?(?:{_TAGS})(?:\s[^>\n]{{0,200}})?/?>|<!--[^\n]*?-->|\*\*|__|(?<!\w)[*_](?=\w)"
    r"|(?<=\w)[*_](?!\w)|`",
    re.IGNORECASE,
)
"""Marks and the tags of HTML; what only looks like a tag («<soglia e >») is text."""
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~])")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of Markdown; ``number`` from 1 where the document has pages."""

    markdown: str
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """What is indexed, found and cited."""

    text: str
    headings: tuple[str, ...]
    """From the outermost to the innermost."""
    page: int | None


@dataclass(frozen=True, slots=True)
class _Block:
    lines: tuple[str, ...]
    headings: tuple[str, ...]
    page: int | None
    table: bool

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(slots=True)
class _Heading:
    level: int
    text: str
    page: int | None
    bare: bool = True
    """Nothing has stood under it yet."""


def split(pages: Sequence[Page]) -> list[Passage]:
    """The passages of a document, in reading order; none for a document without text."""
    return list(_gather(_blocks(pages)))


def title_of(pages: Sequence[Page]) -> str | None:
    """The first heading, whatever its level; None without one."""
    return next((block.headings[0] for block in _blocks(pages) if block.headings), None)


def bare(markdown: str) -> str:
    """A page's Markdown as ``split`` takes it in: without marks, tags and the addresses of links."""
    return "\n".join(plain(line) for line in markdown.splitlines())


def plain(line: str) -> str:
    """A line of Markdown without its marks: emphasis, links' addresses, tags, escapes."""
    return _ESCAPED.sub(r"\1", _MARKUP.sub(lambda found: found.group(1) or "", line)).strip()


def _blocks(pages: Sequence[Page]) -> Iterator[_Block]:
    """Paragraphs, lists and tables, each with the headings above it. A heading stays in force over a page's end."""
    path: list[_Heading] = []
    for page in pages:
        lines: list[str] = []
        fence: str | None = None

        def block(table: bool = False, page: Page = page, lines: list[str] = lines) -> Iterator[_Block]:
            kept = tuple(line for line in lines if line.strip())
            lines.clear()
            if kept and any(any(c.isalnum() for c in line) for line in kept):
                for heading in path:
                    heading.bare = False
                yield _Block(kept, tuple(heading.text for heading in path), page.number, table)

        for line in page.markdown.splitlines():
            opened = _FENCE.match(line)
            if fence is not None or opened:
                if fence is not None and opened and opened.group(1).startswith(fence):
                    fence = None
                elif fence is None and opened:
                    yield from block()
                    fence = opened.group(1)
                else:
                    lines.append(line.rstrip())
                continue
            in_table = bool(lines) and lines[0].startswith("|")
            is_row = line.lstrip().startswith("|")
            heading = _HEADING.match(line)
            underlined = _UNDERLINE.match(line) if len(lines) == 1 and not in_table else None
            if underlined and len(lines[0]) <= LONGEST_HEADING:
                yield from _enter(path, 1 if underlined.group(1)[0] == "=" else 2, lines.pop(), page)
            elif heading and len(heading.group(2)) <= LONGEST_HEADING:
                yield from block(in_table)
                yield from _enter(path, len(heading.group(1)), heading.group(2), page)
            elif is_row != in_table and lines:
                yield from block(in_table)
                lines.append(_row(line) if is_row else plain(line))
            elif not line.strip():
                yield from block(in_table)
            elif not (is_row and _RULE.match(line.strip())):
                lines.append(_row(line) if is_row else plain(line))
        yield from block(bool(lines) and lines[0].startswith("|"))
    yield from _leave(path, 0)


def _enter(path: list[_Heading], level: int, heading: str, page: Page) -> Iterator[_Block]:
    yield from _leave(path, level)
    if text := plain(heading):
        path.append(_Heading(level, text, page.number))


def _leave(path: list[_Heading], level: int) -> Iterator[_Block]:
    """Headings of this level and below end; one that had nothing under it is all that its section says."""
    while path and path[-1].level >= level:
        ended = path.pop()
        if ended.bare:
            for heading in path:
                heading.bare = False
            yield _Block((ended.text,), tuple(heading.text for heading in path), ended.page, False)


def _row(line: str) -> str:
    cells = (plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))
    return "| " + " | ".join(cells) + " |"


def _gather(blocks: Iterable[_Block]) -> Iterator[Passage]:
    """Blocks of one section and page together until there is enough of them."""
    held: list[_Block] = []

    def release() -> Iterator[Passage]:
        if held:
            yield Passage("\n\n".join(block.text for block in held), held[0].headings, held[0].page)
            held.clear()

    for block in blocks:
        same = held and (held[0].headings, held[0].page) == (block.headings, block.page)
        size = sum(len(b.text) + 2 for b in held)
        if not same or size >= ENOUGH or size + len(block.text) > MOST:
            yield from release()
        if len(block.text) > MOST:
            yield from release()
            for text in _cut_table(block.lines) if block.table else _cut(block.text):
                yield Passage(text, block.headings, block.page)
        else:
            held.append(block)
    yield from release()


def _cut_table(rows: Sequence[str]) -> Iterator[str]:
    """A long table in parts, its first row atop each."""
    head = rows[0][: MOST // 2]
    part: list[str] = []
    for row in rows[1:]:
        for piece in _cut(row, MOST - len(head) - 1):
            if part and len(head) + sum(len(r) + 1 for r in part) + len(piece) > ENOUGH:
                yield "\n".join([head, *part])
                part = []
            part.append(piece)
    yield "\n".join([head, *part])


def _cut(text: str, most: int = MOST) -> Iterator[str]:
    """A long text in parts of whole sentences; what has no sentences is cut between words, or anywhere."""
    part = ""
    for sentence in _SENTENCE.split(text):
        for piece in _pieces(sentence, most):
            if part and len(part) + 1 + len(piece) > min(most, ENOUGH):
                yield part
                part = piece
            else:
                part = f"{part} {piece}" if part else piece
    if part:
        yield part


def _pieces(sentence: str, most: int) -> Iterator[str]:
    start = 0
    while len(sentence) - start > most:
        at = sentence.rfind(" ", start + most // 2, start + most)
        at = at if at > 0 else start + most
        if piece := sentence[start:at].strip():
            yield piece
        start = at
    if piece := sentence[start:].strip():
        yield piece
