from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from polydesk_dagster.central import Central
from polydesk_dagster.demo.simulators.central import CentralSimulator
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.told import teller
from tests.sources.test_remote_policy import FAST


@pytest.fixture
def central() -> Iterator[tuple[CentralSimulator, Central]]:
    simulator = CentralSimulator()
    with in_thread(simulator) as url, Central(url, DEMO_TOKEN, FAST) as client:
        yield simulator, client


def test_a_year_of_closures(central: tuple[CentralSimulator, Central]) -> None:
    _, client = central
    closures = client.closures(2026)
    assert (closures.year, closures.rejected) == (2026, ())
    named = {item.id: item for item in closures.items}
    assert named["it-0425-2026"].date_from == date(2026, 4, 25)
    assert named["vigilia-2026"].part == "afternoon"
    assert named["patrono-A944-2026"].municipality == "A944"
    assert named["pentecoste-2026"].date_from == date(2026, 5, 25)
    assert client.closures(2026).version == closures.version
    assert client.closures(2027).version != closures.version


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("date_to", "2020-01-01", "dopo"),
        ("date_from", "2026-02-30", "calendario"),
        ("date_from", 20260101, "data ISO"),
        ("date_from", "1/5/2026", "data ISO"),
        ("name", "  ", "name"),
        ("name", "\0", "vuoto"),
        ("name", 7, "testo"),
        ("part", "evening", "previsti"),
        ("scope", "planet", "previsti"),
        ("scope", "region", "region manca"),
        ("region", "Lazio", "national"),
        ("", "not an object", "oggetto"),
        ("", None, "oggetto"),
    ],
)
def test_a_bad_item_is_rejected_and_the_rest_kept(
    central: tuple[CentralSimulator, Central], field: str, value: Any, reason: str
) -> None:
    simulator, client = central
    whole = client.closures(2026)
    simulator.fail("set", item=0, field=field, value=value)
    closures = client.closures(2026)
    assert closures.items == whole.items[1:]
    (rejected,) = closures.rejected
    assert reason in teller().reason(rejected.reason)
    assert rejected.key == (whole.items[0].id if field else None)


def test_a_missing_field_another_year_and_fields_of_tomorrow(central: tuple[CentralSimulator, Central]) -> None:
    simulator, client = central
    whole = client.closures(2026)
    simulator.fail("remove", item=1, field="scope")
    simulator.fail("set", item=0, field="date_to", value="2027-01-06")
    simulator.fail("set", item=0, field="date_from", value="2027-01-01")
    simulator.fail("unknown_field")
    closures = client.closures(2026)
    assert closures.items == whole.items[2:]
    assert [teller().reason(item.reason) for item in closures.rejected] == [
        "nessun giorno cade nel 2026",
        "scope manca",
    ]


def test_untidy_text_is_tidied(central: tuple[CentralSimulator, Central]) -> None:
    simulator, client = central
    simulator.fail("untidy")
    simulator.fail("bom")
    assert all(item.name == item.name.strip("\ufeff ") for item in client.closures(2026).items)


@pytest.mark.parametrize(
    ("field", "value"),
    [("year", 2025), ("year", "2026"), ("items", None), ("items", {}), ("version", ""), ("version", 3)],
)
def test_an_answer_that_cannot_be_trusted_whole_is_refused(
    central: tuple[CentralSimulator, Central], field: str, value: Any
) -> None:
    simulator, client = central
    simulator.fail("top", field=field, value=value)
    with pytest.raises(PermanentError, match=r"2026|/closures"):
        client.closures(2026)


def test_a_failed_read_is_not_an_empty_list(central: tuple[CentralSimulator, Central]) -> None:
    simulator, client = central
    simulator.fail("cut", times=None)
    with pytest.raises(TransientError):
        client.closures(2026)
    simulator.faults.clear()
    simulator.fail("empty")
    assert client.closures(2026).items == ()


def test_what_the_simulator_was_told_outlives_it(tmp_path: Path) -> None:
    CentralSimulator(state=tmp_path).tell(2026, [])
    assert CentralSimulator(state=tmp_path).closures(2026) == []
