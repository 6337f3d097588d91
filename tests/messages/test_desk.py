"""What the desk notes from the command line about addresses."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.clinic.messages import calls, hours, planning, service
from polydesk_dagster.database.engine import plain_url
from tests import world
from tests.messages.world import AS_OF, booked, gateway, states


@pytest.fixture(autouse=True)
def home(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))


WHO = ("--who", "Ada", "--why", "lo chiede la paziente")


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["messages", *arguments])
    return done.exit_code, done.output


def test_a_stop_told_at_the_desk_holds_a_message_that_was_planned_already(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        both = world.patient(connection, mobile="+393471234567", email="Anna@Example.org")
        booked(connection, practice, "12:00", patient_id=both)
        planning.plan(connection, "reminder", AS_OF, hours.load(connection, AS_OF))
    assert said("stop", "347 123 45 67")[0] == 0
    assert said("stop", "anna@example.ORG")[0] == 0
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert simulator.sent == []
        assert states(engine) == [("withheld", "opted_out")]
        assert "Annotato" in said("start", "+39 347 1234567", *WHO)[1]
        assert "Non era bloccato" in said("start", "+39 347 1234567", *WHO)[1]
        with engine.begin() as connection:
            booked(connection, practice, "13:00", patient_id=both)
        service.send(engine, AS_OF, "reminder", providers)
        assert [message.to for message in simulator.sent] == ["+393471234567"]


def test_what_is_no_address_is_refused() -> None:
    assert said("stop", "Anna")[0] == 2


def test_the_look_for_whom_to_call_reads_none_of_the_messages_that_were_sent(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(
            sa.text("""
                WITH person AS (
                    INSERT INTO patient (last_name, first_name) SELECT 'Rossi', 'N' || n FROM generate_series(1, 3000) n
                    RETURNING id
                ), booked AS (
                    INSERT INTO appointment (clinic_id, service_id, patient_id, starts_at, ends_at, status, channel,
                                             created_at)
                    SELECT :clinic, :service, id, :start, :end, 'booked', 'desk', :at FROM person
                    RETURNING id, patient_id
                ), sent AS (
                    INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, about_day, send_after,
                                         expires_at, template_revision, created_at, changed_at, state, channel,
                                         address, sent_at)
                    SELECT :clinic, 'reminder', 'patient', id, :day, :at, :start, 0, :at, :at, 'sent', 'sms',
                           '+393471112223', :at
                    FROM person RETURNING id, recipient_id)
                INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                            message_id, starts_at, useful_until, planned_at)
                SELECT 'appointment', booked.id, 1, 'reminder', 'patient', patient_id, :clinic, sent.id, :start, :start,
                       :at
                FROM sent JOIN booked ON booked.patient_id = sent.recipient_id"""),
            {
                "clinic": practice.clinic,
                "service": practice.service,
                "day": AS_OF.date(),
                "at": AS_OF,
                "start": AS_OF + timedelta(days=1),
                "end": AS_OF + timedelta(days=1, minutes=30),
            },
        )
    count = sa.text("""SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables
                       WHERE relname IN ('message', 'message_ledger')""")
    with engine.connect() as connection:
        connection.execute(sa.text("ANALYZE message, message_ledger, appointment, patient"))
        before = connection.scalar(count) or 0
        calls.refresh(connection, "reminder", AS_OF)
        # the planner itself looks at the ends of indexes, a few rows for each statement
        assert (connection.scalar(count) or 0) - before <= 30
