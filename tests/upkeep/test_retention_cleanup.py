"""The nightly clean-up: only what the registry lists and only when old, in batches that survive being killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import changes
from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.clinic.upkeep import registry, retention
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told import teller
from polydesk_dagster.values import Term
from tests import world
from tests.waiting import PATIENCE
from tests.world import AS_OF

DAY = timedelta(days=1)


def count(engine: sa.Engine, table: str, where: str = "true") -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text(f"SELECT count(*) FROM {table} WHERE {where}")) or 0)


def old_holds(connection: sa.Connection, practice: world.Practice, number: int, age: timedelta) -> None:
    """Ended holds of one slot, set-based."""
    slot = world.slot(connection, practice.agenda, AS_OF - age)
    connection.execute(
        sa.text("""
            INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, state, created_at, expires_at,
                              last_activity_at, ended_at)
            SELECT :clinic, :slot, sha256(CAST(:slot || '/' || n AS bytea)), '\\x00', 'expired', :at,
                   :at + interval '10 minutes', :at, :at + interval '10 minutes'
            FROM generate_series(1, CAST(:number AS integer)) n"""),
        {"clinic": practice.clinic, "slot": slot, "at": AS_OF - age, "number": number},
    )


def test_what_is_old_goes_and_what_is_young_stays(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        old_holds(connection, practice, 25, 40 * DAY)
        old_holds(connection, practice, 5, 20 * DAY)
    report = retention.clean(engine, AS_OF, batch=10)
    assert (report.outcome, report.counts.retired) == (Outcome.OK, 25)
    assert count(engine, "hold") == 5
    again = retention.clean(engine, AS_OF, batch=10)
    assert (again.outcome, again.counts.changed) == (Outcome.NOTHING_TO_DO, 0)
    with engine.connect() as connection:
        line = connection.execute(sa.text("SELECT detail FROM audit WHERE action = 'cleanup'")).scalar_one()
        assert audit.verify(connection) == []
    assert (line["dataset"], line["removed"]) == ("ended_holds", 25)
    assert len(line["digest"]) == 64


@pytest.mark.parametrize("preview", [True, False])
def test_a_data_set_that_cannot_be_looked_at_is_named_and_stops_no_other(engine: sa.Engine, preview: bool) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        old_holds(connection, practice, 25, 40 * DAY)
        world.slot(connection, practice.agenda, AS_OF - 500 * DAY)
    chosen = tuple(
        replace(each, where="CAST('x' || t.id AS bigint) > 0") if each.key == "past_slots" else each
        for each in registry.REGISTRY
    )
    report = retention.clean(engine, AS_OF, chosen=chosen, preview=preview)
    (said,) = (reason for reason in report.reasons if reason.code == "data_set_failed")
    assert said.values["dataset"] == Term("data_set", "past_slots")
    assert (report.outcome, report.counts.retired) == (Outcome.PARTIAL, 0 if preview else 25)
    assert count(engine, "hold") == (25 if preview else 0)


def test_a_preview_says_how_much_and_touches_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 25, 40 * DAY)
    report = retention.clean(engine, AS_OF, preview=True)
    (table,) = report.tables
    assert table.rows[0][:3] == (Term("data_set", "ended_holds"), Term("retention", "delete"), 25)
    assert count(engine, "hold") == 25
    assert count(engine, "cleanup") == 0


@pytest.mark.parametrize("name", ["patient", "audit", "appointment", "message_ledger", "invoice; DROP TABLE patient"])
def test_a_table_outside_the_registry_is_refused_by_name(name: str) -> None:
    with pytest.raises(PermanentError, match="unknown_data_set") as refusal:
        registry.data_sets([name])
    assert f"«{name}» non è nel registro di conservazione" in teller("it").reason(refusal.value.reason)


def test_the_registry_never_deletes_records_of_care_or_of_trust() -> None:
    never = {"patient", "price", "service", "audit", "audit_head", "plan", "clinic", "app_user"}
    assert not never & {each.table for each in registry.REGISTRY}
    kept = {"message", "message_attempt", "message_ledger"}
    ledger = [each for each in registry.REGISTRY if each.table in kept and not each.blanked]
    assert [each.days for each in ledger] == [730, 730, 730]
    deleting = [each for each in registry.REGISTRY if each.table == "appointment" and not each.blanked]
    assert [each.where for each in deleting] == ["t.status = 'expired'"]
    assert all(each.days >= 7 for each in registry.REGISTRY)
    for each in registry.REGISTRY:
        assert all(teller("it").knows(f"term.{domain}.{each.key}") for domain in ("data_set", "data_set_why"))


def test_a_row_in_use_stays_and_stops_nothing(engine: sa.Engine) -> None:
    """An expired booking that a report refers to; the others go, and so does what comes after that data set."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        bookings = [
            world.appointment(
                connection, world.slot(connection, practice.agenda, AS_OF - 9 * DAY + n * timedelta(hours=1)),
                service_id=practice.service, patient_id=None, status="expired", channel="online",
                expired_at=AS_OF - 8 * DAY, verification_expires_at=AS_OF - 8 * DAY,
            )
            for n in range(5)
        ]  # fmt: skip
        connection.execute(
            sa.text("""INSERT INTO report (clinic_id, external_id, patient_id, appointment_id, title, published_at,
                                           updated_at)
                       VALUES (:clinic, 'R1', :patient, :booking, 'Referto', :at, :at)"""),
            {"clinic": practice.clinic, "patient": practice.patient, "booking": bookings[1], "at": AS_OF},
        )
        long_ago = world.slot(connection, practice.agenda, AS_OF - 500 * DAY)
    report = retention.clean(engine, AS_OF, batch=3)
    assert (report.outcome, report.counts.retired, report.counts.failed) == (Outcome.PARTIAL, 5, 1)
    assert [reason.code for reason in report.reasons] == ["rows_in_use"]
    assert count(engine, "appointment") == 1
    assert count(engine, "slot", f"id = {long_ago}") == 0
    again = retention.clean(engine, AS_OF, batch=3)
    assert again.counts.failed == 1, "told until somebody mends it"


def test_every_data_set_of_the_registry_can_be_worked_off(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        long_ago = world.slot(connection, practice.agenda, AS_OF - 500 * DAY)
        kept = world.appointment(
            connection, long_ago, service_id=practice.service, patient_id=practice.patient, status="completed",
            contact_email="chi@example.org",
        )  # fmt: skip
        recent = world.slot(connection, practice.agenda, AS_OF - 9 * DAY)
        never = world.appointment(
            connection, recent, service_id=practice.service, patient_id=None, status="expired", channel="online",
            expired_at=AS_OF - 8 * DAY, verification_expires_at=AS_OF - 8 * DAY,
        )  # fmt: skip
        world.hold(
            connection, practice.clinic, recent, state="confirmed", appointment_id=never,
            created_at=AS_OF - 9 * DAY, expires_at=AS_OF - 9 * DAY + timedelta(minutes=9), ended_at=AS_OF - 9 * DAY,
        )  # fmt: skip
        for days in (500, 450):
            connection.execute(
                sa.text("""INSERT INTO service_run (service, outcome, counts, reasons, as_of, started_at, seconds)
                           VALUES ('send_reminders', 'ok', '{}', '[]', :at, :at, 1)"""),
                {"at": AS_OF - days * DAY},
            )
        connection.execute(
            sa.text("""
                WITH ended AS (
                    INSERT INTO message_receipt (external_id, reference, status, bad_address, strike, at, received_at,
                                                 settled_at)
                    VALUES ('1', 'g1', 'delivered', false, false, :at, :at, :at))
                INSERT INTO message_reply (external_id, body, said_at, received_at, settled_at, outcome, reason,
                                           handled_at, handled_by)
                VALUES ('1', 'Arrivo tardi', :at, :at, :at, 'desk', 'free_text', :at, 'Ada')"""),
            {"at": AS_OF - 450 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO orphan (slot_id, cause, state, detected_at, resolved_at)
                       VALUES (:slot, 'closure', 'moved', :at, :at)"""),
            {"slot": recent, "at": AS_OF - 450 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO quarantine (service, kind, record_key, code, message, first_seen_at, last_seen_at,
                                               resolved_at)
                       VALUES ('sync_prices', 'price', '1', 'x', 'x', :at, :at, :at)"""),
            {"at": AS_OF - 100 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO patient_review (clinic_id, external_id, cause, record, state, found_at, decided_at)
                       VALUES (:clinic, '1', 'x', '{"last_name": "x"}', 'linked', :at, :at)"""),
            {"clinic": practice.clinic, "at": AS_OF - 200 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, state, send_after,
                           expires_at, template_revision, channel, address, body, sent_at, created_at, changed_at)
                       VALUES (:clinic, 'reminder', 'patient', :patient, 'sent', :at, :at, 0, 'sms', 'x', 'x',
                               :at, :at, :at)"""),
            {"clinic": practice.clinic, "patient": practice.patient, "at": AS_OF - 200 * DAY},
        )
        events(connection, practice.clinic, AS_OF - 91 * DAY, "applied")
        connection.execute(
            sa.text("""INSERT INTO event_gap (clinic_id, span, noticed_at, lost_at)
                       VALUES (:clinic, '[7,8)', :at, :at)"""),
            {"clinic": practice.clinic, "at": AS_OF - 91 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO verification (appointment_id, channel, secret_hash, created_at, expires_at)
                       VALUES (:booking, 'email', sha256('x'), CAST(:at AS timestamptz) - interval '1 day', :at)"""),
            {"booking": kept, "at": AS_OF - 31 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO payment_case (clinic_id, hold_id, kind, starts_at, contact_email, opened_at,
                                                 resolved_at, resolution, resolved_by)
                       VALUES (:clinic, 1, 'paid_too_late', :at, 'chi@example.org', :at, :at, 'refunded', 'anna')"""),
            {"clinic": practice.clinic, "at": AS_OF - 200 * DAY},
        )
        connection.execute(
            sa.text("""WITH token AS (
                           INSERT INTO front_token (name, token_hash, scopes, issued_at, issued_by, reason, expires_at)
                           VALUES ('sito', sha256('x'), '{find}', :at, 'anna', 'prova', :at + interval '1 year')
                           RETURNING id)
                       INSERT INTO front_answer (token_id, key_hash, request_hash, answered_at)
                       SELECT id, sha256('x'), sha256('x'), :at FROM token"""),
            {"at": AS_OF - 8 * DAY},
        )
        connection.execute(
            sa.text("""INSERT INTO knowledge_question (question, kind, clinic_id, role, first_at, last_at)
                       VALUES ('fate la risonanza?', 'unanswered', :clinic, 'desk', :at, :at)"""),
            {"clinic": practice.clinic, "at": AS_OF - 200 * DAY},
        )
        old_messages(connection, practice, 0, 1, "reminder", "sent")
        old_messages(connection, practice, 0, 2, "reminder", None)
        seen.log(connection, "anna", "cerca", AS_OF - 740 * DAY, patients=[practice.patient])
        seen.log(connection, "anna", "cerca", AS_OF - 729 * DAY, patients=[practice.patient])
    report = retention.clean(engine, AS_OF)
    assert report.outcome is Outcome.OK
    assert count(engine, "message_ledger") == 0
    assert count(engine, "patient_look") == 1, "who saw whom stays for 24 months"
    assert count(engine, "cleanup", "finished_at IS NOT NULL AND removed = expected") == len(registry.REGISTRY) - 1
    assert count(engine, "appointment", f"id = {kept} AND slot_id IS NULL AND contact_email IS NULL") == 1
    assert count(engine, "appointment", f"id = {never}") == 0
    assert count(engine, "service_run") == 1, "the last run of a service stays"
    assert count(engine, "patient_review", "record = '{}'") == 1


@pytest.mark.parametrize("wrong", ["UPDATE patient_look SET person = 'nobody'", "DELETE FROM patient_look"])
def test_who_saw_whom_is_not_changed_and_not_taken_away_within_24_months(engine: sa.Engine, wrong: str) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        seen.log(connection, "anna", "cerca", AS_OF, patients=[practice.patient])
    with pytest.raises(sa.exc.ProgrammingError, match="24 months"), engine.begin() as connection:
        connection.execute(sa.text(wrong))
    assert count(engine, "patient_look", "person = 'anna'") == 1


def test_the_last_run_of_a_service_stays_and_of_what_only_looks_the_last_look(engine: sa.Engine) -> None:
    runs = [("preview_prices", True), ("preview_prices", True), ("sync_prices", False), ("sync_prices", True)]
    with engine.begin() as connection:
        for service, preview in runs:
            connection.execute(
                sa.text("""INSERT INTO service_run (service, preview, outcome, counts, reasons, as_of, started_at,
                                                    seconds)
                           VALUES (:service, :preview, 'ok', '{}', '[]', :at, :at, 1)"""),
                {"service": service, "preview": preview, "at": AS_OF - 500 * DAY},
            )
    assert retention.clean(engine, AS_OF).outcome is Outcome.OK
    with engine.connect() as connection:
        left = connection.execute(sa.text("SELECT service, preview FROM service_run ORDER BY id")).all()
    assert [tuple(row) for row in left] == runs[1:]


def events(connection: sa.Connection, clinic: int, changed_at: datetime, *states: str) -> None:
    """One event of each state, numbered from 1."""
    connection.execute(
        sa.text("""
            INSERT INTO event_inbox (clinic_id, event_id, sequence, type, state, reason, next_try_at, payload,
                                     received_at, changed_at)
            SELECT :clinic, gen_random_uuid(), n, 'appointment.created', state, 'x',
                   CASE state WHEN 'parked' THEN CAST(:at AS timestamptz) END,
                   CASE WHEN state IN ('parked', 'waiting', 'dead') THEN CAST('{}' AS jsonb) END, :at, :at
            FROM unnest(CAST(:states AS text[])) WITH ORDINALITY AS s (state, n)"""),
        {"clinic": clinic, "at": changed_at, "states": list(states)},
    )


def test_settled_events_go_and_what_waits_for_a_person_stays(engine: sa.Engine) -> None:
    states = ("applied", "superseded", "skipped", "parked", "waiting", "dead")
    with engine.begin() as connection:
        quiet, behind, young = (world.clinic(connection, code) for code in ("BO01", "MO01", "RE01"))
        events(connection, quiet, AS_OF - 91 * DAY, *states)
        events(connection, behind, AS_OF - 91 * DAY, *["applied"] * 4)
        events(connection, young, AS_OF - 89 * DAY, *states)
        connection.execute(
            sa.text("""INSERT INTO event_gap (clinic_id, span, noticed_at, lost_at)
                       VALUES (:quiet, '[1,2)', :old, :old), (:quiet, '[7,8)', :old, NULL),
                              (:behind, '[3,4)', :old, NULL), (:young, '[7,8)', :old, :recent)"""),
            {
                "quiet": quiet, "behind": behind, "young": young, "old": AS_OF - 91 * DAY, "recent": AS_OF - 89 * DAY,
            },
        )  # fmt: skip
    report = retention.clean(engine, AS_OF, chosen=registry.data_sets(["settled_events", "lost_events"]), batch=2)
    assert report.counts.retired == 3 + 2 + 1
    assert count(engine, "event_inbox", f"clinic_id = {quiet}") == 3, "parked, waiting, dead"
    assert count(engine, "event_inbox", f"clinic_id = {behind} AND sequence >= 3") == 2, "they may be read again"
    assert count(engine, "event_inbox", f"clinic_id = {young}") == 6
    assert count(engine, "event_gap") == 3


def old_messages(
    connection: sa.Connection, practice: world.Practice, appointment: int, version: int, kind: str, state: str | None
) -> None:
    """A message of 800 days ago with its ledger row and an attempt; without ``state`` only the row, withheld."""
    connection.execute(
        sa.text("""
            WITH sent AS (
                INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, state, reason, send_after,
                                     expires_at, template_revision, sent_at, created_at, changed_at)
                SELECT :clinic, :kind, 'patient', :patient, :state, 'x', :at, :at, 0,
                       CASE WHEN :state = 'sent' THEN CAST(:at AS timestamptz) END, :at, :at
                WHERE CAST(:state AS text) IS NOT NULL RETURNING id
            ), tried AS (
                INSERT INTO message_attempt (message_id, at, channel, answer) SELECT id, :at, 'sms', 'later' FROM sent
            )
            INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                        message_id, withheld, planned_at)
            SELECT 'appointment', :appointment, :version, :kind, 'patient', :patient, :clinic, (SELECT id FROM sent),
                   CASE WHEN CAST(:state AS text) IS NULL THEN 'too_late' END, :at"""),
        {
            "clinic": practice.clinic,
            "patient": practice.patient,
            "appointment": appointment,
            "version": version,
            "kind": kind,
            "state": state,
            "at": AS_OF - 800 * DAY,
        },
    )


def test_the_message_ledger_goes_only_where_nobody_could_be_told_twice(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)

        def visit(days: int, hour: int) -> int:
            start = AS_OF + days * DAY + timedelta(hours=hour)
            return world.appointment(
                connection, world.slot(connection, practice.agenda, start), service_id=practice.service,
                patient_id=practice.patient, status="booked",
            )  # fmt: skip

        past, ahead = visit(-760, 0), visit(9, 0)
        for number, (appointment, kind, state) in enumerate(
            (
                (past, "reminder", "sent"), (past, "reminder", "failed"), (past, "reminder", None),
                (past, "reminder", "unknown"), (past, "activation", "sent"),
                (ahead, "reminder", "sent"), (ahead, "reminder", None),
            )
        ):  # fmt: skip
            old_messages(connection, practice, appointment, number, kind, state)
    with engine.connect() as connection:
        before = connection.execute(sa.text(_COUNTED)).all()
    retention.clean(engine, AS_OF)
    with engine.connect() as connection:
        kept = connection.scalars(sa.text("SELECT version FROM message_ledger ORDER BY version")).all()
        assert connection.execute(sa.text(_COUNTED)).all() == before
    assert kept == [3, 4, 5, 6]
    assert (count(engine, "message"), count(engine, "message_attempt")) == (3, 0)


_COUNTED = "SELECT kind, state, CAST(sum(messages) AS bigint) FROM counted_message GROUP BY 1, 2 ORDER BY 1, 2"


@pytest.fixture
def far_more_holds(engine: sa.Engine) -> world.Practice:
    """10,001 old holds where there used to be a hundred a night, and one old message."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        old_holds(connection, practice, 10_001, 40 * DAY)
        old_messages(connection, practice, 0, 1, "reminder", "sent")
        for number in range(3):
            connection.execute(
                sa.text("""INSERT INTO cleanup (dataset, cutoff, expected, oldest, newest, ordered_at, removed,
                                                finished_at)
                           VALUES ('ended_holds', :at, 100, :old, :old, :at, 100, :at)"""),
                {"at": AS_OF - number * DAY, "old": AS_OF - 60 * DAY},
            )
    return practice


def test_ten_times_the_usual_waits_for_a_persons_word_and_the_rest_goes_on(
    engine: sa.Engine, far_more_holds: world.Practice
) -> None:
    stopped = retention.clean(engine, AS_OF)
    assert stopped.outcome is Outcome.PARTIAL
    assert (count(engine, "hold"), count(engine, "message"), count(engine, "message_attempt")) == (10_001, 0, 0)
    reason = stopped.reasons[0]
    assert reason.code == "far_more_than_usual"
    said = teller("it").reason(reason)
    assert "orari bloccati già conclusi: ci sarebbero da pulire 10001 righe" in said
    assert f"polydesk plan apply {stopped.plan_id} --past-guard unusual_volume" in said
    assert {row[0] for row in stopped.tables[0].rows} >= {
        Term("data_set", "ended_holds"),
        Term("data_set", "message_attempts"),
    }
    assert retention.clean(engine, AS_OF).outcome is Outcome.REFUSED, "nothing else is left"

    assert stopped.plan_id is not None
    why, past = "campagna vaccinale di febbraio", ["unusual_volume"]
    with engine.begin() as connection:
        assert changes.apply(connection, stopped.plan_id, as_of=AS_OF, actor="desk:anna").outcome is Outcome.REFUSED
        passed = changes.apply(
            connection, stopped.plan_id, as_of=AS_OF, actor="desk:anna", reason=why, past_guards=past
        )
    assert passed.counts.created == 1
    assert count(engine, "cleanup", "dataset = 'ended_holds' AND finished_at IS NULL") == 1
    worked = retention.clean(engine, AS_OF)
    assert (worked.outcome, worked.counts.retired) == (Outcome.OK, 10_001)


def test_a_preview_names_what_is_far_more_than_usual(engine: sa.Engine, far_more_holds: world.Practice) -> None:
    shown = retention.clean(engine, AS_OF, preview=True)
    (reason,) = (each for each in shown.reasons if each.code == "far_more_than_usual")
    assert teller("it").reason(reason).startswith("orari bloccati già conclusi: ")
    assert shown.counts.created == len(shown.tables[0].rows) == 3
    assert (count(engine, "cleanup"), count(engine, "hold")) == (3, 10_001)


def test_an_order_that_was_left_open_is_worked_off_whatever_is_stopped(
    engine: sa.Engine, far_more_holds: world.Practice
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO cleanup (dataset, cutoff, expected, oldest, newest, ordered_at)
                       VALUES ('old_messages', :cutoff, 1, :old, :old, :cutoff)"""),
            {"cutoff": AS_OF - 731 * DAY, "old": AS_OF - 800 * DAY},
        )
    chosen = registry.data_sets(["ended_holds", "old_messages"])
    assert retention.clean(engine, AS_OF, chosen=chosen).outcome is Outcome.PARTIAL
    assert (count(engine, "hold"), count(engine, "message")) == (10_001, 0)


def test_a_data_set_that_another_service_orders_just_now_keeps_nothing_else(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        old_holds(connection, practice, 5, 40 * DAY)
        slot = world.slot(connection, practice.agenda, AS_OF - 20 * DAY)
        world.appointment(
            connection, slot, service_id=practice.service, patient_id=None, status="expired", channel="online",
            expired_at=AS_OF - 20 * DAY, verification_expires_at=AS_OF - 20 * DAY, seat=False,
        )  # fmt: skip
    met = threading.Barrier(2)
    apply = changes.apply

    def at_once(*args: Any, **kwargs: Any) -> Report:
        with suppress(threading.BrokenBarrierError):  # the second waits for the first's orders
            met.wait(1)
        return apply(*args, **kwargs)

    monkeypatch.setattr(changes, "apply", at_once)
    with ThreadPoolExecutor(2) as pool:
        nightly = pool.submit(retention.clean, engine, AS_OF)
        hourly = pool.submit(
            retention.clean,
            engine,
            AS_OF,
            service="delete_unverified_appointments",
            chosen=registry.UNVERIFIED_BOOKINGS,
        )
        reports = [nightly.result(timeout=PATIENCE), hourly.result(timeout=PATIENCE)]
    assert Outcome.REFUSED not in {report.outcome for report in reports}
    assert sum(report.counts.retired for report in reports) == 6
    assert (count(engine, "hold"), count(engine, "appointment")) == (0, 0)


def test_what_a_message_said_goes_whether_it_went_out_or_not(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(
            sa.text("""
                INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, state, reason, send_after,
                                     expires_at, template_revision, channel, address, body, sent_at, created_at,
                                     changed_at)
                SELECT :clinic, kind, 'patient', :patient, state, 'x', at, at, 0, 'sms', '+393331234567', 'Gentile',
                       CASE state WHEN 'sent' THEN at END, at, at
                FROM unnest(ARRAY['reminder', 'activation']) kind,
                     unnest(ARRAY['sent', 'failed', 'withheld', 'unknown']) state,
                     unnest(CAST(:times AS timestamptz[])) at"""),
            {"clinic": practice.clinic, "patient": practice.patient, "times": [AS_OF - 181 * DAY, AS_OF - 179 * DAY]},
        )
    assert retention.clean(engine, AS_OF).counts.updated == 6
    assert count(engine, "message", "address IS NULL AND body IS NULL AND state <> 'unknown'") == 6
    assert count(engine, "message", "num_nonnulls(address, body) = 2") == 10, "young ones, and doubts"


def test_an_instant_ahead_of_the_clock_makes_nothing_older(engine: sa.Engine) -> None:
    later = datetime.now(UTC) + 5000 * DAY
    with engine.begin() as connection:
        practice = world.practice(connection)
        ahead = world.slot(connection, practice.agenda, datetime.now(UTC) + 30 * DAY)
        booked = world.appointment(
            connection, ahead, service_id=practice.service, patient_id=practice.patient, status="booked"
        )
    plan = retention.clean(engine, later, preview=True).plan_id
    assert plan is not None
    with engine.begin() as connection:
        refused = changes.apply(connection, plan, as_of=datetime.now(UTC), actor="desk:anna")
    assert (refused.outcome, refused.reasons[0].code) == (Outcome.REFUSED, "plan_ahead")
    retention.clean(engine, later)
    assert count(engine, "appointment", f"id = {booked} AND slot_id = {ahead}") == 1
    assert count(engine, "seat", f"appointment_id = {booked}") == 1


def test_a_plan_that_is_applied_by_hand_says_when_its_orders_are_worked_off(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    plan = retention.clean(engine, AS_OF, preview=True).plan_id
    assert plan is not None
    with engine.begin() as connection:
        report = changes.apply(connection, plan, as_of=AS_OF, actor="desk:anna")
    assert (report.outcome, report.counts.created) == (Outcome.OK, 1)
    (reason,) = report.reasons
    assert "ordinata: orari bloccati già conclusi, 5 righe" in teller().reason(reason)
    assert "«Pulizia notturna dati» il 11/03/2026 02:30" in teller().reason(reason)
    assert count(engine, "hold") == 5
    assert retention.clean(engine, AS_OF).counts.retired == 5


def _clean_slowly(url: URL, ready: Any) -> None:
    """Stops for good after the second batch."""
    engine = create_engine(url)
    batches = 0

    def rest() -> None:
        nonlocal batches
        batches += 1
        if batches == 2:
            ready.set()
            signal.pause()

    retention.clean(engine, AS_OF, batch=10, rest=rest)


def test_a_killed_clean_up_is_finished_by_the_next(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 45, 40 * DAY)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_clean_slowly, args=(engine.url, ready))
    process.start()
    assert ready.wait(PATIENCE)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert count(engine, "hold") == 25
    report = retention.clean(engine, AS_OF, batch=10)
    assert report.counts.retired == 25
    assert count(engine, "hold") == 0
    with engine.connect() as connection:
        lines = connection.scalars(sa.text("SELECT detail FROM audit WHERE action = 'cleanup'")).all()
    assert [line["removed"] for line in lines] == [45], "one line for the whole order, killed or not"


def test_an_order_that_has_begun_cannot_be_undone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 5, 40 * DAY)
    plan = retention.clean(engine, AS_OF).plan_id
    assert plan is not None
    with engine.begin() as connection:
        report = changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")
    assert report.counts.changed == 0
    assert "già eseguita" in " ".join(teller().reason(reason) for reason in report.reasons)
