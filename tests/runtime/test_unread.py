"""Clinics whose events cannot be read are found, named, and told of once, a few or many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes.why import kept
from polydesk_dagster.runtime import health, unread, watching
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.runtime.state.model import NAMED, Finding
from polydesk_dagster.runtime.state.services import service_states
from polydesk_dagster.runtime.watching import Watcher
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.told.state import told_of_finding
from polydesk_dagster.values import Reason
from tests import world
from tests.runtime.outside import Outside, outside

__all__ = ["outside"]  # a fixture

NOW = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
SYSTEM = Reason("system_source", {"of": "C01"})
TOKEN = Reason("remote_token", {"system": SYSTEM, "path": "/events", "status": 401})
MINUTE = timedelta(minutes=1)


def _chain(connection: sa.Connection, clinics: int) -> None:
    """C01… with a studiolab each, all read a minute ago."""
    for number in range(1, clinics + 1):
        code = f"C{number:02}"
        clinic = world.clinic(connection, code)
        connection.execute(sa.text("UPDATE clinic SET name = 'Centro ' || code WHERE id = :id"), {"id": clinic})
        world.integration(connection, clinic, "http://127.0.0.1:9/api/v1", updated_at=NOW - timedelta(days=9))
    connection.execute(
        sa.text("INSERT INTO event_cursor (clinic_id, read_at) SELECT id, :at FROM clinic"), {"at": NOW - MINUTE}
    )


def _down(connection: sa.Connection, codes: Sequence[str], since: timedelta, why: Reason | None = TOKEN) -> None:
    connection.execute(
        sa.text("""
            UPDATE event_cursor SET failures = 3, down_since = :since, down_reason = :why, quiet_until = :since
            WHERE clinic_id IN (SELECT id FROM clinic WHERE code = ANY(:codes))"""),
        {"codes": list(codes), "since": NOW - since, "why": None if why is None else kept(why)},
    )


def _found(connection: sa.Connection) -> list[Finding]:
    return list(unread.findings(connection, NOW))


def _told(found: Sequence[Finding], language: str = "it") -> list[str]:
    return [told_of_finding(teller(language), each) for each in found]


def test_who_has_not_been_read_for_a_while_is_a_warning_that_names_it_and_later_a_fault(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert _found(connection) == []  # no studiolab at all
        _chain(connection, 3)
        (well,) = _found(connection)
        assert (well.ok, _told([well])) == (
            True,
            ["Eventi di studiolab: nessuna clinica resta senza lettura (3 cliniche)."],
        )
        _down(connection, ["C02"], unread.AFTER - timedelta(seconds=1))
        assert _found(connection) == [well]
        _down(connection, ["C02"], timedelta(minutes=6))
        (found,) = _found(connection)
        assert (found.ok, found.warning, found.subject) == (False, True, "C02")
        (told,) = _told([found])
        assert told == (
            "Centro C02 (C02): da 6 minuti gli eventi di studiolab non si leggono, e si recuperano da soli quando torna"
            " a rispondere: La fonte di C01: /events ha risposto 401, controlla il token dell'integrazione"
        )
        _down(connection, ["C02"], unread.LONG)
        assert [each.warning for each in _found(connection)] == [False]


@pytest.mark.parametrize(("down", "of", "warnings"), [(1, 1, [True]), (2, 30, [True] * 2), (2, 20, [False] * 2)])
def test_several_at_once_are_a_fault_where_they_are_many_of_the_chain(
    engine: sa.Engine, down: int, of: int, warnings: list[bool]
) -> None:
    with engine.begin() as connection:
        _chain(connection, of)
        _down(connection, [f"C{number:02}" for number in range(1, down + 1)], timedelta(minutes=6))
        assert [each.warning for each in _found(connection)] == warnings


def test_fifteen_of_sixty_are_one_finding_with_the_first_names_and_why(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        _chain(connection, 60)
        _down(connection, [f"C{number:02}" for number in range(20, 34)], timedelta(minutes=6))
        _down(connection, ["C40"], timedelta(minutes=9))
        (found,) = _found(connection)
    assert (found.ok, found.warning, found.subject) == (False, False, None)
    (told,) = _told([found])
    assert told == (
        "Di 15 cliniche su 60 non si leggono gli eventi di studiolab: Centro C40 (C40), Centro C20 (C20),"
        " Centro C21 (C21), Centro C22 (C22), Centro C23 (C23) e altre 10 cliniche. Se il motivo è lo stesso, guarda"
        " prima la rete di questa installazione; ognuna è in «Cliniche» e in «polydesk doctor --probe». Da più tempo"
        " Centro C40 (C40), 9 minuti: La fonte di C01: /events ha risposto 401, controlla il token dell'integrazione"
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_who_is_stopped_or_leads_elsewhere_is_found_too_each_with_its_remedy(engine: sa.Engine, language: str) -> None:
    with engine.begin() as connection:
        _chain(connection, 4)
        _down(connection, ["C01"], timedelta(minutes=7), None)
        connection.execute(
            sa.text("""UPDATE event_cursor SET stopped_at = :at, stopped_reason = :why
                       WHERE clinic_id = (SELECT id FROM clinic WHERE code = 'C02')"""),
            {"at": NOW - timedelta(minutes=8), "why": kept(Reason("history_changed"))},
        )
        connection.execute(
            sa.text("""UPDATE integration SET source = 'studiolab:http://127.0.0.1:8/api/v1', updated_at = :at
                       WHERE clinic_id = (SELECT id FROM clinic WHERE code = 'C03')"""),
            {"at": NOW - timedelta(seconds=30)},
        )
        assert [each.how for each in _found(connection)] == ["stopped", "silent"]
        connection.execute(
            sa.text("""WITH c AS (UPDATE event_cursor SET read_at = :read RETURNING clinic_id)
                       UPDATE integration i SET updated_at = :at FROM c WHERE i.clinic_id = c.clinic_id"""),
            {"read": NOW - timedelta(hours=2), "at": NOW - timedelta(minutes=9)},
        )
        found = _found(connection)
    assert [(each.subject, each.how) for each in found] == [("C03", "changed"), ("C02", "stopped"), ("C01", "silent")]
    told = _told(found, language)
    assert "polydesk integration C03 --same-system" in told[0]
    assert "polydesk run sync_events --clinic C02 --reconcile" in told[1]
    assert "polydesk doctor --probe" in told[2]


def test_who_is_kept_waiting_or_switched_off_is_no_news(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        _chain(connection, 3)
        _down(connection, ["C01", "C02", "C03"], timedelta(hours=3))
        connection.execute(
            sa.text(
                "UPDATE integration SET active = false WHERE clinic_id = (SELECT id FROM clinic WHERE code = 'C01')"
            )
        )
        connection.execute(sa.text("UPDATE clinic SET active = false WHERE code = 'C02'"))
        said = {"until": NOW + timedelta(hours=1), "actor": "desk:anna", "reason": "lavori in corso", "as_of": NOW}
        activity.pause(connection, "sync_events", clinic="C03", **said)
        states = service_states(connection, None, NOW, live=True)
        assert [each.ok for each in health._unread(connection, states, NOW)] == [True]
        activity.resume(connection, "sync_events", actor="desk:anna", reason="finiti i lavori", as_of=NOW, clinic="C03")
        states = service_states(connection, None, NOW, live=True)
        assert [each.subject for each in health._unread(connection, states, NOW)] == ["C03"]
        activity.pause(connection, "sync_events", **said)
        states = service_states(connection, None, NOW, live=True)
        assert list(health._unread(connection, states, NOW)) == []


def test_a_warning_leaves_the_installation_well_and_says_that_it_is_one() -> None:
    warns = Finding("studiolab_unread", ok=False, subject="C01", how="silent", warning=True)
    ill = Finding("schema", ok=False)
    assert health.as_object([warns], NOW, teller())["ok"] is True
    assert health.as_object([warns, ill], NOW, teller())["ok"] is False
    assert [each["warning"] for each in health.as_object([warns, ill], NOW, teller())["findings"]] == [True, False]


MOMENTS = count()


def _looks(watcher: Watcher, engine: sa.Engine, times: int = 2) -> None:
    for moment in islice(MOMENTS, times):
        with engine.connect() as connection:
            watcher.look(_found(connection), NOW + timedelta(seconds=moment), float(moment))


def test_each_clinic_is_told_once_once_more_when_it_is_grave_and_many_in_one_message(
    engine: sa.Engine, outside: Outside, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, alert_url=f"{outside.url}/hook")
    with engine.begin() as connection:
        _chain(connection, 30)
    with Watcher(settings) as watcher:
        _looks(watcher, engine)

        def goes_down(codes: Sequence[str], since: timedelta) -> list[tuple[str | None, bool]]:
            before = len(outside.taken())
            with engine.begin() as connection:
                _down(connection, codes, since)
            _looks(watcher, engine, 5)
            told = outside.taken()[before:]
            assert len(told) <= 1
            return [(each["subject"], each["ok"]) for body in told for each in body["findings"]]

        assert goes_down(["C01"], timedelta(minutes=6)) == [("C01", False)]
        assert goes_down(["C01"], timedelta(minutes=7)) == []
        assert goes_down(["C02"], timedelta(minutes=6)) == [("C02", False)]
        assert goes_down(["C02"], timedelta(hours=2)) == [("C02", False)]
        assert goes_down([f"C{number:02}" for number in range(3, 20)], timedelta(minutes=6)) == [(None, False)]
        assert goes_down(["C20"], timedelta(minutes=6)) == []
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE event_cursor SET failures = 0, quiet_until = NULL, down_since = NULL"))
        assert goes_down([], MINUTE) == [("C01", True), ("C02", True), (None, True)]


def test_of_many_only_so_many_are_named() -> None:
    assert watching.standing(["studiolab_unread C01", "schema"], [_entry(None, ok=False)]) == {
        "studiolab_unread",
        "studiolab_unread C01",
    }
    assert watching.standing(["studiolab_unread C01"], [_entry(None, ok=True)]) == set()
    assert unread.APART == NAMED


def _entry(subject: str | None, *, ok: bool) -> watching.Entry:
    return {"code": "studiolab_unread", "subject": subject, "ok": ok}


def test_a_studiolab_that_gives_less_than_it_says_is_a_warning_however_long(connection: sa.Connection) -> None:
    _chain(connection, 20)
    withheld = Reason("events_withheld", {"last": 20, "known": 10})
    _down(connection, ["C01", "C02", "C03"], timedelta(hours=9), withheld)
    assert [(each.ok, each.warning) for each in _found(connection)] == [(False, True)] * 3
    assert "dice di avere eventi fino al 20, e dopo il 10 non ne dà" in _told(_found(connection))[0]
    _down(connection, ["C04"], timedelta(hours=2))
    assert [each.warning for each in _found(connection)] == [True, True, True, False]
    _down(connection, ["C05", "C06"], timedelta(minutes=6), withheld)
    assert [each.warning for each in _found(connection)] == [False], "together with one that is none"
    connection.execute(
        sa.text("UPDATE event_cursor SET down_reason = :why WHERE failures > 0"), {"why": kept(withheld)}
    )
    assert [each.warning for each in _found(connection)] == [True]
