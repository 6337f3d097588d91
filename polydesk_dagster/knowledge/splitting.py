"""Markdown into passages: cut on headings, paragraphs and table rows, each with its heading path and page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
_SIGN = re.compile(r"[\[<*_`\\]")
"""Without one of these a line has no marks; most have none."""
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
    place: tuple[int, int] | None = None
    """Where it begins and ends, in characters of its page's Markdown."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line without its marks, and what of its page it stands for."""

    text: str
    start: int
    source: str


@dataclass(frozen=True, slots=True)
class _Block:
    lines: tuple[_Line, ...]
    headings: tuple[str, ...]
    page: int | None
    table: bool

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)

    @property
    def place(self) -> tuple[int, int]:
        return self.lines[0].start, self.lines[-1].start + len(self.lines[-1].source)


@dataclass(slots=True)
class _Heading:
    level: int
    line: _Line
    page: int | None
    bare: bool = True
    """Nothing has stood under it yet."""

    @property
    def text(self) -> str:
        return self.line.text


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
    if _SIGN.search(line):
        line = _ESCAPED.sub(r"\1", _MARKUP.sub(lambda found: found.group(1) or "", line))
    return line.strip()


def _blocks(pages: Sequence[Page]) -> Iterator[_Block]:
    """Paragraphs, lists and tables, each with the headings above it. A heading stays in force over a page's end."""
    path: list[_Heading] = []
    for page in pages:
        lines: list[_Line] = []
        fence: str | None = None
        start = 0

        def block(table: bool = False, page: Page = page, lines: list[_Line] = lines) -> Iterator[_Block]:
            kept = tuple(line for line in lines if line.text.strip())
            lines.clear()
            if kept and any(any(c.isalnum() for c in line.text) for line in kept):
                for heading in path:
                    heading.bare = False
                yield _Block(kept, tuple(heading.text for heading in path), page.number, table)

        for whole in page.markdown.splitlines(keepends=True):
            (line,), at = whole.splitlines(), start
            start += len(whole)
            opened = _FENCE.match(line)
            if fence is not None or opened:
                if fence is not None and opened and opened.group(1).startswith(fence):
                    fence = None
                elif fence is None and opened:
                    yield from block()
                    fence = opened.group(1)
                else:
                    lines.append(_Line(line.rstrip(), at, line))
                continue
            in_table = bool(lines) and lines[0].text.startswith("|")
            is_row = line.lstrip().startswith("|")
            heading = _HEADING.match(line)
            underlined = _UNDERLINE.match(line) if len(lines) == 1 and not in_table else None
            if underlined and len(lines[0].text) <= LONGEST_HEADING:
                yield from _enter(path, 1 if underlined.group(1)[0] == "=" else 2, lines.pop(), page)
            elif heading and len(heading.group(2)) <= LONGEST_HEADING:
                yield from block(in_table)
                yield from _enter(path, len(heading.group(1)), _Line(heading.group(2), at, line), page)
            elif is_row != in_table and lines:
                yield from block(in_table)
                lines.append(_Line(_row(line) if is_row else plain(line), at, line))
            elif not line.strip():
                yield from block(in_table)
            elif not (is_row and _RULE.match(line.strip())):
                lines.append(_Line(_row(line) if is_row else plain(line), at, line))
        yield from block(bool(lines) and lines[0].text.startswith("|"))
    yield from _leave(path, 0)


def _enter(path: list[_Heading], level: int, heading: _Line, page: Page) -> Iterator[_Block]:
    yield from _leave(path, level)
    if text := plain(heading.text):
        path.append(_Heading(level, replace(heading, text=text), page.number))


def _leave(path: list[_Heading], level: int) -> Iterator[_Block]:
    """Headings of this level and below end; one that had nothing under it is all that its section says."""
    while path and path[-1].level >= level:
        ended = path.pop()
        if ended.bare:
            for heading in path:
                heading.bare = False
            yield _Block((ended.line,), tuple(heading.text for heading in path), ended.page, False)


def _row(line: str) -> str:
    cells = (plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))
    return "| " + " | ".join(cells) + " |"


def _gather(blocks: Iterable[_Block]) -> Iterator[Passage]:
    """Blocks of one section and page together until there is enough of them."""
    held: list[_Block] = []

    def release() -> Iterator[Passage]:
        if held:
            text = "\n\n".join(block.text for block in held)
            yield Passage(text, held[0].headings, held[0].page, (held[0].place[0], held[-1].place[1]))
            held.clear()

    for block in blocks:
        same = held and (held[0].headings, held[0].page) == (block.headings, block.page)
        size = sum(len(b.text) + 2 for b in held)
        if not same or size >= ENOUGH or size + len(block.text) > MOST:
            yield from release()
        if len(block.text) > MOST:
            yield from release()
            for text, place in _divided(block):
                yield Passage(text, block.headings, block.page, place)
        else:
            held.append(block)
    yield from release()


def _divided(block: _Block) -> Iterator[tuple[str, tuple[int, int]]]:
    """A long block in parts, each with its place; a table's head too long to stand atop each part comes first."""
    if not block.table:
        yield from _placed(block, _cut(block.text))
        return
    rows = [line.text for line in block.lines]
    if _head(rows[0]) != rows[0]:
        yield from _placed(replace(block, lines=block.lines[:1], table=False), _cut(rows[0]))
    if len(rows) > 1:
        yield from _placed(block, _cut_table(rows))


def _placed(block: _Block, parts: Iterable[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Parts of a block, each with its place. They hold the block's characters in order, white space apart, and those of
    a table its head before; a line that lost marks is told as a whole."""
    lines = iter(block.lines[1:] if block.table else block.lines)
    head = _dense(_head(block.lines[0].text)) if block.table else 0
    spans: Iterator[tuple[int, int, int]] = (span for line in lines for span in _spans(line))
    size, start, end = 0, *block.place
    exact = False
    for text in parts:
        wanted = _dense(text) - head
        begin, until = None, end
        while wanted > 0:
            if not size:
                size, start, end = next(spans, (wanted, start, end))
                exact = size == end - start
            taken = min(size, wanted)
            begin = start if begin is None else begin
            until = start + taken if exact else end
            start, size, wanted = start + taken if exact else start, size - taken, wanted - taken
        yield text, (start, end) if begin is None else (begin, until)


def _spans(line: _Line) -> Iterator[tuple[int, int, int]]:
    """Stretches of a line: how many characters, and where they begin and end; words where no mark was taken away."""
    if _dense(line.text) != _dense(line.source):
        yield _dense(line.text), line.start, line.start + len(line.source)
        return
    for word in re.finditer(r"\S+", line.source):
        yield len(word.group()), line.start + word.start(), line.start + word.end()


def _dense(text: str) -> int:
    """Characters that are no white space."""
    return len("".join(text.split()))


def _head(row: str) -> str:
    """What of a table's first row stands atop each part."""
    return row[: MOST // 2]


def _cut_table(rows: Sequence[str]) -> Iterator[str]:
    """A long table in parts, its first row atop each."""
    head = _head(rows[0])
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
