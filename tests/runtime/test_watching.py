"""What is wrong leaves by a webhook, once, also while a database is down; a sign of life while all is well."""

from __future__ import annotations

import logging
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from polydesk_dagster.runtime import health, processes, watching
from polydesk_dagster.runtime import outside as ways
from polydesk_dagster.runtime.state.model import Finding
from polydesk_dagster.runtime.watching import Watcher
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Duration
from tests.runtime.outside import Outside, outside

__all__ = ["outside"]  # a fixture

NOW = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
TOKEN = "segretissimo-7"
WELL = [Finding("schema", ok=True, values={"found": "0001", "wanted": "0001"})]
DOWN = [Finding("database", ok=False, values={"why": "OperationalError"})]
STUCK = [
    *WELL,
    Finding("restored", ok=False, values={"since": None}),
]


@pytest.fixture
def settings(outside: Outside, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, alert_url=f"{outside.url}/hook?k=geheim", alert_token=TOKEN)


def _looks(watcher: Watcher, *each: list[Finding], moment: float = 0.0) -> None:
    for findings in each:
        watcher.look(findings, NOW, moment)


def test_each_change_is_told_once_and_a_restart_repeats_nothing(settings: Settings, outside: Outside) -> None:
    with Watcher(settings) as watcher:
        _looks(watcher, WELL, WELL, STUCK, WELL, STUCK)  # what one look alone says is nothing yet
        assert outside.asked == []
        _looks(watcher, STUCK, STUCK, STUCK)
    with Watcher(settings) as watcher:
        _looks(watcher, STUCK, STUCK)
        (told,) = outside.taken()
        _looks(watcher, WELL, WELL, WELL)
    began, over = outside.taken()
    assert told == began
    assert (began["ok"], over["ok"], began["at"]) == (False, True, NOW.isoformat())
    assert [(each["code"], each["ok"]) for each in (*began["findings"], *over["findings"])] == [
        ("restored", False),
        ("restored", True),
    ]
    assert began["findings"][0]["message"] in began["text"]
    assert began["findings"][0]["message"] in over["text"]
    assert outside.asked[0][1] == "/hook?k=geheim"
    assert {asked[2]["Authorization"] for asked in outside.asked} == {f"Bearer {TOKEN}"}
    assert len({asked[2]["Idempotency-Key"] for asked in outside.asked}) == 2
    assert stat.S_IMODE((settings.home / watching.FILE).stat().st_mode) == 0o600


def test_it_tells_that_the_database_is_down_and_calls_nothing_well_that_it_cannot_see(
    settings: Settings, outside: Outside
) -> None:
    """By the real look at a server that is not there."""
    gone = settings.model_copy(
        update={"database_url": Settings(database_url="postgresql://x@127.0.0.1:9/x").database_url}
    )
    down = health.examine(gone, NOW)
    with Watcher(gone) as watcher:
        _looks(watcher, STUCK, STUCK, down, down, down)
        assert [[each["code"] for each in body["findings"]] for body in outside.taken()] == [
            ["restored"],
            ["dagster_database", "database"],
        ]
        _looks(watcher, WELL, WELL)
    last = outside.taken()[-1]
    assert last["ok"]
    assert {each["code"] for each in last["findings"]} == {"restored", "database", "dagster_database"}


def test_what_was_not_taken_is_tried_again_within_bounds_and_comes_later(
    settings: Settings, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    outside.moods = [500, 0, 302, 404, 429, 503]
    with caplog.at_level(logging.WARNING), Watcher(settings, wait=0.0) as watcher:
        _looks(watcher, STUCK, STUCK, STUCK)
        assert len(outside.asked) == ways.ATTEMPTS  # and then a pause
        _looks(watcher, STUCK, moment=watching.LOOK)
        _looks(watcher, STUCK, moment=2 * watching.LOOK)
        assert len(outside.asked) == 2 * ways.ATTEMPTS
        _looks(watcher, STUCK, STUCK, moment=3 * watching.LOOK)
        assert len(outside.asked) == 2 * ways.ATTEMPTS + 1
    assert len({asked[2]["Idempotency-Key"] for asked in outside.asked}) == 1  # for who took it and did not say so
    assert {asked[1] for asked in outside.asked} == {"/hook?k=geheim"}  # it is led nowhere else
    assert "was not taken: 302" in caplog.text
    assert "geheim" not in caplog.text
    assert TOKEN not in caplog.text


def test_apprise_is_told_too_and_who_took_it_is_not_told_again_while_another_does_not(
    settings: Settings, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    """By Apprise's own way of posting JSON; of its addresses nothing is logged, not even by itself."""
    where = outside.url.removeprefix("http://")
    both = settings.model_copy(update={"alert_apprise": SecretStr(f"json://{where}/k/geheim json://{where}/two")})
    outside.moods = [204, 500, 204]
    with caplog.at_level(logging.WARNING), Watcher(both, wait=0.0) as watcher:
        _looks(watcher, STUCK, STUCK)
        _looks(watcher, STUCK, moment=watching.LOOK)
        _looks(watcher, STUCK, WELL, WELL, moment=2 * watching.LOOK)
    by_us, by_apprise = "/hook?k=geheim", ["/k/geheim", "/two"]
    assert [asked[1] for asked in outside.asked if asked[1] == by_us] == [by_us] * 2
    assert sorted({asked[1] for asked in outside.asked if asked[1] != by_us}) == by_apprise
    told = [body for body in outside.taken() if "message" in body]
    assert (told[0]["type"], told[-1]["type"]) == ("failure", "success")
    assert outside.taken()[0]["text"] == told[0]["message"]
    assert "was not taken: Apprise" in caplog.text
    assert "geheim" not in caplog.text


def test_a_sign_of_life_goes_out_while_all_is_well_and_then_only(outside: Outside, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, ping_url=f"{outside.url}/ping", ping_minutes=2)
    outside.moods = [503] * ways.ATTEMPTS
    with Watcher(settings, wait=0.0) as watcher:
        for moment, findings, pings in (
            (0.0, WELL, ways.ATTEMPTS),  # not taken
            (30.0, WELL, ways.ATTEMPTS + 1),
            (60.0, WELL, ways.ATTEMPTS + 1),
            (150.0, WELL, ways.ATTEMPTS + 2),
            (300.0, DOWN, ways.ATTEMPTS + 2),
            (330.0, WELL, ways.ATTEMPTS + 3),
        ):
            _looks(watcher, findings, moment=moment)
            assert [asked[:2] for asked in outside.asked] == [("GET", "/ping")] * pings


def test_a_damaged_memory_is_none(settings: Settings, outside: Outside) -> None:
    for broken in ("", "[]", '{"told": [1], "at": ""}', '{"told": [{}], "at": 1}', "\0"):
        (settings.home / watching.FILE).write_text(broken)
        with Watcher(settings) as watcher:
            _looks(watcher, WELL, WELL)
    assert outside.asked == []


CODES = st.sampled_from(["database", "schema", "restored", "stuck_run"])
LOOKS = st.lists(st.dictionaries(CODES, st.booleans(), max_size=4), max_size=12)


@given(LOOKS)
def test_whoever_follows_what_is_told_knows_what_is_wrong(looks: list[dict[str, bool]]) -> None:
    """Nothing is told twice, nothing over that was not told; two whole looks that agree leave nothing untold."""
    told: dict[str, watching.Entry] = {}
    before: set[str] = set()
    for found in [*looks, *[{code: code == "schema" for code in ("schema", "restored")}] * 2]:
        entries = [{"code": code, "subject": None, "ok": ok} for code, ok in found.items()]
        begun, over = watching.changes(told, before, entries)
        before = watching.standing(told, entries)
        assert over <= told.keys()
        assert not {watching.named(entry) for entry in begun} & told.keys()
        told = {name: entry for name, entry in told.items() if name not in over}
        told |= {watching.named(entry): entry for entry in begun}
    assert told.keys() == {"restored"}


def test_it_is_a_process_of_its_own_where_somebody_is_to_be_told(settings: Settings) -> None:
    def named(of: Settings) -> set[str]:
        return {child.name for child in processes.dagster_children(of, {})}

    assert named(settings) - named(Settings(home=settings.home)) == {"watcher"}
    assert "watcher" in named(Settings(home=settings.home, alert_apprise="json://x"))


def test_every_look_may_be_told(settings: Settings, outside: Outside) -> None:
    """Values of every kind are JSON."""
    late = [Finding("daemon", ok=False, subject="SENSOR", values={"silent": Duration(200), "at": None, "daemon": "x"})]
    with Watcher(settings) as watcher:
        _looks(watcher, late, late)
    assert outside.taken()[0]["findings"][0]["subject"] == "SENSOR"
