"""Recovering deleted services: with which prices, and what must not have moved between the look and the press."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.upkeep import recovery
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told import teller
from tests import world
from tests.world import AS_OF

DELETED = AS_OF - timedelta(days=2)
CLOSED, LATER = date(2026, 3, 8), date(2026, 3, 9)
GIVEN = Press("eliminata per errore ieri", "RECUPERA 1")


@pytest.fixture
def practice(engine: sa.Engine) -> world.Practice:
    """A clinic whose one service was deleted two days ago."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        gone = {"at": DELETED, "id": practice.service}
        connection.execute(sa.text("UPDATE service SET deleted_at = :at, active = false WHERE id = :id"), gone)
    return practice


def price(engine: sa.Engine, practice: world.Practice, **fields: Any) -> int:
    row = {
        "clinic_id": practice.clinic,
        "service_id": practice.service,
        "amount": 100,
        "valid_from": date(2025, 1, 1),
        "valid_to": CLOSED,
        "updated_at": DELETED,
    }
    with engine.begin() as connection:
        return world.insert(connection, "price", [row | fields])[0]


def agreement(engine: sa.Engine, practice: world.Practice, valid_to: date | None) -> int:
    row = {"clinic_id": practice.clinic, "name": f"Fondo {valid_to}", "kind": "fund", "valid_from": date(2025, 1, 1)}
    with engine.begin() as connection:
        return world.insert(connection, "agreement", [row | {"valid_to": valid_to}])[0]


def look(engine: sa.Engine) -> list[list[str]]:
    """What the three lists say of each service: restorable, in conflict, not recoverable."""
    with engine.begin() as connection:
        report = recovery.recover(connection, AS_OF, Press(), preview=True)
    return [[teller("it").value(row[1]) for row in table.rows] for table in report.tables]


def press(engine: sa.Engine) -> Report:
    with engine.begin() as connection:
        return recovery.recover(connection, AS_OF, world.typed(connection, GIVEN))


def ends(engine: sa.Engine) -> dict[int, date | None]:
    with engine.connect() as connection:
        return {row.id: row.valid_to for row in connection.execute(sa.text("SELECT id, valid_to FROM price"))}


def edit(engine: sa.Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def test_prices_that_a_later_sync_closed_come_back_too(engine: sa.Engine, practice: world.Practice) -> None:
    at_once = price(engine, practice)
    by_sync = price(engine, practice, agreement_id=agreement(engine, practice, None), valid_to=LATER)
    long_ago = price(engine, practice, valid_from=date(2024, 1, 1), valid_to=date(2025, 1, 1))
    assert "1 agenda e 2 prezzi" in look(engine)[0][0]
    assert press(engine).outcome is Outcome.OK
    assert ends(engine) == {at_once: None, by_sync: None, long_ago: date(2025, 1, 1)}


def test_a_price_comes_back_only_as_far_as_its_agreement_and_its_doctor_do(
    engine: sa.Engine, practice: world.Practice
) -> None:
    running = price(engine, practice, agreement_id=agreement(engine, practice, date(2026, 12, 31)))
    ended = price(engine, practice, agreement_id=agreement(engine, practice, date(2026, 3, 9)))
    with engine.begin() as connection:
        retired = world.specialist(connection, practice.clinic, deleted_at=AS_OF)
    orphaned = price(engine, practice, specialist_id=retired)
    replaced = price(engine, practice)
    successor = price(engine, practice, valid_from=LATER, valid_to=None, amount=130)
    assert "1 agenda e 2 prezzi" in look(engine)[0][0]
    press(engine)
    assert ends(engine) == {
        running: date(2026, 12, 31),
        ended: CLOSED,
        orphaned: CLOSED,
        replaced: CLOSED,
        successor: None,
    }


def test_a_price_that_was_planned_and_never_began_is_no_successor(engine: sa.Engine, practice: world.Practice) -> None:
    closed = price(engine, practice)
    planned = price(engine, practice, amount=110, valid_from=date(2026, 4, 1), valid_to=date(2026, 4, 1))
    assert "1 agenda e 1 prezzo" in look(engine)[0][0]
    assert press(engine).outcome is Outcome.OK
    assert ends(engine) == {closed: None, planned: date(2026, 4, 1)}


def test_a_service_whose_prices_had_all_ended_is_a_conflict(engine: sa.Engine, practice: world.Practice) -> None:
    price(engine, practice, valid_to=date(2026, 1, 1))
    restorable, conflict, lost = look(engine)
    assert (restorable, lost) == ([], [])
    assert "nessuno dei suoi prezzi è in vigore" in conflict[0]


def test_a_service_of_studiolab_says_that_the_next_sync_may_retire_it(
    engine: sa.Engine, practice: world.Practice
) -> None:
    edit(engine, "UPDATE service SET external_id = 'S1' WHERE id = :id", id=practice.service)
    with engine.begin() as connection:
        world.integration(connection, practice.clinic, "http://127.0.0.1:1", active=True)
    assert "«Sync servizi» la ritira di nuovo" in look(engine)[0][0]


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ("UPDATE price SET valid_to = '2026-03-07'", "un suo prezzo è cambiato"),
        ("DELETE FROM price", "un suo prezzo è cambiato"),
        ("UPDATE agenda SET active = false", "nessun medico in servizio"),
        (
            """INSERT INTO service (clinic_id, code, name, duration_minutes)
               SELECT clinic_id, 'Z1', name, 30 FROM service""",
            "il nome",
        ),
    ],
)
def test_what_moved_after_the_look_is_not_pressed(
    engine: sa.Engine, practice: world.Practice, moved: str, said: str
) -> None:
    price(engine, practice)
    assert look(engine)[0]
    edit(engine, moved)
    before = ends(engine)
    report = press(engine)
    assert report.outcome is Outcome.REFUSED
    assert said in teller("it").reason(report.reasons[0])
    assert ends(engine) == before
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT deleted_at FROM service WHERE id = :id"), {"id": practice.service})


def test_undo_leaves_a_price_as_it_was_edited_since(engine: sa.Engine, practice: world.Practice) -> None:
    kept = price(engine, practice)
    edited = price(engine, practice, agreement_id=agreement(engine, practice, None))
    plan = press_after_look(engine)
    edit(engine, "UPDATE price SET valid_to = '2026-03-20' WHERE id = :id", id=edited)
    with engine.begin() as connection:
        assert changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna").outcome is Outcome.OK
    assert ends(engine) == {kept: CLOSED, edited: date(2026, 3, 20)}


def test_undo_leaves_a_service_that_was_booked_since(engine: sa.Engine, practice: world.Practice) -> None:
    kept = price(engine, practice)
    plan = press_after_look(engine)
    with engine.begin() as connection:
        slot = world.slot(connection, practice.agenda, AS_OF + timedelta(days=3))
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
        report = changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")
        deleted = connection.scalar(sa.text("SELECT deleted_at FROM service WHERE id = :id"), {"id": practice.service})
    assert "ha appuntamenti prenotati" in " ".join(teller("it").reason(reason) for reason in report.reasons)
    assert deleted is None
    assert ends(engine) == {kept: None}


def press_after_look(engine: sa.Engine) -> int:
    look(engine)
    report = press(engine)
    assert report.outcome is Outcome.OK
    assert report.plan_id is not None
    return report.plan_id


def test_one_that_cannot_come_back_does_not_stand_in_the_way_of_an_older_one(
    engine: sa.Engine, practice: world.Practice
) -> None:
    price(engine, practice)
    with engine.begin() as connection:
        code = connection.scalar(sa.text("SELECT code FROM service WHERE id = :id"), {"id": practice.service})
        world.service(connection, practice.clinic, code=code, name="Vuota", active=False, deleted_at=AS_OF)
    restorable, conflict, lost = look(engine)
    assert [len(restorable), len(conflict), len(lost)] == [1, 0, 1]
