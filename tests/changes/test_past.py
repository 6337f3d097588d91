"""A refusal names every guard that must be passed: of all sheets, and all of a row that several have set aside."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import plans
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.practice import importing
from polydesk_dagster.told import teller
from tests.changes.test_held import applied, looked
from tests.sources.lab import PRICES, Lab, synced
from tests.sources.test_practice_workbook import DOCTORS, SERVICES, TURNS, WHOLE, all_of, book, planned
from tests.sources.test_practice_workbook import applied as imported
from tests.world import AS_OF

__all__ = ["synced"]  # a fixture

WHY = "listino nuovo della direzione"
TENFOLD = [price | {"amount": f"{price['amount']}0".replace(".", "")} for price in PRICES]
ONE_TENTH = [PRICES[0] | {"amount": "5.00"}, PRICES[1] | {"amount": "51.50"}, *PRICES[2:]]
"""A price that two guards set aside, and one that nothing speaks against."""


def _told(report: Report) -> str:
    return " ".join(map(teller().reason, report.reasons))


def test_a_list_that_two_kinds_of_guards_stop_is_written_past_all_of_them(synced: Lab) -> None:
    """Too much of it changes, and each of its rows jumps, or is perhaps another service's."""
    synced.hold(prices=TENFOLD)
    report = synced.sync("prices")
    plan = synced.plan(report)
    assert (report.outcome, plan.writes) == (Outcome.REFUSED, 0)
    assert {guard.name for guard in plan.failed_guards} == {"too_many_changed"}
    named = "--past-guard too_many_changed --past-guard price_jump --past-guard code_reused"
    assert f"polydesk plan apply {plan.id} {named} --reason '…'" in _told(report)
    assert "oltre i controlli code_reused, price_jump e too_many_changed, tutti insieme" in _told(
        synced.sync("prices", preview=True)
    )
    for some in (["price_jump", "code_reused"], ["too_many_changed", "price_jump"]):
        refused = applied(synced, plan.id, past_guards=some, reason=WHY)
        assert refused.outcome is Outcome.REFUSED
        assert (synced.plan(report).state, synced.plan(report).tally) == ("ready", plan.tally)
    done = applied(synced, plan.id, past_guards=[guard.name for guard in plan.speaking_guards], reason=WHY)
    assert (done.outcome, done.counts.updated) == (Outcome.OK, len(PRICES))


def test_a_row_that_two_guards_have_set_aside_is_said_to_need_both_and_one_of_them_writes_nothing(synced: Lab) -> None:
    synced.hold(prices=ONE_TENTH)
    plan = looked(synced, "prices")
    seen = _told(synced.sync("prices", preview=True))
    assert seen.count("applica un'anteprima oltre i controlli code_reused e price_jump, tutti insieme.") == 2
    refused = applied(synced, plan, past_guards=["price_jump"], reason=WHY)
    assert [reason.code for reason in refused.reasons] == ["guard", "what_to_do"]
    assert f"polydesk plan apply {plan} --past-guard price_jump --past-guard code_reused" in _told(refused)
    assert "spuntali tutti" in teller(page=True).reason(refused.reasons[1])
    assert synced.rows("SELECT count(*) FROM price WHERE amount IN (5, 51.50)") == [(0,)]
    done = applied(synced, plan, past_guards=["price_jump", "code_reused"], reason=WHY)
    assert (done.outcome, done.counts.updated) == (Outcome.OK, 2)


def test_rows_that_one_guard_alone_has_set_aside_go_past_it_and_the_others_stay(synced: Lab) -> None:
    synced.hold(prices=[*ONE_TENTH[:2], PRICES[2] | {"amount": "80.00"}, *PRICES[3:]])
    plan = looked(synced, "prices")
    done = applied(synced, plan, past_guards=["price_jump"], reason=WHY)
    assert (done.counts.updated, done.counts.waiting) == (2, 1)
    assert "oltre i controlli code_reused e price_jump, tutti insieme" in _told(done)
    assert synced.rows("SELECT count(*) FROM price WHERE amount IN (51.50, 80)") == [(2,)]


def _two_sheets(engine: sa.Engine) -> importing.Import:
    """Services most of which become another price, and turns a third of which nobody can read."""
    many = [["BO01", f"S{n}", f"Prestazione {n}", 20, 100] for n in range(20)]
    imported(engine, book({**WHOLE, "Prestazioni": [*SERVICES, *many]}))
    turns = [["BO01", "Cardiologia", "martedì", f"{n}:00", f"{n}:45"] for n in range(22)]
    turns[4:10] = [[*turn[:3], "di mattina", "di sera"] for turn in turns[4:10]]
    sheets = {"Prestazioni": [SERVICES[0], *([*row[:4], 5] for row in many)], "Turni": [TURNS[0], *turns]}
    return planned(engine, book(sheets), file="prova.xlsx")


def test_a_workbook_names_what_stops_each_of_its_sheets_at_once(engine: sa.Engine) -> None:
    found = _two_sheets(engine)
    services, turns = (each.id for each in found.plans)
    named = f"polydesk practice apply {turns} --past-guard too_many_changed --past-guard source_shape --reason '…'"
    with engine.begin() as connection:
        shown = importing.shown(connection, found)
        refused = importing.apply(connection, found, as_of=AS_OF, actor="desk:anna")
        half = importing.apply(
            connection, found, as_of=AS_OF, actor="desk:anna", reason=WHY, past_guards=["source_shape"]
        )
    todo = teller().value(shown.figures["what_to_do"])
    assert todo.startswith(
        f"Guarda le righe dei piani {services} e {turns} (polydesk plan show NUMERO); se sono giuste"
    )
    assert todo.endswith(named)
    for report, sheets in ((refused, {"Prestazioni", "Turni"}), (half, {"Prestazioni"})):
        assert report.outcome is Outcome.REFUSED
        assert {each for each in ("Prestazioni", "Turni") if f"prova.xlsx, foglio {each}: " in _told(report)} == sheets
        assert named in _told(report)
    assert all_of(engine, "SELECT count(*) FROM agenda_rule") == [(2,)]
    with engine.begin() as connection:
        past = ["source_shape", "too_many_changed"]
        done = importing.apply(connection, found, as_of=AS_OF, actor="desk:anna", reason=WHY, past_guards=past)
    assert (done.outcome, done.counts.updated, done.counts.created) == (Outcome.PARTIAL, 20, 16)


@pytest.mark.parametrize("name", ["source_shape", None])
def test_a_sheet_that_is_stopped_stops_the_file_though_it_would_write_nothing(
    engine: sa.Engine, name: str | None
) -> None:
    doctors = [["BO01", "Dott.", f"Rossi{n}", "Ada"] for n in range(22)]
    imported(engine, book({**WHOLE, "Medici": [*DOCTORS, *doctors]}))
    unread = [[*row[:2], None, None] if n < 8 else row for n, row in enumerate(doctors)]
    more = {"Medici": [DOCTORS[0], *unread], "Sedi": [["Clinica", "Nome"], ["BO01", "Nuova"]]}
    found = planned(engine, book(more))
    (stopped,) = (each for each in found.plans if each.failed_guards)
    assert stopped.writes == 0
    with engine.begin() as connection:
        past = [name] if name else []
        report = importing.apply(connection, found, as_of=AS_OF, actor="desk:anna", reason=WHY, past_guards=past)
        state = plans.load(connection, stopped.id).state
    assert (report.outcome, state) == ((Outcome.PARTIAL, "applied") if name else (Outcome.REFUSED, "ready"))
    assert all_of(engine, "SELECT count(*) FROM location") == [(2 if name else 1,)]
