"""What people read of a plan's rows."""

from __future__ import annotations

import io
import re
from datetime import time
from decimal import Decimal
from typing import Any

import pytest

from polydesk_dagster import inert
from polydesk_dagster.changes import registry
from polydesk_dagster.changes.fields import MEANINGLESS
from polydesk_dagster.changes.show import Row, difference
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.changes.why import kept, read
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.values import Count, Money, Reason


@pytest.mark.parametrize("name", registry.WHERE)
def test_every_field_that_a_plan_shows_and_its_kind_have_a_name(name: str) -> None:
    kind = registry.kind(name)
    identity = kind.identity if kind.identity != ("id",) else ()
    shown = {*identity, *kind.written, *kind.carried} - MEANINGLESS
    for language in LANGUAGES:
        t = teller(language)
        wanted = [f"term.kind.{name}", *(f"term.field.{field}" for field in sorted(shown))]
        missing = [each for each in wanted if not t.knows(each)]
        assert not missing, (
            f"without a text in told/locale/{language}, or for changes/fields.MEANINGLESS: {', '.join(missing)}"
        )


def _row(action: str, before: dict[str, Any], after: dict[str, Any]) -> Row:
    return Row(1, action, "89.01", None, None, before, after)


def test_a_difference_is_told_by_names_and_typed_values_without_the_ids_that_mean_nothing() -> None:
    t = teller()
    created = _row("create", {}, {"clinic_id": 1, "code": "89.01", "active": True, "preparation": None, "unheard": 2})
    assert t.value(difference(created)) == "codice: 89.01, attivo: sì e unheard: 2"
    assert teller("en").value(difference(created)) == "code: 89.01, active: yes, and unheard: 2"
    assert difference(_row("delete", created.after, {})) == difference(created)
    changed = _row("update", {"amount": Decimal("130.00"), "email": "a@b.it"}, {"amount": Decimal(91), "email": None})
    assert t.value(difference(changed, ("email",))) == "importo: 130,00\xa0€ → 91,00\xa0€ e email: ••• → —"


def test_a_turn_a_resource_and_a_price_are_told_as_the_workbook_calls_them() -> None:
    turn = _row("create", {}, {"agenda_id": 5, "weekday": 5, "starts_at": time(9)})
    assert teller().value(difference(turn)) == "giorno: venerdì e inizio: 09:00"
    assert teller("de").value(difference(turn)).startswith("Wochentag: Freitag")
    things = _row("create", {}, {"kind": "instrument", "price": Decimal("45.5")})
    assert teller().value(difference(things)) == "tipo: strumento e prezzo: 45,50\xa0€"
    assert teller().value(difference(_row("create", {}, {"kind": "fund"}))) == "tipo: fondo"


@pytest.mark.parametrize("guard", ["undone_before", "price_jump", "code_reused", "zero_price"])
def test_a_check_over_rows_can_be_said_of_one(guard: str) -> None:
    values = {"value": Count("prices", 1), "plans": 7}
    said = teller().reason(Reason(f"guard_{guard}", values))
    assert "1 prezzo" in said
    assert not re.search(r"1 prezzo,? [^.:]*(ebbero|ono)\b", said), said


def test_a_reason_of_a_row_is_kept_as_text_and_read_again() -> None:
    priced = Reason("replaces_price", {"amount": Money(Decimal("23.00"))})
    for reason in (Reason("gone_at_source"), Reason("old"), priced):
        assert read(kept(reason)) == reason
    assert teller().reason(read(kept(priced)) or priced) == "sostituisce 23,00\xa0€"
    assert read(None) is None


def test_what_was_written_before_there_were_codes_still_reads_as_it_was() -> None:
    old = read("il servizio S9 non è collegato")
    assert old is not None
    assert teller("de").reason(old) == "il servizio S9 non è collegato"
    word = read("scaduto")
    assert word is not None
    assert teller().reason(word) == "scaduto"
    verdict = Verdict.from_dict({"name": "many", "passed": False, "message": "Troppi: 9.", "value": 9, "limit": 1})
    assert teller("en").reason(verdict.reason) == "Troppi: 9."
    assert Verdict.from_dict(verdict.as_dict()) == verdict


@pytest.mark.parametrize("cell", ["=1+1", "+39", "-2", "@x", "＝x"])
def test_a_cell_that_a_spreadsheet_would_execute_is_text(cell: str) -> None:
    assert inert.cell(cell) == f"'{cell}"
    assert io.StringIO(str(inert.cell("Visita"))).read() == "Visita"
