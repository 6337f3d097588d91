"""Text from outside, made such that no medium takes it for anything else: a terminal, a mail, a spreadsheet."""

from __future__ import annotations

import json
import re
import unicodedata

_STEERING = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_FORMULA = re.compile(r"""((?:^|[;\n])[\s"]*)(?=[=+\-@＝＋－＠])""")


def plain(text: object) -> str:
    """``text`` without what would steer whoever shows it: control and direction characters, line ends but the one."""
    return "".join(each for each in str(text) if each == "\n" or unicodedata.category(each) not in _STEERING)


def line(text: object) -> str:
    """``text`` as one line, as a header takes it."""
    return " ".join(plain(str(text).replace("\r", " ").replace("\t", " ")).split())


def cell(value: object) -> object:
    """``value`` so that no spreadsheet executes it, wherever it parts a line."""
    return _FORMULA.sub(r"\1'", plain(value)) if isinstance(value, str) else value


def as_json(value: object) -> str:
    """``value`` as one line of JSON, in which whatever a terminal would not show as it is stands escaped."""
    written = json.dumps(value, ensure_ascii=False, default=str)
    if written.isprintable():
        return written
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in written)
