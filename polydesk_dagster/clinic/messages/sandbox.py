"""What a text may be made of: a closed list of the template language's parts, within a budget of size and work.

Texts are written by people at a desk and rendered for every patient of a chain, so what is not on the list is refused
when a text is saved, long before it is rendered. Loops go once over a list that was given, and nothing multiplies.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_SOURCE = 8_000
"""Characters of a template."""
LONGEST_TEXT = 10_000
"""Characters of a written text; a loop that writes more is a mistake."""
PATIENCE = 1.0
"""Seconds of the processor for one text; every factory text takes less than a thousandth of it. How long the machine
was busy with others says nothing of a text."""
LISTS = frozenset({"appuntamenti"})
"""The only values that a loop may go over."""
FILTERS = frozenset({"capitalize", "default", "first", "last", "length", "lower", "title", "trim", "upper"})
_PARTS: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Const,
    nodes.Filter,
    nodes.If,
    nodes.CondExpr,
    nodes.For,
    nodes.Not,
    nodes.And,
    nodes.Or,
    nodes.Compare,
    nodes.Operand,
)


class BrokenTemplateError(Exception):
    """A template that cannot be written: ``code`` and ``value`` say why, never a value of a person."""

    def __init__(self, code: str, value: str = "") -> None:
        super().__init__(f"{code} {value}".strip())
        self.code, self.value = code, value


def _readable(value: object) -> object:
    """What a text may print. A list, a yes or no, or what belongs to a value itself would be read by a patient as the
    program writes it."""
    if isinstance(value, bool) or not isinstance(value, str | int | Undefined):
        raise BrokenTemplateError("template_value")
    return value


def _of_readable(change: Callable[..., object]) -> Callable[..., object]:
    """A filter that makes text of whatever it is given, for what may be printed alone."""
    return lambda value, *arguments: change(_readable(value), *arguments)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_readable
)
for _name in FILTERS - {"default", "first", "last", "length"}:
    _ENVIRONMENT.filters[_name] = _of_readable(_ENVIRONMENT.filters[_name])


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Template:
    check(source)
    return _ENVIRONMENT.from_string(source)


def check(source: str) -> frozenset[str]:
    """The variables that ``source`` wants.

    Raises:
        BrokenTemplateError: ``template_long``, ``template_syntax`` (with the line), or ``template_part`` for anything
            that is not on the list.
    """
    if len(source) > LONGEST_SOURCE:
        raise BrokenTemplateError("template_long", str(LONGEST_SOURCE))
    try:
        tree = _ENVIRONMENT.parse(source)
    except TemplateSyntaxError as error:
        raise BrokenTemplateError("template_syntax", str(error.lineno)) from None
    except (RecursionError, ValueError, OverflowError):
        raise BrokenTemplateError("template_syntax", "1") from None
    wanted: set[str] = set()
    try:
        _walk(tree, frozenset(), wanted)
    except RecursionError:
        raise BrokenTemplateError("template_part", "…") from None
    return frozenset(wanted)


def _walk(node: nodes.Node, known: frozenset[str], wanted: set[str]) -> None:
    refusal = _refused(node)
    if refusal is not None:
        raise BrokenTemplateError("template_part", refusal)
    if isinstance(node, nodes.Name) and node.name not in known:
        wanted.add(node.name)
    if isinstance(node, nodes.For):
        assert isinstance(node.iter, nodes.Name)
        assert isinstance(node.target, nodes.Name)
        if known:
            raise BrokenTemplateError("template_part", "for in for")
        wanted.add(node.iter.name)
        inside = known | {node.target.name, "loop"}
        for child in (*node.body, *filter(None, [node.test])):
            _walk(child, inside, wanted)
        for child in node.else_:
            _walk(child, known, wanted)
        return
    for child in node.iter_child_nodes():
        _walk(child, known, wanted)


def _refused(node: nodes.Node) -> str | None:
    """What of ``node`` itself is not on the list."""
    match node:
        case nodes.For():
            given = isinstance(node.iter, nodes.Name) and node.iter.name in LISTS
            plain = isinstance(node.target, nodes.Name) and not node.recursive
            return None if given and plain else "for"
        case nodes.Filter():
            inside = node.name in FILTERS and not (node.kwargs or node.dyn_args or node.dyn_kwargs)
            return None if inside and len(node.args) <= (node.name == "default") else f"| {node.name}"
        case nodes.Getattr():
            return node.attr if node.attr.startswith("_") else None
        case nodes.Getitem():
            index = node.arg
            counted = isinstance(index, nodes.Const) and type(index.value) is int
            return None if counted and isinstance(node.node, nodes.Name) and node.node.name in LISTS else "[…]"
        case nodes.Name():
            return None if node.ctx in {"load", "store"} else node.name
        case nodes.Const():
            return None if isinstance(node.value, str | int | float | bool | None) else "…"
        case _:
            return None if isinstance(node, _PARTS) else type(node).__name__.lower()


def render(source: str, context: Mapping[str, Any]) -> str:
    """``source`` filled in.

    Raises:
        BrokenTemplateError: whatever goes wrong, by what and where.
    """
    try:
        return "".join(_within_budget(_compiled(source).generate(context)))
    except BrokenTemplateError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a text does is that text's fault, and no other's
        raise _told(error) from None


def _within_budget(pieces: Iterator[str]) -> Iterator[str]:
    length, until = 0, time.thread_time() + PATIENCE
    for piece in pieces:
        length += len(piece)
        if length > LONGEST_TEXT or time.thread_time() > until:
            raise BrokenTemplateError("template_endless", str(LONGEST_TEXT))
        yield piece


def _told(error: Exception) -> BrokenTemplateError:
    if isinstance(error, TemplateError) and (beyond := re.search(r"has no element (\d+)", str(error))):
        return BrokenTemplateError("template_item", str(int(beyond[1]) + 1))
    unknown = re.match(r"'(?:[\w.]+ object' has no attribute ')?(\w+)'", str(error))
    if isinstance(error, TemplateError) and not isinstance(error, SecurityError) and unknown:
        return BrokenTemplateError("template_variable", unknown[1])
    return BrokenTemplateError("template_part", type(error).__name__)
