from __future__ import annotations

from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.assets.notifications import ASSETS
from polydesk_dagster.checks.notifications import CHECKS
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo import mailbox
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from polydesk_dagster.resources.polydesk import PolydeskResource
from tests import world
from tests.light import without
from tests.messages.world import AS_OF, booked


class Frozen(PolydeskResource):
    """The installation at the tests' instant."""

    def now(self) -> datetime:
        return AS_OF


@pytest.mark.slow
def test_the_asset_sends_over_both_carriers_and_tells_dagster_nobody_s_name(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "pandas", "matplotlib")  # they would cost more than the run
    with engine.begin() as connection:
        practice = world.practice(connection)
        by_mail = world.patient(connection, last_name="Zwirner", preferred_channel="email", email="zwirner@example.org")
        booked(connection, practice, "09:00", patient_id=by_mail)
        booked(connection, practice, "10:00", patient_id=world.patient(connection, mobile="+393477654321"))
        booked(connection, practice, "11:00", patient_id=world.patient(connection, mobile=None, email=None))
    simulator = SmsSimulator()
    with in_thread(simulator) as sms, mailbox.in_thread(tmp_path / "mail") as smtp:
        for name, value in {
            "HOME": str(tmp_path),
            "DATABASE_URL": plain_url(database),
            "SMS_URL": sms,
            "SMS_TOKEN": DEMO_TOKEN,
            "SMS_SENDER": "Polydesk",
            "SMTP_URL": smtp,
            "MAIL_FROM": "Polydesk <no-reply@clinica.example>",
        }.items():
            monkeypatch.setenv(f"POLYDESK_{name}", value)
        with dg.DagsterInstance.ephemeral() as instance:
            result = dg.materialize([*ASSETS, *CHECKS], resources={"polydesk": Frozen()}, instance=instance)
    assert result.success
    assert [message.to for message in simulator.sent] == ["+393477654321"]
    (letter,) = mailbox.received(tmp_path / "mail")
    assert letter["To"] == "zwirner@example.org"
    (reminders,) = result.asset_materializations_for_node("notifications__appointment_reminders")
    assert reminders.metadata["Inviati"].value == 2
    assert reminders.metadata["Trattenuti"].value == 1
    assert reminders.metadata["Ultimi giorni"].value == f"![Ultimi giorni](/grafici/{result.run_id}/reminder)"
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == {
        "no_message_long_unknown": True,
        "failure_rate": True,
        "no_reminder_missing": True,
    }
    told = "\n".join(str(event) for event in result.all_events)
    assert not [word for word in ("Zwirner", "zwirner", "7654321", "Rossi") if word in told]
