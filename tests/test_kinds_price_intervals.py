"""When a price is in force, from one list to the next, and what its guards compare it with."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from polydesk_dagster.outcome import Outcome
from tests import world
from tests.test_kinds_studiolab import AGREEMENTS, PRICES, Lab, lab, spell, synced

__all__ = ["lab", "synced"]  # fixtures

OTHERS = [price for price in PRICES if price["service_id"] != "S1"]


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
