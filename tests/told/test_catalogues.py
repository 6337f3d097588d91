"""The catalogues of the three languages say the same things, and everything that the code names stands in them."""

from __future__ import annotations

import ast
import string
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from babel.messages.pofile import read_po

import polydesk_dagster
from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.changes.registry import WHERE
from polydesk_dagster.clinic.messages.kinds import KINDS as MESSAGES
from polydesk_dagster.clinic.statistics.views import VIEWS
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.told.catalogue import FOLDER

PACKAGE = Path(polydesk_dagster.__file__).parent
FORMS = string.Formatter()


@cache
def _messages(language: str) -> dict[str, set[str]]:
    """By name, the values that each message of ``language`` takes."""
    found: dict[str, set[str]] = {}
    for path in sorted((FOLDER / language).glob("*.po")):
        written = Counter(line for line in path.read_text().splitlines() if line.startswith("msgid "))
        assert written.most_common(1)[0][1] == 1, f"{path.name}: {written.most_common(1)[0][0]} stands twice"
        with path.open("rb") as file:
            for message in read_po(file, language, abort_invalid=True):
                name, texts = message.id, message.string
                if isinstance(name, tuple):
                    name = name[0]
                texts = texts if isinstance(texts, tuple) else (texts,)
                if name:
                    assert name not in found, f"{path.name}: {name} stands elsewhere too"
                    assert all(texts), f"{path.name}: {name} is empty"
                    found[name] = {field for text in texts for _, field, _, _ in FORMS.parse(text) if field}
    return found


def test_the_languages_say_the_same_things() -> None:
    first = _messages(LANGUAGES[0])
    for language in LANGUAGES:
        other = _messages(language)
        assert first.keys() == other.keys()
        differing = {name for name in first if first[name] - {"count"} != other[name] - {"count"}}
        assert not differing


DECLARED = (
    *(f"service.{service.key}.{part}" for service in SERVICES for part in ("name", "summary")),
    *(f"statistic.{view}.{part}" for view in VIEWS for part in ("name", "summary")),
    *(f"term.kind.{kind}" for kind in WHERE),
    *(f"term.message_kind.{kind}" for kind in MESSAGES),
)
"""What whoever declares something new has to call by a name."""


def test_what_is_declared_has_its_name() -> None:
    missing = [f"{language}: {name}" for language in LANGUAGES for name in DECLARED if not teller(language).knows(name)]
    assert not missing, "without a text in told/locale/*/*.po: " + ", ".join(missing)


MAKERS = {"Reason": 1, "refused": 1, "skipped": 1, "failed": 1, "PermanentError": None, "TransientError": None}
"""What makes a reason, and where its values stand; None where they are keywords."""


def _made() -> Iterator[tuple[str, str, set[str] | None]]:
    """Where a reason is made, its code, and the names of its values where they can be read off."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in MAKERS or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            code, place = node.args[0].value, MAKERS[name]
            if not isinstance(code, str) or " " in code:
                continue
            where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
            if place is None:
                keywords = {keyword.arg for keyword in node.keywords}
                yield where, code, None if None in keywords else {k for k in keywords if k}
                continue
            given = node.args[place] if len(node.args) > place else None
            given = next((k.value for k in node.keywords if k.arg == "values"), given)
            if given is None or (isinstance(given, ast.Constant) and given.value is None):
                yield where, code, set()
            elif isinstance(given, ast.Dict):
                keys = {key.value if isinstance(key, ast.Constant) else None for key in given.keys}
                yield where, code, None if None in keys else {str(key) for key in keys}
            elif isinstance(given, ast.Constant | ast.JoinedStr):
                continue
            else:
                yield where, code, None


MADE = list(_made())


@pytest.mark.parametrize(("where", "code", "given"), MADE, ids=[f"{where} {code}" for where, code, _ in MADE])
def test_every_reason_has_its_sentence_and_every_sentence_its_values(
    where: str, code: str, given: set[str] | None
) -> None:
    messages = _messages(LANGUAGES[0])
    name = f"reason.{code}"
    if name in messages and given is not None:
        assert messages[name] <= given | {"clinic", "count"}, where
