"""Money for a time that was gone, as the desk sees it and says what became of it: on its page and by the command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.clinic.bookings import confirming, holds, payments
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.holds import Booking
from polydesk_dagster.database.engine import plain_url
from tests import world
from tests.web.world import Served


def _paid_too_late(engine: sa.Engine) -> world.Practice:
    """Somebody pays after her hold is over, and another one has the slot by then."""
    now = datetime.now(UTC)
    with engine.begin() as connection:
        practice = world.practice(connection, "MI01")
        slot = world.slot(connection, practice.agenda, now + timedelta(days=3))
        wanted = {"slot_id": slot, "service_id": practice.service}
        holds.place(connection, **wanted, token="ada", visitor="ada", as_of=now - timedelta(minutes=40))
        confirming.begin_confirming(
            connection, token="ada", as_of=now - timedelta(minutes=35), payment_reference="PAY-77"
        )
        assert holds.place(connection, **wanted, token="bice", visitor="bice", as_of=now).answer is Answer.PLACED
        late = Booking(practice.service, practice.patient, paid=True, quoted_price=Decimal("80.00"))
        answer = confirming.confirm(connection, token="ada", booking=late, as_of=now).answer
        assert answer is Answer.PAID_TOO_LATE
    return practice


def test_the_desk_settles_a_payment_on_its_page(door: Served) -> None:
    practice = _paid_too_late(door.door.engine)
    with door.door.engine.begin() as connection:
        (case,) = payments.cases(connection)
        unnamed = """INSERT INTO payment_case (clinic_id, hold_id, kind, starts_at, opened_at)
                     VALUES (:clinic, 0, 'unanswered', now() + interval '1 day', now())"""
        connection.execute(sa.text(unnamed), {"clinic": practice.clinic})
    with door.signed_in("desk", clinic=practice.clinic) as desk:
        page = unescape(desk.get("/da-fare").text)
        assert "PAY-77" in page
        assert "80,00" in page
        assert "·  ·" not in page
        address = f"/da-fare/pagamenti/{case.id}"
        done = desk.post(address, data=door.form(desk, resolution="refunded", back="payments"))
        assert done.status_code == 303
        assert "PAY-77" not in desk.get("/da-fare").text
        assert desk.post(address, data=door.form(desk, resolution="refunded")).status_code == 409
    with door.door.engine.begin() as connection:
        elsewhere = world.clinic(connection, "NA01")
        assert connection.scalar(sa.text("SELECT count(*) FROM audit WHERE action = 'payment'")) == 1
    with door.signed_in("desk", clinic=elsewhere) as stranger:
        assert stranger.post(address, data=door.form(stranger, resolution="unpaid")).status_code == 403


def test_the_command_lists_and_settles(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))

    def said(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["bookings", "payments", *arguments])
        return done.exit_code, done.output

    _paid_too_late(engine)
    (case,) = json.loads(said("list", "--json")[1])
    assert (case["payment_reference"], case["kind"], case["price"]) == ("PAY-77", "paid_too_late", "80.00")
    assert "PAY-77" in said("list", "--clinic", "MI01")[1]
    assert said("settle", str(case["id"]), "booked")[0] == 0
    assert said("settle", str(case["id"]), "booked")[0] == 3
    assert "Nessun pagamento" in said("list")[1]
    assert said("settle", "1", "perduto")[0] == 2
