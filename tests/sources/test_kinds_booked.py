"""What is booked, or being booked, keeps its service and its doctor, whatever studiolab's lists say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told import teller
from tests import world
from tests.sources.lab import COLLABORATORS, SERVICES, Lab, lab, synced
from tests.waiting import PATIENCE

__all__ = ["lab", "synced"]  # fixtures


def book(lab: Lab, connection: sa.Connection) -> None:
    """An appointment for the service S3 with the doctor D1, two days from now."""
    service = connection.scalar(sa.text("SELECT id FROM service WHERE external_id = 'S3'"))
    doctor = connection.scalar(sa.text("SELECT id FROM specialist WHERE external_id = 'D1'"))
    assert service is not None
    location = world.location(connection, lab.clinic)
    agenda = world.agenda(connection, lab.clinic, location_id=location, specialist_id=doctor)
    slot = world.slot(connection, agenda, world.rome("2026-03-12"))
    patient = world.patient(connection)
    world.appointment(connection, slot, patient_id=patient, service_id=service, specialist_id=doctor)


def test_a_service_or_a_doctor_with_bookings_cannot_vanish(synced: Lab) -> None:
    with synced.engine.begin() as connection:
        book(synced, connection)
    synced.hold(services=[s for s in SERVICES if s["id"] not in {"S3", "S4"}], collaborators=COLLABORATORS[1:])
    report = synced.sync("services")
    assert (report.counts.retired, report.counts.waiting) == (1, 1)
    assert synced.rows("SELECT external_id FROM service WHERE deleted_at IS NOT NULL") == [("S4",)]
    report = synced.sync("collaborators")
    assert (report.outcome, report.counts.changed, report.counts.waiting) == (Outcome.PARTIAL, 0, 1)
    synced.hold(services=SERVICES)
    assert synced.sync("services").counts.updated == 1
    assert synced.rows("SELECT count(*) FROM service WHERE deleted_at IS NOT NULL") == [(0,)]


@pytest.mark.parametrize(
    ("feed", "left", "named"),
    [
        ("services", [s for s in SERVICES if s["id"] not in {"S3", "S4"}], "89.03 Visita 3"),
        ("services", [s | {"active": s["id"] != "S3"} for s in SERVICES], "89.03 Visita 3"),
        ("collaborators", COLLABORATORS[1:], "Dott. Neri Ugo"),
    ],
    ids=["service-gone", "service-switched-off", "doctor-gone"],
)
def test_what_is_booked_after_the_preview_is_not_retired(
    synced: Lab, feed: str, left: list[dict[str, Any]], named: str
) -> None:
    synced.hold(**{feed: left})
    plan = synced.plan(synced.sync(feed, preview=True))
    with synced.engine.begin() as connection:
        book(synced, connection)
    with synced.engine.begin() as connection:
        report = changes.apply(connection, plan.id, as_of=world.AS_OF, actor="desk:anna")
    assert (report.outcome, report.counts.changed) == (Outcome.REFUSED, 0)
    ((code, message),) = [(reason.code, teller().reason(reason)) for reason in report.reasons]
    assert (code, message.startswith(f"{named}: ha appuntamenti prenotati")) == ("barred", True)
    assert synced.rows("SELECT id FROM service WHERE NOT active UNION SELECT id FROM specialist WHERE NOT active") == []


def test_a_booking_under_way_is_waited_for(synced: Lab) -> None:
    synced.hold(services=[s for s in SERVICES if s["id"] != "S3"])
    plan = synced.plan(synced.sync("services", preview=True))

    with synced.engine.begin() as desk, ThreadPoolExecutor(1) as pool:
        book(synced, desk)

        def apply() -> Report:
            with synced.engine.begin() as connection:
                return changes.apply(connection, plan.id, as_of=world.AS_OF, actor="desk:anna")

        applied = pool.submit(apply)
        with pytest.raises(TimeoutError):
            applied.result(timeout=0.5)
        desk.commit()
        assert [reason.code for reason in applied.result(timeout=PATIENCE).reasons] == ["barred"]


def test_undo_leaves_alone_what_would_go_out_of_service_with_bookings(synced: Lab) -> None:
    synced.hold(services=SERVICES[:3] + SERVICES[4:])
    synced.sync("services")
    synced.hold(services=SERVICES)
    back = synced.sync("services")
    assert back.counts.updated == 1
    with synced.engine.begin() as connection:
        book(synced, connection)
    with synced.engine.begin() as connection:
        report = changes.undo(connection, back.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert (report.outcome, [teller().reason(r) for r in report.reasons]) == (
        Outcome.REFUSED,
        ["89.03 Visita 3: ha appuntamenti prenotati: vanno spostati prima"],
    )
    assert synced.rows("SELECT active FROM service WHERE external_id = 'S3'") == [(True,)]


def test_undo_keeps_a_new_service_that_the_desk_has_worked_with(lab: Lab) -> None:
    services = lab.sync("services")
    lab.write("UPDATE service SET price = 99, bookable_online = true WHERE external_id = 'S3'")
    doctors = lab.sync("collaborators")
    lab.write("UPDATE specialist SET sort_name = 'NERI', sort_name_manual = (external_id = 'D1')")
    with lab.engine.begin() as connection:
        back = [
            changes.undo(connection, done.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
            for done in (services, doctors)
        ]
    assert [(report.outcome, report.counts.retired) for report in back] == [(Outcome.PARTIAL, 19), (Outcome.PARTIAL, 6)]
    assert teller().reason(back[0].reasons[0]) == "89.03 Visita 3: modificato dopo l'applicazione"
    assert lab.rows("SELECT external_id, price FROM service") == [("S3", 99)]
    assert lab.rows("SELECT external_id FROM specialist") == [("D1",)]
