"""Closing from the page: seen with names, each look logged, applied as a plan by whoever may; places kept likewise."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.calendar import desk as desk_rules
from polydesk_dagster.clinic.calendar import desk_closures, slots
from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.clinic.patients import seen
from tests import world
from tests.web.world import Served


@pytest.fixture
def booked(door: Served) -> tuple[world.Practice, datetime, int]:
    """A practice with turns every day, the start of a booking in five days, and its patient."""
    now = datetime.now(UTC)
    with door.door.engine.begin() as connection:
        practice = world.practice(connection, "MI01", horizon_days=14)
        world.clinic(connection, "NA01")
        connection.execute(sa.text("DELETE FROM agenda_rule"))
        world.rules(connection, practice.agenda, weekdays=range(1, 8))
    slots.generate(door.door.engine, now)
    with door.door.engine.begin() as connection:
        slot, start = connection.execute(
            sa.text("SELECT id, starts_at FROM slot WHERE starts_at > :from ORDER BY starts_at LIMIT 1"),
            {"from": now + timedelta(days=5)},
        ).one()
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    return practice, start, practice.patient


@pytest.mark.slow
def test_whom_a_closure_touches_is_shown_and_the_place_is_kept_by_a_plan(
    door: Served, booked: tuple[world.Practice, datetime, int]
) -> None:
    practice, start, patient = booked
    day = start.astimezone(world.ROME).date().isoformat()
    engine = door.door.engine
    with door.signed_in("desk", clinic=practice.clinic) as desk:
        assert 'href="/chiusure"' in desk.get("/").text
        form = door.form(desk, name="Fiera", clinic="MI01", agenda=str(practice.agenda), **{"from": day})
        page = desk.post("/chiusure/chiudi", data=form)
        assert (page.status_code, "Rossi Mario" in page.text) == (200, True)
        assert "lo applica un responsabile" in page.text
        number = int(page.text.partition("/piani/")[2].partition('"')[0])
        for wrong, status in (
            ({"from": "ieri"}, 400), ({"from": ""}, 400), ({"agenda": "999"}, 404),
            ({"agenda": "", "clinic": "NA01"}, 403), ({"agenda": "", "clinic": ""}, 403),
        ):  # fmt: skip
            assert desk.post("/chiusure/chiudi", data={**form, **wrong}).status_code == status, wrong
        refused = unescape(desk.post("/chiusure/chiudi", data={**form, "name": " "}).text)
        assert ("nome" in refused, "Non tocca nessuna" in refused) == (True, False)
        with engine.begin() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM closure")) == 0
            assert seen.of(connection, patient)[-1].page == "chiusure"
            assert changes.apply(connection, number, as_of=datetime.now(UTC), actor="desk:prova").counts.updated == 1
        assert "Posto tenuto al paziente" in desk.get("/da-fare").text
        with engine.begin() as connection:
            changes.undo(connection, number, as_of=datetime.now(UTC), actor="desk:prova")
        closure = Closure("Fiera", date.fromisoformat(day), date.fromisoformat(day), agenda=practice.agenda)
        desk_closures.add(engine, closure, as_of=datetime.now(UTC), actor="desk:prova")
        page = desk.post("/chiusure/posti", data=door.form(desk, clinic="MI01"))
        assert "Rossi Mario" in page.text
        number = int(page.text.partition("/piani/")[2].partition('"')[0])
        with engine.begin() as connection:
            assert changes.apply(connection, number, as_of=datetime.now(UTC), actor="desk:prova").counts.updated == 1
        assert "Posto tenuto al paziente" in desk.get("/da-fare").text
        with engine.connect() as connection:
            (each,) = desk_rules.orphans(connection, datetime.now(UTC), 10)
        address = f"/da-fare/posti/{each.appointment_id}"
        assert address in desk.get("/da-fare").text
        wanted = door.form(desk, clinic="MI01", answer="decline")
        for wrong, status in (({"answer": "?"}, 400), ({"clinic": "NA01"}, 403), ({}, 303), ({}, 409)):
            assert desk.post(address, data={**wanted, **wrong}).status_code == status, wrong
        page = desk.get("/da-fare").text
        assert ("non vuole il posto" in page, address in page) == (True, False)
    with door.signed_in("manager", clinic=practice.clinic) as manager:
        page = manager.post("/chiusure/chiudi", data=door.form(manager, name="Festa", clinic="MI01", **{"from": day}))
        assert "per applicarlo" in page.text
        assert manager.get(f"/piani/{number}").status_code == 200


def test_whom_edited_turns_touch_is_shown(door: Served, booked: tuple[world.Practice, datetime, int]) -> None:
    practice, start, _ = booked
    with door.door.engine.begin() as connection:
        connection.execute(
            sa.text("DELETE FROM agenda_rule WHERE weekday = :day"),
            {"day": start.astimezone(world.ROME).isoweekday()},
        )
    with door.signed_in("desk", clinic=practice.clinic) as desk:
        assert "Rossi Mario" in desk.post("/chiusure/turni", data=door.form(desk, clinic="MI01")).text
        assert desk.post("/chiusure/turni", data=door.form(desk, clinic="NA01")).status_code == 403


def test_what_cannot_be_read_in_a_form_is_never_taken_for_all(
    door: Served, booked: tuple[world.Practice, datetime, int]
) -> None:
    _, start, _ = booked
    day = start.astimezone(world.ROME).date().isoformat()
    with door.signed_in("superuser") as owner:
        for agenda in ("²", "otto", "9" * 30, " 8"):
            form = door.form(owner, name="Fiera", clinic="MI01", agenda=agenda, **{"from": day})
            assert owner.post("/chiusure/chiudi", data=form).status_code == 404, agenda
        orphan = door.form(owner, clinic="MI01", appointment="x", state="kept")
        assert owner.post("/da-fare/orfani/1", data=orphan).status_code == 404
        for address, more in (("chiudi", {"name": "Fiera", "from": day}), ("turni", {}), ("posti", {})):
            page = owner.post(f"/chiusure/{address}", data=door.form(owner, clinic="XX99", **more))
            assert (page.status_code < 500, "XX99" in page.text or "attiva" in page.text) == (True, True), address
    with door.door.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM plan WHERE kind = 'closing'")) == 0
