"""What the pages say: what to do next is a button or a place of the page, never a command of the terminal."""

from __future__ import annotations

import re
from string import Formatter

import pytest
from babel.messages.pofile import read_po

from polydesk_dagster.outcome import Reason
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.told.catalogue import FOLDER

COMMAND = re.compile(r"polydesk [a-z]")
TERMINAL = frozenset({
    "document_clinic_unknown", "document_unknown", "embedded_down", "made_by_migrating", "no_installation",
    "schema_behind", "schema_missing", "user_unknown",
    "which_plan", "workbook_of_another_kind",
    "embedded_version", "embedded_old_programs",
})  # fmt: skip
"""Reasons that only somebody at a terminal meets: what she typed is wrong, or nothing is up yet."""


def _sentences(language: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in (FOLDER / language).glob("*.po"):
        with path.open("rb") as file:
            for message in read_po(file):
                forms = message.string if isinstance(message.string, tuple) else (message.string,)
                found[message.id[0] if isinstance(message.id, tuple) else message.id] = " ".join(forms)
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_of_a_page_names_a_command(language: str) -> None:
    sentences = _sentences(language)
    commanding = {name for name, said in sentences.items() if name.startswith("reason.") and COMMAND.search(said)}
    assert {name.removeprefix("reason.") for name in commanding if f"page.{name}" not in sentences} <= TERMINAL
    assert not [name for name, said in sentences.items() if name.startswith(("page.", "web.")) and COMMAND.search(said)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_tells_of_no_value_that_the_reason_has_not(language: str) -> None:
    sentences = _sentences(language)

    def values(said: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(said) if name}

    for name, said in sentences.items():
        if name.startswith("page."):
            assert values(said) <= values(sentences[name.removeprefix("page.")]) | {"clinic", "count"}, name


def test_the_same_reason_is_told_with_the_command_at_the_terminal_and_with_the_button_on_the_page() -> None:
    reason = Reason("look_then_apply", {"plan": 7})
    assert "polydesk plan apply 7" in teller("it").reason(reason)
    assert "applicalo" in teller("it", page=True).reason(reason)
