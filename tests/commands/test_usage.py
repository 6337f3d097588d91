"""The command's help and what it says of a wrong usage: in the language asked for, not in typer's English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polydesk_dagster.commands
from polydesk_dagster import cli
from polydesk_dagster.commands import show
from polydesk_dagster.told import LANGUAGES, teller

ENGLISH = re.compile(
    r"Usage|OPTIONS|ARGS|Options|Commands|Error|No such|Missing|requires|Invalid|unexpected|Input should|Show this|"
    r"default:|\[required\]|<bool>|<str>|<int>|help\.|metavar\."
)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("POLYDESK_HOME", "/nowhere")
    yield
    show.speak(LANGUAGES[0])


def _said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["polydesk", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    return int(str(ended.value.code)), re.sub(r"\s+", " ", told.out + told.err)


WRONG = [
    (["run"], "Manca CHIAVE."),
    (["run", "generate_slots", "--plan", "x"], "--plan: non è un numero intero."),
    (["run", "generate_slots", "--clinic"], "L'opzione --clinic vuole un valore."),
    (["run", "generate_slots", "--json=3"], "L'opzione --json non prende valori."),
    (["plan", "list", "--limit", "0"], "--limit: è minore di 1."),
    (["messages", "why", "45294"], "appointment|patient: non è uno dei valori previsti: 'appointment', 'patient'."),
    (["users", "add", "a@example.org", "capo"], "role: non è uno dei valori previsti: 'desk',"),
    (["plan", "foo"], "Il comando «foo» non esiste; ci sono: list, show,"),
    (["services", "extra"], "Di troppo: extra."),
    (["--foo"], "L'opzione --foo non esiste."),
    (["nope"], "Il comando «nope» non esiste; ci sono: up,"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_usage_is_told_in_each_language(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for language in LANGUAGES:
        status, told = _said([*arguments, "--lang", language], monkeypatch, capsys)
        assert status == 2
        assert language == "en" or not ENGLISH.search(told), told
        assert "Error" not in told
        if language == "it":
            assert told.startswith(said)
            assert "Aiuto:" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *cli.COMMANDS])
def test_no_help_is_in_another_language(
    name: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for language in ("it", "de"):
        for path in _paths(name):
            _, told = _said([*path, "--help", "--lang", language], monkeypatch, capsys)
            assert teller(language).text("help.usage").strip() in told
            assert not ENGLISH.search(told), ENGLISH.search(told)


def _paths(name: str | None) -> Iterator[list[str]]:
    if name is None:
        yield []
        return
    yield [name]
    commands: dict[str, Any] = getattr(cli.loaded(name), "commands", {})
    for each in commands:
        yield [name, each]


def test_every_word_for_a_value_is_known() -> None:
    folder = Path(str(polydesk_dagster.commands.__file__)).parent
    words = {word for path in folder.glob("*.py") for word in re.findall(r'metavar="([A-Z_]+)"', path.read_text())}
    assert words
    for language in LANGUAGES:
        assert not {word for word in words if not teller(language).knows(f"metavar.{word}")}
