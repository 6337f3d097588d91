"""Tells by a webhook and by Apprise what went wrong and what is well again, and pings a dead-man's switch while all is
well: ``python -P -m polydesk_dagster.runtime.watching``.

It is a process of its own, which needs neither Dagster's daemon nor the door nor a database to speak.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from polydesk_dagster import settings as configuration
from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.runtime import health
from polydesk_dagster.runtime.outside import Outside
from polydesk_dagster.runtime.state.model import Finding
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import teller

LOOK = 30.0
"""Seconds between two looks; what two of them agree on is told."""
LONGEST_PAUSE = 900.0
"""After attempts in vain nothing is posted for :data:`LOOK` seconds, then twice as long, up to so many."""
FILE = "watched.json"
"""Under the home: what was told and is not over, so that a restart tells nothing again."""

BLIND = frozenset({"database", "dagster_database"})
"""Findings with which others cannot be looked for; what is not found then is not over."""

Entry = Mapping[str, Any]
"""A finding as the health endpoint has it."""


def named(entry: Entry) -> str:
    """What a finding is about."""
    return f"{entry['code']} {entry['subject'] or ''}".strip()


def standing(told: Collection[str], found: Sequence[Entry]) -> set[str]:
    """The names of what is wrong at a look, with what was told and cannot be seen now: while a database is down, or
    while so many are unwell alike that they are told together."""
    known = {named(entry) for entry in found}
    wrong = {named(entry) for entry in found if not entry["ok"]}
    blind = any(entry["code"] in BLIND and not entry["ok"] for entry in found)
    together = {entry["code"] for entry in found if not entry["ok"] and entry["subject"] is None}
    return wrong | {name for name in told if name not in known and (blind or name.split()[0] in together)}


def changes(told: Mapping[str, Entry], before: Collection[str], found: Sequence[Entry]) -> tuple[list[Entry], set[str]]:
    """What is wrong and was not told, or was as a warning and is none any more, and the names of what was told and is
    over. Only what the look before, at which ``before`` was standing, agrees with."""
    now = standing(told, found)
    wrong = [entry for entry in found if not entry["ok"] and named(entry) in before]
    begun = [entry for entry in wrong if named(entry) not in told or _graver(entry, told[named(entry)])]
    return begun, {name for name in told if name not in now and name not in before}


def _graver(entry: Entry, told: Entry) -> bool:
    return bool(told.get("warning")) and not entry["warning"]


class Watcher:
    """What was seen and told, and the connections by which it is told. Close it (or use ``with``)."""

    def __init__(self, settings: Settings, *, wait: float = 1.0) -> None:
        self._settings = settings
        self._outside = Outside(settings, wait=wait)
        self._taken: tuple[str, set[str]] = ("", set())
        self._told, self._told_at = self._kept()
        self._before: Collection[str] = set(self._told)
        self._in_vain = 0
        self._post_at = self._ping_at = 0.0
        self._log = logging.getLogger(__name__)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._outside.close()

    def look(self, findings: list[Finding], now: datetime, moment: float) -> None:
        """Tell what changed and ping while all is well; ``moment`` is of a clock that nobody sets, in seconds."""
        seen = health.as_object(findings, now, teller())
        begun, over = changes(self._told, self._before, seen["findings"])
        self._before = standing(self._told, seen["findings"])
        if self._outside.ways and (begun or over) and moment >= self._post_at:
            self._tell(begun, over, now, moment)
        pings = self._settings.ping_url is not None
        if pings and seen["ok"] and moment >= self._ping_at and self._outside.ping():
            self._ping_at = moment + self._settings.ping_minutes * 60

    def _tell(self, begun: list[Entry], over: set[str], now: datetime, moment: float) -> None:
        t = teller()
        ended = [
            {**entry, "ok": True, "message": t.text("alert.over", what=entry["message"])}
            for name, entry in self._told.items()
            if name in over
        ]
        told = {name: entry for name, entry in self._told.items() if name not in over}
        told |= {named(entry): entry for entry in begun}
        listed = [*begun, *ended]
        body = {
            "ok": not told,
            "at": now.isoformat(),
            "installation": self._settings.address,
            "text": "\n".join(f"Polydesk · {named(entry)}: {entry['message']}" for entry in listed),
            "findings": listed,
        }
        names = [(named(entry), entry["ok"]) for entry in listed]
        key = hashlib.sha256(json.dumps([self._told_at, names]).encode()).hexdigest()[:32]
        if self._taken[0] != key:
            self._taken = key, set()
        taken = self._taken[1]
        taken.update([way for way in self._outside.ways if way not in taken and self._outside.tell(way, body, key)])
        if taken.issuperset(self._outside.ways):
            self._told, self._told_at, self._in_vain = told, now.isoformat(), 0
            self._keep()
        else:
            self._post_at = moment + min(LONGEST_PAUSE, LOOK * 2**self._in_vain)
            self._in_vain += 1

    def _kept(self) -> tuple[dict[str, Entry], str]:
        """What was told, and when last."""
        try:
            kept = json.loads((self._settings.home / FILE).read_text())
            return {named(entry): entry for entry in kept["told"] if "message" in entry}, str(kept["at"])
        except (OSError, ValueError, TypeError, KeyError):
            return {}, ""

    def _keep(self) -> None:
        draft = self._settings.home / f".{FILE}.new"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"at": self._told_at, "told": list(self._told.values())}))
        draft.replace(self._settings.home / FILE)


def main() -> None:
    """Look until the process is ended."""
    keep_to_ourselves()
    settings = configuration.load()
    with Watcher(settings) as watcher:
        while True:
            time.sleep(LOOK)
            try:
                now = datetime.now(UTC)
                watcher.look(health.examine(settings, now), now, time.monotonic())
            except Exception as error:  # noqa: BLE001 - whatever it was: who watches goes on, and does not ping
                logging.getLogger(__name__).warning("a look failed: %s", type(error).__name__)


if __name__ == "__main__":
    main()
