"""``polydesk plan apply`` on the plans of dangerous services: the same gate as the button, from a terminal."""

from __future__ import annotations

import getpass
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.bookings import holds, releasing
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.upkeep import recovery
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.outcome import WHAT_TO_DO, Reason, Report
from tests import warm, world
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.slow

WHY = "sala d'attesa bloccata da prove"


class Desk:
    """A terminal of an installation whose database is configured."""

    def __init__(self, engine: sa.Engine, database: URL, home: Path) -> None:
        self.engine = engine
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("POLYDESK_", "DAGSTER_"))}
        self.environment = {
            **kept,
            "POLYDESK_HOME": str(home),
            "POLYDESK_DATABASE_URL": plain_url(database),
        }

    def polydesk(self, *arguments: str) -> tuple[int, Any]:
        program = warm.Program(warm.POLYDESK, *arguments, "--json", environment=self.environment)
        status, said = program.read()
        return status, json.loads(said)

    def refused(self, plan: int, *arguments: str) -> str:
        """Why a plan was refused; fails the test if it was not."""
        status, answer = self.polydesk("plan", "apply", str(plan), *arguments)
        assert (status, answer["outcome"]) == (3, "refused"), answer
        return str(answer["reasons"][0]["code"])

    def scalar(self, query: str) -> Any:
        with self.engine.connect() as connection:
            return connection.scalar(sa.text(query))

    def preview(self, rule: Any) -> tuple[int, str]:
        """The plan that a button's first press stores by now, and the phrase that it asks for."""
        with self.engine.begin() as connection:
            report: Report = rule(connection, datetime.now(UTC), Press())
        assert report.plan_id is not None
        todo = report.figures[WHAT_TO_DO]
        assert isinstance(todo, Reason)
        return report.plan_id, str(todo.values["phrase"])


@pytest.fixture
def desk(engine: sa.Engine, database: URL, tmp_path: Path) -> Desk:
    return Desk(engine, database, tmp_path / "home")


@pytest.fixture
def deleted(engine: sa.Engine) -> list[int]:
    """Three services that were deleted yesterday."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        gone = datetime.now(UTC) - timedelta(days=1)
        ids = [
            world.service(connection, practice.clinic, name=f"Visita {n}", active=False, deleted_at=gone)
            for n in range(3)
        ]
        world.insert(
            connection,
            "agenda_service",
            [{"clinic_id": practice.clinic, "agenda_id": practice.agenda, "service_id": each} for each in ids],
        )
    return ids


DELETED = "SELECT count(*) FROM service WHERE deleted_at IS NOT NULL"
LINES = "SELECT count(*) FROM audit"


def test_a_dangerous_plan_is_applied_only_with_its_reason_and_its_phrase(desk: Desk, deleted: list[int]) -> None:
    plan, phrase = desk.preview(recovery.recover)
    assert re.fullmatch("RECUPERA 3 [a-z]{6}", phrase)
    assert desk.refused(plan) == "reason_missing"
    assert desk.refused(plan, "--confirm", phrase) == "reason_missing"
    assert desk.refused(plan, "--confirm", phrase, "--reason", "   sbaglio   ") == "reason_missing"
    for typed in ("RECUPERA 3", phrase.lower()):
        assert desk.refused(plan, "--reason", WHY, "--confirm", typed) == "wrong_phrase", typed
    assert desk.refused(plan, "--reason", WHY, "--confirm", phrase.replace("3", "2")) == "plan_void"
    assert desk.refused(plan, "--reason", WHY, "--confirm", phrase) == "plan_void"
    plan, phrase = desk.preview(recovery.recover)
    assert desk.refused(plan, "--reason", WHY) == "wrong_phrase"
    assert desk.refused(plan, "--reason", WHY, "--past-guard", "wrong_phrase") == "wrong_phrase"
    assert (desk.scalar(DELETED), desk.scalar(LINES)) == (3, 0)

    status, answer = desk.polydesk(
        "plan", "apply", str(plan), "--reason", WHY, "--confirm", f"  {phrase.replace(' ', '   ')} "
    )
    assert (status, answer["outcome"], answer["counts"]["updated"]) == (0, "ok", 3)
    assert desk.scalar(DELETED) == 0
    with desk.engine.connect() as connection:
        line = connection.execute(sa.text("SELECT actor, detail->>'reason' FROM audit")).one()
        assert audit.verify(connection) == []
    assert tuple(line) == (f"desk:{getpass.getuser()}", WHY)
    assert desk.refused(plan, "--reason", WHY, "--confirm", phrase)
    assert desk.scalar(LINES) == 1


def test_what_moved_since_it_was_looked_at_is_not_applied(desk: Desk, deleted: list[int]) -> None:
    plan, phrase = desk.preview(recovery.recover)
    with desk.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE service SET deleted_at = deleted_at - interval '1 hour' WHERE id = :id"), {"id": deleted[0]}
        )
    assert desk.refused(plan, "--reason", WHY, "--confirm", phrase)
    assert (desk.scalar(DELETED), desk.scalar(LINES)) == (3, 0)


def test_what_a_dangerous_service_did_is_taken_back_only_with_a_reason(desk: Desk, deleted: list[int]) -> None:
    plan, phrase = desk.preview(recovery.recover)
    assert desk.polydesk("plan", "apply", str(plan), "--reason", WHY, "--confirm", phrase)[0] == 0
    status, answer = desk.polydesk("plan", "undo", str(plan), "--preview")
    assert (status, answer["counts"]["updated"]) == (0, 3)
    back = answer["plan_id"]
    for given in ((), ("--reason", "   sbaglio   ")):
        status, answer = desk.polydesk("plan", "undo", str(plan), *given)
        assert (status, answer["reasons"][0]["code"]) == (3, "reason_missing")
        assert desk.refused(back, *given) == "reason_missing"
    assert (desk.scalar(DELETED), desk.scalar(LINES)) == (0, 1)
    status, answer = desk.polydesk("plan", "undo", str(plan), "--reason", WHY)
    assert (status, answer["counts"]["updated"]) == (0, 3)
    assert desk.scalar(DELETED) == 3
    assert desk.scalar("SELECT detail->>'reason' FROM audit ORDER BY id DESC LIMIT 1") == WHY


def test_two_plans_of_one_button_that_are_applied_at_once_are_one_press(desk: Desk) -> None:
    now = datetime.now(UTC)
    with desk.engine.begin() as connection:
        for number, code in enumerate(("BO01", "RE01")):
            slot = world.slot(connection, world.practice(connection, code).agenda, now + timedelta(days=2))
            assert holds.place(
                connection,
                slot_id=slot,
                service_id=world.offered(connection, slot),
                token=f"t{number}",
                visitor=f"v{number}",
                as_of=now,
            ).done
    chain = desk.preview(releasing.release_all)
    clinic = desk.preview(partial(releasing.release_all, clinic="BO01"))

    def apply(plan: tuple[int, str]) -> tuple[int, Any]:
        return desk.polydesk("plan", "apply", str(plan[0]), "--reason", WHY, "--confirm", plan[1])

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(2) as pool:
        with desk.engine.begin() as connection:  # both have been checked, as far as they can be, before either applies
            connection.execute(sa.text("SELECT id FROM plan FOR UPDATE"))
            pressed = [pool.submit(apply, plan) for plan in (chain, clinic)]
            until(lambda: desk.scalar(waiting) == 2)
        answers = [each.result(timeout=PATIENCE)[1] for each in pressed]
    assert sorted(answer["outcome"] for answer in answers) == ["ok", "refused"]
    (refused,) = (answer for answer in answers if answer["outcome"] == "refused")
    assert refused["reasons"][0]["code"] == "too_soon"
    assert desk.scalar(LINES) == 1


def test_all_holds_go_by_the_command_and_a_second_time_must_wait(desk: Desk) -> None:
    def visitors(*names: str) -> None:
        now = datetime.now(UTC)
        with desk.engine.begin() as connection:
            for n, who in enumerate(names):
                start = (now + timedelta(days=2)).replace(minute=0, second=0, microsecond=0) + n * timedelta(hours=1)
                slot = connection.scalar(
                    sa.text("SELECT id FROM slot WHERE starts_at = :start"), {"start": start}
                ) or world.slot(connection, agenda, start)
                assert holds.place(
                    connection,
                    slot_id=slot,
                    service_id=world.offered(connection, slot),
                    token=who,
                    visitor=who,
                    as_of=now,
                ).done

    with desk.engine.begin() as connection:
        agenda = world.practice(connection).agenda
    live = "SELECT count(*) FROM hold WHERE ended_at IS NULL"
    visitors("ada", "bice")
    plan, phrase = desk.preview(releasing.release_all)
    assert phrase.startswith("LIBERA 2 ")
    assert desk.refused(plan, "--reason", WHY, "--confirm", "LIBERA 1") == "wrong_phrase"
    assert desk.scalar(live) == 2
    status, answer = desk.polydesk("plan", "apply", str(plan), "--reason", WHY, "--confirm", phrase)
    assert (status, answer["counts"]["updated"]) == (0, 2)
    assert desk.scalar(live) == 0
    visitors("cleo")
    plan, phrase = desk.preview(releasing.release_all)
    assert phrase.startswith("LIBERA 1 ")
    assert desk.refused(plan, "--reason", WHY, "--confirm", phrase) == "too_soon"
    assert desk.scalar(live) == 1
