"""``polydesk closures``: what is typed becomes a closure, or is refused by what was typed."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster import changes
from polydesk_dagster.cli import app
from polydesk_dagster.clinic.bookings import offers
from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.commands import closures
from polydesk_dagster.database.engine import plain_url
from tests import world


def test_what_is_typed_becomes_a_closure() -> None:
    read = closures._closure("Fiera", "2026-12-10", None, "09:00", "13:00", "BO01", None)
    day = date(2026, 12, 10)
    assert read == Closure("Fiera", day, day, time(9), time(13), "BO01")


@pytest.mark.parametrize(("first", "hour"), [("10/12/2026", None), ("2026-12-10", "le nove")])
def test_what_is_no_day_and_no_hour_is_named(first: str, hour: str | None) -> None:
    with pytest.raises(typer.BadParameter, match=first if hour is None else hour):
        closures._closure("Fiera", first, None, hour, hour, None, None)


def test_who_has_a_place_kept_is_listed_and_answers_by_the_desk(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))

    def said(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["closures", *arguments])
        return done.exit_code, done.output

    now = datetime.now(UTC).replace(microsecond=0)
    with engine.begin() as connection:
        practice = world.practice(connection)
        first, _ = [world.slot(connection, practice.agenda, now + timedelta(days=day)) for day in (6, 7)]
        world.appointment(connection, first, service_id=practice.service, patient_id=practice.patient)
        connection.execute(sa.text("UPDATE slot SET state = 'orphan' WHERE id = :slot"), {"slot": first})
        world.insert(connection, "orphan", [{"slot_id": first, "cause": "closure", "detected_at": now}])
        shown, _ = offers.propose(connection, now)
        assert shown.plan_id is not None
        assert changes.apply(connection, shown.plan_id, as_of=now, actor="desk:prova").counts.updated == 1
    (each,) = json.loads(said("kept", "--json")[1])
    number = str(each["appointment"])
    code, page = said("kept", "--clinic", each["clinic"])
    assert (code, number in page, "closures accept" in page) == (0, True, True)
    assert [said(*given)[0] for given in (("accept", "999"), ("accept", number), ("decline", number))] == [3, 0, 3]
    assert json.loads(said("kept", "--json")[1]) == []
    (listed,) = json.loads(said("agendas", "--clinic", each["clinic"], "--json")[1])
    assert (listed["number"], listed["name"] in said("agendas")[1]) == (practice.agenda, True)
    assert json.loads(said("agendas", "--clinic", "NA01", "--json")[1]) == []
