from __future__ import annotations

import sqlalchemy as sa

from tests import world


def test_every_builder_satisfies_the_schema(connection: sa.Connection) -> None:
    one = world.practice(connection)
    world.integration(connection, one.clinic, "http://127.0.0.1:8081/api/v1")
    world.user(connection, one.clinic, patient_id=one.patient)
    world.closure(connection, "2026-04-06", layer="national")
    start = world.rome("2026-03-11", "09:30")
    slot = world.slot(connection, one.agenda, start, capacity=2)
    world.appointment(connection, slot, service_id=one.service, patient_id=one.patient)
    world.hold(connection, one.clinic, slot)
    world.appointment(
        connection, slot, service_id=one.service, patient_id=one.patient, status="cancelled", cancelled_at=world.AS_OF
    )
    units = connection.execute(
        sa.text("SELECT unit, appointment_id IS NOT NULL, held_until FROM seat WHERE slot_id = :slot ORDER BY unit"),
        {"slot": slot},
    ).all()
    assert [(unit, booked) for unit, booked, _ in units] == [(1, True), (2, False)]
    assert connection.execute(sa.text("SELECT count(*) FROM agenda_rule")).scalar_one() == 5


def test_insert_keeps_the_order_of_many_rows(connection: sa.Connection) -> None:
    codes = [f"C{number}" for number in range(12_000)]
    rows = [{"code": code, "name": code, "region": "Lazio", "municipality_code": "H501"} for code in codes]
    ids = world.insert(connection, "clinic", rows)
    stored = dict(connection.execute(sa.text("SELECT id, code FROM clinic")).all())
    assert [stored[id_] for id_ in ids] == codes


def test_rome_knows_both_offsets() -> None:
    assert world.rome("2026-03-28", "09:00").hour == 8
    assert world.rome("2026-03-29", "09:00").hour == 7
