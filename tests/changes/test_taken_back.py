"""Undo where one row bears on another: what cannot go is named, what goes only with it stays, the rest is taken back;
and a plan that somebody else's rows contradict says so and is made anew."""

from __future__ import annotations

from typing import Any

import pytest

from polydesk_dagster import changes
from polydesk_dagster.changes import synchronise as engine_of_plans
from polydesk_dagster.changes.apply import is_stale
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told import teller
from tests import world
from tests.sources.lab import PRICES, SERVICES, Lab, lab, synced

__all__ = ["lab", "synced"]  # fixtures

DEARER = [
    *PRICES[:2],
    PRICES[2] | {"valid_from": "2026-02-01", "amount": "53.00"},
    PRICES[3] | {"valid_from": "2026-02-01", "amount": "54.00"},
    *PRICES[4:],
]
HELD = "SELECT valid_from, valid_to, amount, vat_rate FROM price p WHERE {} ORDER BY 1, 2"
OF = "service_id = (SELECT id FROM service WHERE external_id = '{}')"
THIRD = """INSERT INTO price (clinic_id, service_id, amount, valid_from)
           SELECT clinic_id, service_id, 60, '2026-06-01' FROM price WHERE amount = 52"""
ADDED = """INSERT INTO price (clinic_id, service_id, amount, valid_from)
           SELECT clinic_id, service_id, 56.5, '2026-04-01' FROM price WHERE amount = 55"""


def undo(lab: Lab, report: Report, *, preview: bool = False) -> Report:
    with lab.engine.begin() as connection:
        plan_id = report.plan_id or 0
        return changes.undo(connection, plan_id, as_of=world.AS_OF, actor="desk:anna", preview=preview)


def held(lab: Lab, service: str) -> list[tuple[Any, ...]]:
    return lab.rows(HELD.format(OF.format(service)))


@pytest.mark.parametrize(
    ("edit", "kept", "said"),
    [
        (
            "UPDATE price SET vat_rate = 22 WHERE amount = 52",
            "UPDATE price SET vat_rate = NULL",
            {
                "89.02 Visita 2 · 2024-01-01: modificato dopo l'applicazione",
                "89.02 Visita 2 · 2026-02-01: si annulla solo insieme a «89.02 Visita 2 · 2024-01-01»",
            },
        ),
        (
            "UPDATE price SET vat_rate = 22 WHERE amount = 53 AND valid_from = '2026-02-01'",
            "UPDATE price SET vat_rate = NULL",
            {
                "89.02 Visita 2 · 2026-02-01: modificato dopo l'applicazione",
                "89.02 Visita 2 · 2024-01-01: si annulla solo insieme a «89.02 Visita 2 · 2026-02-01»",
            },
        ),
        (
            f"UPDATE price SET valid_to = '2026-06-01' WHERE amount = 53 AND valid_from = '2026-02-01'; {THIRD}",
            "DELETE FROM price WHERE amount = 60; UPDATE price SET valid_to = NULL WHERE amount = 53",
            {
                "89.02 Visita 2 · 2026-02-01: modificato dopo l'applicazione",
                "89.02 Visita 2 · 2024-01-01: si annulla solo insieme a «89.02 Visita 2 · 2026-02-01»",
            },
        ),
    ],
    ids=["the-old-one-edited", "the-new-one-edited", "a-third-one-added"],
)
def test_the_rows_of_one_price_are_taken_back_together(synced: Lab, edit: str, kept: str, said: set[str]) -> None:
    second, third = held(synced, "S2"), held(synced, "S3")
    synced.hold(prices=DEARER)
    report = synced.sync("prices")
    synced.write(edit)
    as_edited = held(synced, "S2")
    seen = undo(synced, report, preview=True)
    assert (seen.counts.skipped, {teller().reason(reason) for reason in seen.reasons}) == (2, said)
    back = undo(synced, report)
    assert (back.outcome, {teller().reason(reason) for reason in back.reasons}) == (Outcome.PARTIAL, said)
    assert (held(synced, "S2"), held(synced, "S3")) == (as_edited, third)
    # Once the edit is taken back by hand, so is the rest.
    synced.write(kept)
    assert undo(synced, report).outcome is Outcome.OK
    assert (held(synced, "S2"), held(synced, "S3")) == (second, third)


def test_a_price_added_by_hand_in_the_place_of_one_to_reopen_is_named(synced: Lab) -> None:
    synced.hold(prices=[*PRICES[:2], *PRICES[4:]])
    report = synced.sync("prices")
    synced.write(THIRD)
    by_hand = held(synced, "S2")
    back = undo(synced, report)
    assert (back.outcome, [teller().reason(reason) for reason in back.reasons]) == (
        Outcome.PARTIAL,
        ["89.02 Visita 2 · 2024-01-01: si sovrappone a un prezzo che resta"],
    )
    assert held(synced, "S2") == by_hand
    assert [row[1] for row in held(synced, "S3")] == [None]


def test_a_code_that_a_service_keeps_is_not_given_back_to_another(synced: Lab) -> None:
    first, second, third, *others = SERVICES
    swapped = [first | {"code": second["code"]}, second | {"code": first["code"]}, third | {"name": "Altra"}]
    synced.hold(services=[*swapped, *others])
    report = synced.sync("services")
    synced.write("UPDATE service SET name = 'A mano' WHERE external_id = 'S0'")
    back = undo(synced, report)
    assert (back.outcome, back.counts.updated, {teller().reason(reason) for reason in back.reasons}) == (
        Outcome.PARTIAL,
        1,
        {
            "89.00 Visita 0: modificato dopo l'applicazione",
            "89.01 Visita 1: il codice 89.01 è di un'altra prestazione",
        },
    )
    named = "SELECT external_id, code, name FROM service WHERE external_id IN ('S0', 'S1', 'S2') ORDER BY 1"
    assert synced.rows(named) == [
        ("S0", "89.01", "A mano"),
        ("S1", "89.00", "Visita 1"),
        ("S2", "89.02", "Visita 2"),
    ]


def test_a_price_added_after_the_preview_refuses_the_plan_by_name(synced: Lab) -> None:
    synced.write("UPDATE price SET valid_to = '2026-03-01' WHERE amount = 55")
    edited = PRICES[5] | {"valid_to": "2026-03-01"}
    new = PRICES[5] | {"valid_from": "2026-03-01", "amount": "56.00"}
    synced.hold(prices=[PRICES[0], PRICES[1] | {"amount": "52.00"}, *PRICES[2:5], edited, *PRICES[6:], new])
    plan = synced.plan(synced.sync("prices", preview=True))
    synced.write(ADDED)
    with synced.engine.begin() as connection:
        report = changes.apply(connection, plan.id, as_of=world.AS_OF, actor="desk:anna")
    said = ["89.05 Visita 5 · 2026-03-01: c'è già: rifai l'anteprima"]
    assert (report.outcome, [teller().reason(reason) for reason in report.reasons]) == (Outcome.REFUSED, said)
    assert is_stale(report)


def test_what_a_constraint_forbids_is_said_and_compared_again_once(
    synced: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan gives a price back its open end; meanwhile somebody has typed one that begins later."""
    synced.write("UPDATE price SET valid_to = '2026-03-20' WHERE amount = 55")
    reports, settle = [], engine_of_plans.settle

    def meanwhile(*given: Any, **more: Any) -> Report:
        if not reports:
            synced.write(ADDED)
        reports.append(settle(*given, **more))
        return reports[-1]

    monkeypatch.setattr(engine_of_plans, "settle", meanwhile)
    report = synced.sync("prices")
    assert [(told.outcome, [reason.code for reason in told.reasons]) for told in reports] == [
        (Outcome.REFUSED, ["constraint"]),
        (Outcome.OK, []),
    ]
    said = teller().reason(reports[0].reasons[0])
    assert "(prezzi) non si può applicare: una delle sue righe si sovrappone a qualcosa che ormai c'è." in said
    assert report.outcome is Outcome.OK
    assert [(str(start), end) for start, end, *_ in held(synced, "S5") if end != start] == [("2024-01-01", None)]


@pytest.mark.parametrize("reason", ["", " " * 12, " \t va bene \n "])
def test_blanks_are_no_reason(synced: Lab, reason: str) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "99.00"}, *PRICES[1:]])
    plan = synced.plan(synced.sync("prices"))
    with synced.engine.begin() as connection:
        report = changes.apply(
            connection, plan.id, as_of=world.AS_OF, actor="desk:anna", reason=reason, past_guards=["price_jump"]
        )
        assert [reason.code for reason in report.reasons] == ["reason_missing"]
