"""When a price is in force, from one list to the next, and what its guards compare it with."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import pytest

from polydesk_dagster.outcome import Outcome
from tests import world
from tests.sources.lab import AGREEMENTS, PRICES, Lab, lab, synced
from tests.sources.test_kinds_prices import spell

__all__ = ["lab", "synced"]  # fixtures

OTHERS = [*PRICES[:1], *PRICES[2:]]


def spells(lab: Lab) -> list[str]:
    """What S1 costs privately, and when."""
    query = """SELECT concat_ws(' ', p.valid_from, coalesce(CAST(p.valid_to AS text), '-'), p.amount)
               FROM price p JOIN service s ON s.id = p.service_id
               WHERE s.external_id = 'S1' AND p.agreement_id IS NULL AND p.valid_to IS DISTINCT FROM p.valid_from
               ORDER BY p.valid_from"""
    return [told for (told,) in lab.rows(query)]


@pytest.mark.parametrize(
    ("lists", "held"),
    [
        ([[spell("52.00", "2027-01-01")]], ["2024-01-01 2027-01-01 51.00", "2027-01-01 - 52.00"]),
        (
            [[spell("52.00", "2027-01-01")], [spell("53.00", "2028-01-01")]],
            ["2024-01-01 2028-01-01 51.00", "2028-01-01 - 53.00"],
        ),
        (
            [[spell("52.00", "2027-01-01")], [spell("52.00", "2027-03-01")]],
            ["2024-01-01 2027-03-01 51.00", "2027-03-01 - 52.00"],
        ),
        (
            [[spell("52.00", "2027-01-01")], [spell("52.00", "2026-06-01")]],
            ["2024-01-01 2026-06-01 51.00", "2026-06-01 - 52.00"],
        ),
        (
            [[spell("53.00", "2026-04-01")], [spell("53.00", "2026-05-01")]],
            ["2024-01-01 2026-05-01 51.00", "2026-05-01 - 53.00"],
        ),
    ],
    ids=["replaced", "replaced-twice", "postponed", "brought-forward", "postponed-soon"],
)
def test_a_price_that_is_replaced_lasts_until_its_successor_begins(
    synced: Lab, lists: list[list[dict[str, Any]]], held: list[str]
) -> None:
    for prices in lists:
        synced.hold(prices=[*OTHERS, *prices])
        assert synced.sync("prices").outcome is Outcome.OK
    assert spells(synced) == held
    for days in (0, 1, 30):
        synced.write("UPDATE source_state SET etag = NULL")
        assert synced.sync("prices", as_of=world.AS_OF + timedelta(days=days)).outcome is Outcome.NOTHING_TO_DO
    assert spells(synced) == held


def test_a_price_that_is_only_announced_starts_when_the_source_now_says(synced: Lab) -> None:
    synced.write("DELETE FROM price")
    for start in ("2026-04-01", "2026-05-01"):
        synced.hold(prices=[*OTHERS, spell("53.00", start)])
        assert synced.sync("prices").outcome is Outcome.OK
        assert spells(synced) == [f"{start} - 53.00"]


def test_an_agreement_that_never_began_is_withdrawn_once(synced: Lab) -> None:
    more = [AGREEMENTS[0] | {"id": f"C{n}", "name": f"Fondo {n}"} for n in range(2, 6)]
    announced = {"id": "C9", "name": "Futura", "kind": "fund", "valid_from": "2027-01-01"}
    synced.hold(agreements=[*AGREEMENTS, *more, announced])
    assert synced.sync("agreements").counts.created == 5
    synced.hold(agreements=[*AGREEMENTS, *more])
    assert synced.sync("agreements").counts.retired == 1
    assert synced.rows("SELECT valid_to FROM agreement WHERE external_id = 'C9'") == [(date(2027, 1, 1),)]
    synced.write("UPDATE source_state SET etag = NULL")
    assert synced.sync("agreements").outcome is Outcome.NOTHING_TO_DO
    synced.hold(agreements=[*AGREEMENTS, *more, announced | {"id": "C10"}])
    counts = synced.sync("agreements").counts
    assert (counts.created, counts.changed, counts.waiting) == (1, 1, 0), "one that has ended has no new id"


def failed(lab: Lab, prices: list[dict[str, Any]], as_of: datetime = world.AS_OF) -> set[str]:
    """The guards that speak against rows of a list of prices; none stops all of it."""
    lab.hold(prices=prices)
    plan = lab.plan(lab.sync("prices", as_of=as_of))
    assert not plan.failed_guards
    return {guard.name for guard in plan.holding_guards}


@pytest.mark.parametrize(("was", "becomes"), [("10.00", None), (None, "0.00"), (None, "10.00"), ("40.00", "20.00")])
def test_who_pays_all_or_a_share_is_measured_by_what_the_patient_pays(
    synced: Lab, was: str | None, becomes: str | None
) -> None:
    synced.write(f"UPDATE price SET patient_share = {was or 'NULL'} WHERE agreement_id IS NOT NULL")
    assert failed(synced, [*PRICES[:-1], PRICES[-1] | {"patient_share": becomes}]) == {"price_jump"}


def test_saying_that_the_patient_pays_all_is_no_jump(synced: Lab) -> None:
    assert failed(synced, [PRICES[0] | {"patient_share": "50.00"}, *PRICES[1:]]) == set()


def test_a_price_that_rises_from_zero_waits_for_a_person(synced: Lab) -> None:
    synced.write("UPDATE price SET amount = 0 WHERE amount = 50")
    assert failed(synced, [PRICES[0] | {"amount": "900.00"}, *PRICES[1:]]) == {"price_jump"}


@pytest.mark.parametrize(
    ("before", "after", "days"),
    [
        ([], [spell("1400.00", "2026-03-11")], 1),
        ([spell("51.00", "2024-01-01", "2026-03-15")], [spell("1400.00", "2026-03-16")], 0),
        ([], [spell("1400.00", "2024-01-01")], 5),
    ],
    ids=["closed-and-back", "ends-and-begins-anew", "the-same-start"],
)
def test_a_price_after_a_gap_is_measured_by_the_one_before(
    synced: Lab, before: list[dict[str, Any]], after: list[dict[str, Any]], days: int
) -> None:
    assert failed(synced, [*OTHERS, *before]) == set()
    ended = [price for price in before if price["valid_to"]]
    later = world.AS_OF + timedelta(days=days)
    assert failed(synced, [*OTHERS, *ended, *after], later) == {"price_jump", "code_reused"}
    assert failed(synced, [*OTHERS, *ended, *(price | {"amount": "52.00"} for price in after)], later) == set()


@pytest.mark.parametrize("start", ["2024-01-01", "2025-01-01", "2027-01-01"])
def test_an_interval_that_is_empty_at_the_source_says_nothing(synced: Lab, start: str) -> None:
    synced.hold(prices=[*PRICES, spell("99.00", start, start)])
    report = synced.sync("prices")
    assert (report.outcome, report.counts.skipped) == (Outcome.NOTHING_TO_DO, 0)
    synced.hold(prices=[*PRICES[:1], spell("52.00", "2024-01-01"), spell("99.00", start, start), *PRICES[2:]])
    assert synced.sync("prices").counts.updated == 1
    assert spells(synced) == ["2024-01-01 - 52.00"]


def test_a_price_that_the_source_empties_is_closed(synced: Lab) -> None:
    synced.hold(prices=[*OTHERS, spell("51.00", "2024-01-01", "2024-01-01")])
    assert synced.sync("prices").counts.retired == 1
    assert spells(synced) == ["2024-01-01 2026-03-10 51.00"]


def test_a_price_withdrawn_while_a_later_one_is_announced_lasts_until_then_and_is_told(synced: Lab) -> None:
    announced = spell("53.00", "2026-06-01")
    told = []
    for prices in ([spell("51.00", "2024-01-01", "2026-06-01"), announced], [announced], [announced]):
        synced.hold(prices=[*OTHERS, *prices])
        report = synced.sync("prices")
        told.append(
            ["price_withdrawn_before_next" in {reason.code for reason in report.reasons}, report.counts.changed]
        )
        synced.write("UPDATE source_state SET etag = NULL")
    assert told == [[False, 2], [True, 0], [True, 0]]
    assert spells(synced) == ["2024-01-01 2026-06-01 51.00", "2026-06-01 - 53.00"]
