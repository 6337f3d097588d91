from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests import world
from tests.sources.events_world import NOW, Lab, acceptance, booking, lab, person, report

MINUTE = timedelta(minutes=1)


@pytest.fixture
def bo(engine: sa.Engine) -> Iterator[Lab]:
    with lab(engine) as made:
        yield made


def test_a_booking_takes_a_seat_on_a_slot_of_its_own(bo: Lab) -> None:
    bo.publish(booking("X"))
    assert bo.sync().outcome is Outcome.OK
    made = bo.appointment("X")
    assert (made.status, made.channel, made.start_version, made.seats) == ("booked", "studiolab", 1, 1)
    assert made.slot_start == made.starts_at == world.rome("2026-03-12", "09:00")
    assert bo.rows("SELECT manual, local_date::text FROM slot") == [(True, "2026-03-12")]
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO


def test_a_move_is_a_new_version_and_frees_the_old_slot(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.sync()
    bo.publish(booking("X", "11:00", "rescheduled"))
    bo.sync()
    moved = bo.appointment("X")
    assert (moved.start_version, moved.seats) == (2, 1)
    assert moved.slot_start == world.rome("2026-03-12", "11:00")
    assert bo.rows("SELECT state FROM slot ORDER BY starts_at") == [("retired",), ("free",)]
    bo.publish(booking("X", "11:00", "rescheduled", service_id="S1"))
    bo.sync()
    assert bo.appointment("X").start_version == 2


def test_versions_count_moves_also_inside_one_page(bo: Lab) -> None:
    bo.publish(booking("X"), booking("X", "10:00", "rescheduled"), booking("X", "09:00", "rescheduled"))
    bo.sync()
    assert bo.appointment("X").start_version == 3
    assert bo.states() == {"applied": 3}


def test_a_cancelled_booking_gives_its_seat_back_and_can_return(bo: Lab) -> None:
    bo.publish(booking("X"), booking("X", kind="cancelled"))
    bo.sync()
    gone = bo.appointment("X")
    assert (gone.status, gone.seats, gone.cancelled_at is not None) == ("cancelled", 0, True)
    bo.publish(booking("Y"))
    bo.sync()
    assert bo.appointment("Y").seats == 1
    bo.publish(booking("X", "10:00", "rescheduled"))
    bo.sync()
    assert (bo.appointment("X").status, bo.appointment("X").seats) == ("booked", 1)


def test_a_slot_that_the_rules_made_is_used_and_stays(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        agenda = connection.execute(sa.text("SELECT id FROM agenda WHERE external_id = 'A1'")).scalar_one()
        slot = world.slot(connection, agenda, world.rome("2026-03-12", "09:00"))
    bo.publish(booking("X"))
    bo.sync()
    assert bo.appointment("X").slot_id == slot
    bo.publish(booking("X", kind="cancelled"))
    bo.sync()
    assert bo.rows("SELECT id, state, manual FROM slot") == [(slot, "free", False)]


def test_free_slots_in_the_way_step_back_and_a_taken_one_does_not(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        agenda, service = connection.execute(
            sa.text("SELECT a.id, s.id FROM agenda a, service s WHERE a.external_id = 'A1'")
        ).one()
        for at in ("09:00", "09:30", "10:00"):
            world.slot(connection, agenda, world.rome("2026-03-12", at))
        busy = world.slot(connection, agenda, world.rome("2026-03-12", "11:00"))
        world.appointment(connection, busy, service_id=service, patient_id=world.patient(connection))
    bo.publish(booking("X", "09:10"), booking("Y", "11:10"), booking("Z", "11:00"))
    report_ = bo.sync()
    assert bo.appointment("X").seats == 1
    assert bo.appointment("Y") is bo.appointment("Z") is None
    assert (report_.outcome, report_.counts.waiting) == (Outcome.PARTIAL, 2)
    assert {teller().reason(reason) for reason in report_.reasons} == {
        "Evento in sospeso: l'orario è occupato da un'altra prenotazione.",
        "Evento in sospeso: l'orario è al completo.",
    }
    assert bo.rows("SELECT count(*) FROM slot WHERE state <> 'retired'") == [(3,)]


def test_a_longer_visit_takes_the_time_behind_its_slot(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        agenda = connection.execute(sa.text("SELECT id FROM agenda WHERE external_id = 'A1'")).scalar_one()
        for at in ("09:00", "09:30"):
            world.slot(connection, agenda, world.rome("2026-03-12", at))
    bo.publish(booking("X", ends_at=world.rome("2026-03-12", "10:00").isoformat()))
    bo.sync()
    assert bo.rows("SELECT extract(epoch FROM ends_at - starts_at)::int FROM slot WHERE state <> 'retired'") == [
        (3600,)
    ]


def test_a_live_hold_is_respected_and_an_expired_one_is_not(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        agenda = connection.execute(sa.text("SELECT id FROM agenda WHERE external_id = 'A1'")).scalar_one()
        slot = world.slot(connection, agenda, world.rome("2026-03-12", "09:00"))
        world.hold(connection, bo.clinic, slot)
    bo.publish(booking("X"))
    assert bo.sync().counts.waiting == 1
    assert bo.sync(MINUTE).counts.waiting == 1
    assert bo.sync(5 * MINUTE).counts.updated == 1
    assert bo.appointment("X").seats == 1


def test_an_event_of_somebody_else_suspends_the_link_and_waits(bo: Lab) -> None:
    said = {"last_name": "Verdi", "first_name": "Anna", "sex": "F", "birth_date": "1999-05-02", "fiscal_code": None}
    with bo.engine.begin() as connection:
        connection.execute(
            sa.text("""UPDATE patient p
                       SET sex = 'M', birth_date = '1952-03-04', last_name = 'Rossi', first_name = 'Ugo'
                       FROM patient_link l WHERE l.patient_id = p.id AND l.external_id = 'P2'""")
        )
    bo.publish(person("P2", **said), booking("X", patient_id="P2"))
    report_ = bo.sync()
    assert (report_.outcome, report_.counts.updated, report_.counts.waiting) == (Outcome.PARTIAL, 0, 2)
    assert bo.appointment("X") is None
    assert {reason for (reason,) in bo.rows("SELECT reason FROM event_inbox")} == {"identity_suspended"}
    assert bo.rows("SELECT external_id FROM patient_link WHERE suspended_at IS NOT NULL") == [("P2",)]
    assert bo.rows("SELECT last_name FROM patient WHERE last_name = 'Verdi'") == []


def test_two_bookings_swap_their_places_in_one_page(bo: Lab) -> None:
    bo.publish(booking("X"), booking("Y", "10:00"))
    bo.sync()
    bo.publish(booking("X", "10:00", "rescheduled"), booking("Y", "09:00", "rescheduled"))
    assert bo.sync().counts.waiting == 0
    assert bo.appointment("X").slot_start == world.rome("2026-03-12", "10:00")
    assert bo.appointment("Y").slot_start == world.rome("2026-03-12", "09:00")


def test_two_bookings_of_one_page_over_each_other(bo: Lab) -> None:
    bo.publish(booking("X"), booking("Y", "09:20"), booking("Z", "09:00"))
    bo.sync()
    assert bo.appointment("X").seats == 1
    assert bo.states() == {"applied": 1, "parked": 2}


def test_capacity_is_kept(engine: sa.Engine) -> None:
    with lab(engine, capacity=2) as bo:
        bo.publish(*(booking(key) for key in "XYZ"))
        bo.sync()
        assert [bo.appointment(key) is not None for key in "XYZ"] == [True, True, False]


def test_accepted_at_the_desk_and_not_after_all(bo: Lab) -> None:
    bo.publish(booking("X"), acceptance("X"))
    bo.sync()
    there = bo.appointment("X")
    assert (there.status, there.accepted_desk, there.seats) == ("accepted", "Sportello 2", 1)
    bo.publish(booking("X", "10:00", "rescheduled"))
    bo.sync()
    assert bo.appointment("X").status == "accepted"
    bo.publish(acceptance("X", "cancelled"))
    bo.sync()
    left = bo.appointment("X")
    assert (left.status, left.accepted_at, left.accepted_desk) == ("booked", None, None)


def test_an_acceptance_waits_for_its_appointment(bo: Lab) -> None:
    bo.publish(acceptance("X"))
    assert teller().reason(bo.sync().reasons[0]) == "Evento in sospeso: appuntamento sconosciuto."
    bo.publish(booking("X"))
    bo.sync()
    assert bo.appointment("X").status == "booked"
    bo.sync(MINUTE)
    assert bo.appointment("X").status == "accepted"


def test_reports_are_listed_withdrawn_and_published_again(bo: Lab) -> None:
    bo.publish(booking("X"), report("X"))
    bo.sync()
    bo.publish(report("X", "withdrawn"), report("X", title="Referto corretto"))
    bo.sync()
    listed = bo.rows("""
        SELECT r.title, r.version, r.withdrawn_at, a.external_id, l.external_id
        FROM report r JOIN appointment a ON a.id = r.appointment_id
        JOIN patient_link l ON l.patient_id = r.patient_id""")
    assert listed == [("Referto corretto", 2, None, "X", "P1")]
    bo.publish(report("X", "withdrawn"))
    bo.sync()
    assert bo.rows("SELECT withdrawn_at IS NOT NULL FROM report") == [(True,)]


def test_a_new_report_is_told_once_where_the_clinic_wants_it(bo: Lab) -> None:
    fresh = {"published_at": NOW.isoformat()}
    bo.publish(report("X", **fresh))
    bo.sync()
    assert bo.rows("SELECT count(*) FROM message") == [(0,)]
    with bo.engine.begin() as connection:
        connection.execute(sa.text("UPDATE integration SET report_messages = true"))
    bo.publish(report("Y", **fresh), report("Z", published_at="2026-02-01T09:00:00+01:00"))
    bo.sync()
    bo.publish(report("Y", **fresh, title="Referto (seconda lettura)"))
    bo.sync()
    told = "SELECT l.version, m.kind, m.state FROM message m JOIN message_ledger l ON l.message_id = m.id ORDER BY m.id"
    assert bo.rows(told) == [(1, "report_ready", "planned")]
    bo.publish(report("Y", "withdrawn", **fresh))
    bo.sync()
    assert bo.rows(told) == [(1, "report_ready", "withheld")]
    bo.publish(report("Y", **fresh))
    bo.sync()
    assert bo.rows(told) == [(1, "report_ready", "withheld"), (2, "report_ready", "planned")]


def test_a_patients_own_fields_are_findings_and_the_others_follow(bo: Lab) -> None:
    bo.publish(
        person(address="Via Nuova 2", email="altro@example.org", mobile="347 000 0001", last_name="ROSSI'"),
        person("P2", deceased_on="2026-03-01"),
    )
    bo.sync()
    assert bo.rows("SELECT address, email, deceased_on::text FROM patient ORDER BY id LIMIT 2") == [
        ("Via Nuova 2", "p1@example.org", None),
        ("Via 1", "p2@example.org", "2026-03-01"),
    ]
    assert bo.rows("SELECT field, ours, theirs FROM patient_discrepancy") == [
        ("email", "p1@example.org", "altro@example.org")
    ]
    bo.publish(person(email="P1@example.org"))
    bo.sync()
    assert bo.rows("SELECT * FROM patient_discrepancy") == []
    assert bo.rows("SELECT address FROM patient ORDER BY id LIMIT 1") == [("Via Nuova 2",)]


def test_an_unknown_patient_asks_for_the_import(bo: Lab) -> None:
    bo.publish(booking("X", patient_id="P99"), person("P98"))
    bo.sync()
    bo.sync(MINUTE)
    assert bo.rows("SELECT service FROM service_request WHERE taken_at IS NULL") == [("import_patients",)]


def test_changed_prices_ask_for_a_preview_and_change_nothing(bo: Lab) -> None:
    bo.publish({"type": "price_list.changed", "entity": {"type": "price_list", "id": "L"}})
    before = bo.rows("SELECT * FROM price")
    bo.sync()
    assert bo.rows("SELECT service FROM service_request") == [("preview_prices",)]
    assert bo.rows("SELECT * FROM price") == before


def test_what_the_database_refuses_parks_one_event_alone(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE appointment ADD CHECK (external_id <> 'B7')"))
    bo.publish(*(booking(f"B{n}", f"{8 + n // 2:02}:{n % 2 * 30:02}") for n in range(16)))
    report_ = bo.sync()
    assert bo.states() == {"applied": 15, "parked": 1}
    assert "rifiutato dal database" in teller().reason(report_.reasons[0])
    assert bo.appointment("B7") is None
    assert bo.appointment("B8").seats == 1


def test_times_are_those_of_the_run(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.sync()
    ((updated,),) = bo.rows("SELECT updated_at FROM appointment")
    assert NOW < updated < NOW + MINUTE


def test_a_page_asks_only_for_what_it_holds(bo: Lab) -> None:
    """A thousand clinics with news are a thousand such turns: what is not there is not looked for."""
    bo.publish(person(), booking("W", "12:00"))
    assert bo.sync().counts.updated == 2
    asked: list[str] = []
    sa.event.listen(bo.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    bo.sync(MINUTE)
    nothing = len(asked)
    bo.publish(person(), booking("X"))
    bo.sync(MINUTE)
    assert (nothing, len(asked) - nothing) == (5, 30)
    bo.publish(booking("Y") | {"type": "appointment.merged"})
    bo.sync(MINUTE)
    del asked[:]
    bo.sync(MINUTE)
    assert len(asked) == nothing + 4  # what waits is looked at again
