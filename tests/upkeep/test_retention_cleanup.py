"""The nightly clean-up: only what the registry lists and only when old, in batches that survive being killed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.clinic.upkeep import registry, retention
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome
from polydesk_dagster.told import teller
from polydesk_dagster.values import Term
from tests import world
from tests.upkeep.world import DAY, count, old_holds, old_messages
from tests.world import AS_OF


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
    assert (report.outcome, report.counts.retired) == (Outcome.PARTIAL, 25)
    assert count(engine, "hold") == (25 if preview else 0)


@pytest.mark.parametrize("while_it", ["looks", "deletes"])
def test_a_full_disk_is_no_data_sets_fault(engine: sa.Engine, while_it: str) -> None:
    """It is raised, for whoever knows what the server is short of, and not told of each data set by a number."""
    function = f"""CREATE FUNCTION no_room() RETURNS {"boolean" if while_it == "looks" else "trigger"}
                   LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$"""
    chosen = registry.data_sets(["ended_holds"])
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 25, 40 * DAY)
        connection.execute(sa.text(function))
        if while_it == "looks":
            chosen = tuple(replace(each, where="no_room()") for each in chosen)
        else:
            connection.execute(sa.text("CREATE TRIGGER no_room BEFORE DELETE ON hold EXECUTE FUNCTION no_room()"))
    with pytest.raises(sa.exc.OperationalError, match="full"):
        retention.clean(engine, AS_OF, chosen=chosen)
    assert count(engine, "hold") == 25


def test_a_preview_says_how_much_and_touches_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        old_holds(connection, world.practice(connection), 25, 40 * DAY)
    report = retention.clean(engine, AS_OF, preview=True)
    (table,) = report.tables
    assert table.rows[0][:3] == (Term("data_set", "ended_holds"), Term("retention", "delete"), 25)
    assert (report.counts, set(report.figures)) == (Counts(retired=25), {WHAT_TO_DO})
    assert count(engine, "hold") == 25
    assert count(engine, "cleanup") == 0
    done = retention.clean(engine, AS_OF)
    (table,) = done.tables
    assert (table.key, table.rows[0][:3]) == (
        "cleaned",
        (Term("data_set", "ended_holds"), Term("retention", "delete"), 25),
    )
    assert done.counts == report.counts
    assert retention.clean(engine, AS_OF).tables == ()


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
