"""How tables reach a terminal: wide, narrow, and with nothing in them."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.commands import run, show
from polydesk_dagster.outcome import Outcome, Report, combine
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


def _plan(number: int) -> Plan:
    now = datetime(2026, 3, 10, 8, tzinfo=UTC)
    of_slots = (number, "generate_slots", "slot", False, "BO01", 1, {}, None, "", {"create": 2}, (), "ready", None)
    return Plan(*of_slots, now, now, now, None, None, None, True, False, False)


def test_of_many_plans_a_run_says_how_many_and_not_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that it made for each of many agendas."""
    monkeypatch.setattr(run.plans, "load", lambda _, number: _plan(number))
    installation = SimpleNamespace(engine=SimpleNamespace(connect=nullcontext))
    show.speak("it")
    report = combine(Report(Outcome.REFUSED, plan_id=number) for number in range(1, 61))
    (others,) = report.reasons
    assert teller("it", page=True).reason(others) == "Ci sono anche altri 59 piani: sono in «Piani»."
    assert teller("it").reason(others) == "Ci sono anche altri 59 piani: «polydesk plan list»."
    heads = run._heads(installation, report)  # type: ignore[arg-type] - no more of it is asked
    assert [*heads] == [*range(51, 61)]
    run.tell(BY_KEY["generate_slots"], heads, report, looked=False)
    told = capsys.readouterr().out
    assert told.count("guardalo con «polydesk plan show ") == 10
    assert told.endswith("  Altri 50 piani: «polydesk plan list».\n")
