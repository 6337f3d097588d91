"""How tables reach a terminal: wide, narrow, and with nothing in them."""

from __future__ import annotations

import pytest

from polydesk_dagster.commands import show
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import LANGUAGES, teller

ROWS = [("send_preparation_notices", "Invia gli avvisi di preparazione", "niente da fare"), ("x", None, "riuscito")]


@pytest.mark.parametrize("width", [30, 60, 79, 160])
def test_a_key_stands_in_one_piece_however_narrow_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = show._console(width=width)
    monkeypatch.setattr(show, "out", lambda: console)
    show.table("Servizi", ("Chiave", "Nome", "Esito"), ROWS)
    assert "send_preparation_notices" in capsys.readouterr().out


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show.table("Piani", ("Numero",), [])
    assert capsys.readouterr().out == "Piani: Niente.\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_preview_says_that_it_is_one_also_where_there_is_nothing_to_change(language: str) -> None:
    t = teller(language)
    for outcome in (Outcome.OK, Outcome.PARTIAL, Outcome.NOTHING_TO_DO):
        assert t.outcome(outcome, preview=True) != t.outcome(outcome)
        assert t.outcome(outcome, preview=True).casefold().startswith(("anteprima", "preview", "vorschau"))
