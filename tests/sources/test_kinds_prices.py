"""Prices of studiolab's list: what differs from ours, from when each is valid, and which jump too far."""

from __future__ import annotations

from typing import Any

import pytest

from polydesk_dagster import changes
from polydesk_dagster.changes import show
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from tests import world
from tests.sources.lab import AGREEMENTS, COLLABORATORS, PRICES, SERVICES, Lab, lab, synced

__all__ = ["lab", "synced"]  # fixtures


def test_prices_of_every_kind_of_discrepancy(synced: Lab) -> None:
    prices = [dict(price) for price in PRICES]
    prices[0] |= {"amount": "51.00"}
    prices[1] |= {"amount": "1,234"}
    prices[2] |= {"valid_from": "2026-02-01", "amount": "53.00"}
    del prices[3]
    prices.append(prices[4])
    prices.append({"service_id": "S9999", "amount": "1.00", "currency": "EUR", "valid_from": "2024-01-01"})
    prices.append({"service_id": "S5", "amount": "60.00", "currency": "EUR", "valid_from": "2025-01-01"})
    synced.hold(prices=prices)
    report = synced.sync("prices", preview=True)
    tally = synced.plan(report).tally
    assert {name: tally[name] for name in ("differs", "invalid", "unmapped", "overlapping", "missing_there")} == {
        "differs": 2,
        "invalid": 1,
        "unmapped": 1,
        "overlapping": 2,
        "missing_there": 1,
    }
    assert synced.rows("SELECT count(*) FROM price WHERE valid_to IS NULL") == [(21,)]
    applied = synced.sync("prices")
    assert (applied.outcome, applied.counts.waiting) == (Outcome.PARTIAL, 4)
    # The unreadable one and those that contradict themselves stay as they were.
    amounts = "SELECT p.amount FROM price p JOIN service s ON s.id = p.service_id WHERE s.external_id = '{}' {}"
    assert synced.rows(amounts.format("S1", "AND p.agreement_id IS NULL"))[0][0] == 51
    assert [str(a) for (a,) in synced.rows(amounts.format("S5", ""))] == ["55.00"]
    assert [str(a) for (a,) in synced.rows(amounts.format("S2", "ORDER BY valid_from"))] == ["52.00", "53.00"]
    assert synced.sync("prices").counts.changed == 0


def spell(amount: str, start: str, end: str | None = None, **fields: str) -> dict[str, Any]:
    """What S1 costs for a while."""
    return {"service_id": "S1", "amount": amount, "currency": "EUR", "valid_from": start, "valid_to": end, **fields}


THEN = [spell("51.00", "2024-01-01", "2025-01-01"), spell("52.00", "2025-01-01", "2026-01-01")]


EARLIER = [spell("51.00", "2024-01-01", "2024-06-01"), spell("52.00", "2024-06-01", "2026-01-01")]


LATER = [spell("51.00", "2024-01-01", "2025-06-01"), spell("52.00", "2025-06-01", "2026-01-01")]


NOW = spell("53.00", "2026-01-01")


ALWAYS = [spell("51.00", "2024-01-01")]


WITHDRAWN = [spell("51.00", "2024-01-01", "2025-06-01"), spell("55.00", "2025-06-01")]


SOON = [spell("51.00", "2024-01-01", "2026-06-01"), spell("55.00", "2026-06-01")]


DELAYED = [spell("51.00", "2024-01-01", "2026-07-01"), spell("55.00", "2026-07-01")]


@pytest.mark.parametrize(
    ("lists", "held"),
    [
        ([[spell("51.00", "2023-01-01")]], ["2023-01-01 - 51.00"]),
        ([WITHDRAWN, ALWAYS], ["2024-01-01 - 51.00"]),
        (
            [[*THEN, NOW], [*LATER, NOW]],
            ["2024-01-01 2025-06-01 51.00", "2025-06-01 2026-01-01 52.00", "2026-01-01 - 53.00"],
        ),
        (
            [[*THEN, NOW], [*EARLIER, NOW]],
            ["2024-01-01 2024-06-01 51.00", "2024-06-01 2026-01-01 52.00", "2026-01-01 - 53.00"],
        ),
        (
            [[*THEN, NOW], [NOW]],
            ["2024-01-01 2025-01-01 51.00", "2025-01-01 2026-01-01 52.00", "2026-01-01 - 53.00"],
        ),
        ([SOON, DELAYED], ["2024-01-01 2026-07-01 51.00", "2026-07-01 - 55.00"]),
        ([DELAYED, SOON], ["2024-01-01 2026-06-01 51.00", "2026-06-01 - 55.00"]),
        ([SOON, ALWAYS], ["2024-01-01 - 51.00"]),
        ([SOON, ALWAYS, SOON], ["2024-01-01 2026-06-01 51.00", "2026-06-01 - 55.00"]),
        (
            [[SOON[0]], [spell("51.00", "2026-09-01")]],
            ["2024-01-01 2026-03-10 51.00", "2026-09-01 - 51.00"],
        ),
    ],
    ids=[
        "start-earlier",
        "past-change-withdrawn",
        "past-boundary-later",
        "past-boundary-earlier",
        "history-dropped",
        "announced-delayed",
        "announced-brought-forward",
        "announced-withdrawn",
        "announced-again",
        "announced-after-a-gap",
    ],
)
def test_a_price_is_valid_when_the_source_says_so(
    synced: Lab, lists: list[list[dict[str, Any]]], held: list[str]
) -> None:
    others = [price for price in PRICES if price["service_id"] != "S1"]
    for prices in lists:
        synced.hold(prices=[*others, *prices])
        assert synced.sync("prices").outcome in {Outcome.OK, Outcome.NOTHING_TO_DO}
    spells = """SELECT concat_ws(' ', p.valid_from, coalesce(CAST(p.valid_to AS text), '-'), p.amount)
                FROM price p JOIN service s ON s.id = p.service_id
                WHERE s.external_id = 'S1' AND p.agreement_id IS NULL AND p.valid_to IS DISTINCT FROM p.valid_from
                ORDER BY p.valid_from"""
    assert [spell for (spell,) in synced.rows(spells)] == held
    synced.write("UPDATE source_state SET etag = NULL")
    assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO


def test_a_corrected_period_is_told_as_such_and_taken_back_whole(synced: Lab) -> None:
    others = [price for price in PRICES if price["service_id"] != "S1"]
    synced.hold(prices=[*others, *THEN, NOW])
    synced.sync("prices")
    before = synced.rows("SELECT id, valid_from, valid_to, amount FROM price ORDER BY id")
    synced.hold(prices=[*others, *LATER, NOW])
    report = synced.sync("prices")
    assert synced.plan(report).tally["replaced"] == 1
    with synced.engine.begin() as connection:
        (gone,) = [row for row in show.rows(connection, synced.plan(report), PRICE) if row.action == "retire"]
        assert gone.reason == Reason("period_corrected")
        undone = changes.undo(connection, report.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert undone.outcome is Outcome.OK
    assert synced.rows("SELECT id, valid_from, valid_to, amount FROM price ORDER BY id") == before


def test_a_price_that_starts_earlier_is_measured_against_the_one_in_force(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "99.00", "valid_from": "2023-01-01"}, *PRICES[1:]])
    assert [guard.name for guard in synced.plan(synced.sync("prices")).holding_guards] == ["price_jump"]


def test_what_replaces_a_price_is_taken_though_another_of_the_service_is_unreadable(synced: Lab) -> None:
    fund = PRICES[-1]
    synced.hold(prices=[*PRICES[:1], *SOON, *PRICES[2:-1], fund | {"amount": "?"}])
    assert synced.sync("prices").counts.created == 1
    synced.hold(prices=[*PRICES[:1], SOON[0], SOON[1] | {"valid_from": "2026-05-01", "amount": "?"}, *PRICES[2:]])
    assert synced.sync("prices").outcome is Outcome.PARTIAL
    synced.hold(prices=[*PRICES[:1], NOW, *PRICES[2:], {"amount": "?"}])
    report = synced.sync("prices")
    assert (report.counts.created, report.counts.updated, report.counts.retired) == (1, 0, 2)


def test_an_item_whose_records_leave_no_room_for_each_other_is_left_as_it_is(synced: Lab) -> None:
    unclear = [spell("51.00", "2024-01-01", "2025-06-01"), spell("60.00", "2025-01-01", "2026-01-01"), NOW]
    synced.hold(prices=[PRICES[0] | {"amount": "51.00"}, *unclear, *PRICES[2:]])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 3)
    with synced.engine.connect() as connection:
        rows = [row for row in show.rows(connection, synced.plan(report), PRICE) if row.action == "conflict"]
    assert {(row.finding, row.key[:5]) for row in rows} == {("overlapping", "89.01")}
    assert any("si sovrappone a un prezzo che resta" in teller().value(row.reason) for row in rows)


def test_a_price_of_something_unknown_is_not_taken_for_the_private_one(synced: Lab) -> None:
    others = [price for price in PRICES if price["service_id"] != "S1"]
    unknown = [price | {"agreement_id": "NUOVA", "amount": "30.00"} for price in SOON]
    synced.hold(prices=[*others, *SOON, *unknown])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 1, 2)
    assert synced.plan(report).tally["unmapped"] == 2
    synced.hold(prices=[*others, *unknown])
    assert synced.sync("prices").counts.retired == 2


def test_a_deleted_service_gets_no_price_and_keeps_what_it_had(synced: Lab) -> None:
    synced.write("UPDATE service SET deleted_at = now() WHERE external_id IN ('S1', 'S2')")
    synced.hold(prices=[*PRICES, PRICES[2] | {"agreement_id": "C1"}])
    report = synced.sync("prices")
    assert (report.counts.changed, report.counts.waiting) == (0, 4)
    with synced.engine.connect() as connection:
        rows = list(show.rows(connection, synced.plan(report), PRICE))
    assert {(row.action, row.finding) for row in rows} == {("conflict", "unmapped")}
    assert rows[0].reason is not None
    assert rows[0].reason.code == "service_deleted"


@pytest.mark.parametrize(("was", "becomes"), [("10.00", "40.00"), ("0.00", "10.00"), ("30.00", "10.00")])
def test_what_the_patient_pays_may_not_jump_either(synced: Lab, was: str, becomes: str) -> None:
    synced.write(f"UPDATE price SET patient_share = {was} WHERE agreement_id IS NOT NULL")
    synced.hold(prices=[*PRICES[:-1], PRICES[-1] | {"patient_share": becomes}])
    assert [guard.name for guard in synced.plan(synced.sync("prices")).holding_guards] == ["price_jump"]


def test_a_price_edited_after_the_preview_refuses_the_plan_by_name(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "51.00"}, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    plan = synced.plan(synced.sync("prices", preview=True))
    synced.write("UPDATE price SET amount = 7 WHERE amount = 50")
    scope = Scope("sync_prices", "BO01", synced.clinic)
    report = settle(synced.engine, PRICE, scope, plan, as_of=world.AS_OF, actor="desk:anna")
    assert report.outcome is Outcome.REFUSED
    assert [teller().reason(reason) for reason in report.reasons] == ["89.00 Visita 0 · 2024-01-01: modificato dopo"]
    assert synced.rows("SELECT count(*) FROM price WHERE amount IN (51, 7)") == [(2,)]


@pytest.mark.parametrize(
    "bad",
    [
        {"service_id": "S0\0", "amount": 5},
        {"service_id": "S\ud800", "amount": 5},
        {"amount": 5, "note": ["a\0b", {"\ud800": 1}]},
        {"service_id": world.NOISE},
        {"agreement_id": world.NOISE},
        {"vat_rate": "1000.00"},
        {"vat_rate": "101"},
        {"amount": "123456789.00"},
        {"patient_share": "-1.00"},
    ],
    ids=lambda bad: next(reversed(bad)) + str(len(str(bad))),
)
def test_whatever_is_in_a_bad_price_it_is_set_aside_alone(synced: Lab, bad: dict[str, Any]) -> None:
    synced.hold(prices=[PRICES[0] | bad, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    assert synced.rows("SELECT count(*) FROM quarantine") == [(1,)]


def test_a_price_that_jumps_or_falls_to_zero_waits_for_a_person(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "5.00"}, PRICES[1] | {"amount": "0.00"}, *PRICES[2:]])
    report = synced.sync("prices")
    plan = synced.plan(report)
    assert (report.outcome, report.counts.waiting, plan.state) == (Outcome.PARTIAL, 2, "ready")
    assert {guard.name for guard in plan.holding_guards} == {"price_jump", "code_reused", "zero_price"}
    assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO  # the same question is asked once


def test_one_true_jump_holds_back_nothing_else_and_is_let_through_by_name(synced: Lab) -> None:
    synced.hold(prices=[PRICES[0] | {"amount": "70.00"}, PRICES[1] | {"amount": "52.00"}, *PRICES[2:]])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    assert "trattenut" not in str(report)
    assert "30 %" in " ".join(map(teller().reason, report.reasons))
    plan = synced.plan(synced.sync("prices", preview=True))
    scope = Scope(plan.service, plan.clinic, plan.clinic_id)

    def past(**word: Any) -> Report:
        return settle(synced.engine, PRICE, scope, plan, as_of=world.AS_OF, actor="desk:anna", **word)

    assert past(past_guards=["price_jump"]).reasons[0].code == "reason_missing"
    let = past(past_guards=["price_jump"], reason="listino nuovo della direzione")
    assert (let.outcome, let.counts.updated, let.counts.waiting) == (Outcome.OK, 1, 0)
    assert synced.rows("SELECT amount FROM price p JOIN service s ON s.id = p.service_id WHERE external_id = 'S0'") == [
        (70,)
    ]
    with synced.engine.begin() as connection:
        assert changes.undo(connection, plan.id, as_of=world.AS_OF, actor="desk:anna").counts.updated == 1
    assert synced.sync("prices").counts.changed == 0


DOCTORS = [*PRICES, PRICES[2] | {"collaborator_id": "D1", "amount": "80.00"}]


@pytest.mark.parametrize("asked", [True, False], ids=["waits to be linked", "not read yet"])
@pytest.mark.parametrize(
    ("feed", "records", "field"),
    [("services", SERVICES, "service_id"), ("collaborators", COLLABORATORS, "collaborator_id"),
     ("agreements", AGREEMENTS, "agreement_id")],
)  # fmt: skip
def test_a_price_of_what_got_a_new_number_waits_and_is_never_closed(
    synced: Lab, feed: str, records: list[dict[str, Any]], field: str, asked: bool
) -> None:
    synced.hold(prices=DOCTORS)
    assert synced.sync("prices").counts.created == 1
    before = synced.rows("SELECT id, amount, valid_to FROM price ORDER BY id")
    old = records[0]["id"]
    prices = [price | {field: "NEW"} if price.get(field) == old else price for price in DOCTORS]
    if asked:  # then it is known, whatever it costs now
        prices = [price | {"amount": "41.00"} if price.get(field) == "NEW" else price for price in prices]
    synced.hold(prices=prices, **{feed: [records[0] | {"id": "NEW"}, *records[1:]]})
    if asked:
        assert synced.sync(feed).counts.waiting == 1
    report = synced.sync("prices")
    assert (report.counts.changed, report.counts.waiting) == (0, 2), report
    rows = synced.plan(report).rows
    ((item, reason),) = synced.rows(f"SELECT item, reason FROM {rows} WHERE id IS NOT NULL")
    assert (reason, "Visita" in item) == ("perhaps_renumbered", True)
    assert synced.rows("SELECT id, amount, valid_to FROM price ORDER BY id") == before
    gone = [price for price in prices if price.get(field) != "NEW"]
    synced.hold(prices=gone)  # nothing stands for it: it is gone
    assert synced.sync("prices").counts.retired == 1


def test_what_is_gone_is_told_from_what_is_renumbered_however_many_prices_name_something_unknown(synced: Lab) -> None:
    others = [PRICES[0] | {"service_id": f"X{n}", "amount": f"{900 + n}.00"} for n in range(1100)]
    synced.hold(prices=[*others, *PRICES[1:]])
    report = synced.sync("prices")
    assert (report.counts.retired, report.counts.waiting) == (1, 1100)
