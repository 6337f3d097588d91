from __future__ import annotations

import threading
from datetime import UTC, date, datetime

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.statistics.refresh import compare, comparison_due, due, refresh
from polydesk_dagster.clinic.statistics.topics import TOPICS
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from tests.statistics import world

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)


@pytest.fixture
def chain(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        world.chain(connection)
    return engine


def _published(engine: sa.Engine) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            topic.key: sorted(
                (tuple(row) for row in connection.execute(sa.text(f"SELECT * FROM {topic.table}"))), key=repr
            )
            for topic in TOPICS.values()
        }


def _days(engine: sa.Engine, column: str = "appointments") -> dict[tuple[int, date], int]:
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(f"SELECT clinic_id, day, sum({column}) FROM statistic_appointment GROUP BY clinic_id, day")
        )
        return {(row[0], row[1]): int(row[2]) for row in rows}


def _execute(engine: sa.Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def _agrees(engine: sa.Engine) -> None:
    """What was published incrementally is what a full recompute gives."""
    comparison = compare(engine, AS_OF, whole=True)
    assert comparison.drifted == ()
    before = _published(engine)
    report = refresh(engine, AS_OF, full=True)
    assert report.outcome is Outcome.NOTHING_TO_DO
    assert _published(engine) == before


def test_counts_by_local_day_on_the_days_that_the_clocks_change(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-03-28 22:59Z")  # 23:59 in Rome
        world.appointment(connection, "2026-03-28 23:30Z")  # 00:30 of the short day
        world.appointment(connection, "2026-03-29 21:59Z")  # 23:59 of the short day, already summer time
        world.appointment(connection, "2026-03-29 22:01Z")  # the next day
        world.appointment(connection, "2026-10-25 00:30Z")  # both 02:30 of the long day
        world.appointment(connection, "2026-10-25 01:30Z")
        world.appointment(connection, "2026-10-25 22:59Z")  # 23:59 of the long day
        world.appointment(connection, "2026-03-28 23:30Z", clinic=2)  # 23:30 in Lisbon, not yet midnight
    report = refresh(chain, AS_OF)
    assert report.outcome is Outcome.OK
    assert _days(chain) == {
        (1, date(2026, 3, 28)): 1,
        (1, date(2026, 3, 29)): 2,
        (1, date(2026, 3, 30)): 1,
        (1, date(2026, 10, 25)): 3,
        (2, date(2026, 3, 28)): 1,
    }
    _agrees(chain)


def test_a_second_refresh_changes_nothing(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-04-01 08:00Z")
    assert refresh(chain, AS_OF).counts.created == 1
    again = refresh(chain, AS_OF)
    assert (again.outcome, again.counts.changed) == (Outcome.NOTHING_TO_DO, 0)
    compare(chain, AS_OF, whole=True)
    with chain.connect() as connection:
        assert due(connection, AS_OF) is not None


def test_late_edits_open_their_old_and_their_new_cell(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        first = world.appointment(connection, "2026-03-02 08:00Z")
        world.appointment(connection, "2026-03-03 08:00Z")
    refresh(chain, AS_OF)
    _execute(chain, "UPDATE appointment SET status = 'no_show' WHERE id = :id", id=first)
    assert refresh(chain, AS_OF).counts.updated == 1
    _execute(
        chain,
        "UPDATE appointment SET starts_at = starts_at + interval '1 day', ends_at = ends_at + interval '1 day'"
        " WHERE id = :id",
        id=first,
    )
    report = refresh(chain, AS_OF)
    assert (report.counts.retired, report.counts.updated) == (1, 1)
    assert _days(chain) == {(1, date(2026, 3, 3)): 2}
    _agrees(chain)


def test_an_appointment_moves_between_clinics(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        moved = world.appointment(connection, "2026-03-28 23:30Z")
    refresh(chain, AS_OF)
    _execute(
        chain,
        "UPDATE appointment SET clinic_id = 2, agenda_id = 2, service_id = 2, specialist_id = 2 WHERE id = :id",
        id=moved,
    )
    refresh(chain, AS_OF)
    assert _days(chain) == {(2, date(2026, 3, 28)): 1}
    _agrees(chain)


def test_edits_that_count_nowhere_are_not_logged(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-03-02 08:00Z")
    refresh(chain, AS_OF)
    _execute(chain, "UPDATE appointment SET updated_at = now(), contact_phone = '+390510000000', paid_at = now()")
    with chain.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM statistic_change")) == 0


@pytest.mark.parametrize("mode", ["origin", "replica"])
def test_no_way_of_writing_passes_the_log(chain: sa.Engine, mode: str) -> None:
    with chain.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL session_replication_role = {mode}"))
        world.appointment(connection, "2026-03-02 08:00Z")
        cursor = connection.connection.cursor()
        with cursor.copy(
            "COPY appointment (clinic_id, service_id, patient_id, starts_at, ends_at, status, channel) FROM STDIN"
        ) as copy:
            for hour in range(8, 12):
                copy.write_row((1, 1, 1, f"2026-03-04 {hour}:00Z", f"2026-03-04 {hour}:30Z", "booked", "phone"))
        connection.execute(
            sa.text("""
                MERGE INTO appointment a
                USING (VALUES (CAST('2026-03-05 08:00Z' AS timestamptz)), ('2026-03-02 08:00Z')) v (at)
                ON a.starts_at = v.at
                WHEN MATCHED THEN UPDATE SET status = 'completed'
                WHEN NOT MATCHED THEN
                    INSERT (clinic_id, service_id, patient_id, starts_at, ends_at, status, channel)
                    VALUES (1, 1, 1, v.at, v.at + interval '1 hour', 'booked', 'phone')""")
        )
    refresh(chain, AS_OF)
    assert _days(chain) == {(1, date(2026, 3, 2)): 1, (1, date(2026, 3, 4)): 4, (1, date(2026, 3, 5)): 1}
    _agrees(chain)
    _execute(chain, "DELETE FROM appointment WHERE starts_at < '2026-03-03'")
    refresh(chain, AS_OF)
    assert (1, date(2026, 3, 2)) not in _days(chain)
    _execute(chain, "TRUNCATE appointment CASCADE")
    assert refresh(chain, AS_OF).counts.retired == 2
    assert _days(chain) == {}
    _agrees(chain)


def test_a_clinic_that_changes_its_zone_is_counted_again(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-05-01 21:30Z")
        world.appointment(connection, "2026-05-01 22:30Z")
    refresh(chain, AS_OF)
    assert _days(chain) == {(1, date(2026, 5, 1)): 1, (1, date(2026, 5, 2)): 1}
    _execute(chain, "UPDATE clinic SET time_zone = 'Europe/Lisbon' WHERE id = 1")
    refresh(chain, AS_OF)
    assert _days(chain) == {(1, date(2026, 5, 1)): 2}
    _agrees(chain)


def test_deleted_services_and_specialists_stay_counted(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-05-01 08:30Z")
    refresh(chain, AS_OF)
    _execute(chain, "UPDATE service SET deleted_at = now(), active = false")
    _execute(chain, "UPDATE specialist SET deleted_at = now(), active = false")
    assert _days(chain) == {(1, date(2026, 5, 1)): 1}
    _agrees(chain)


def test_clean_up_leaves_the_numbers_as_they_were(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.slots(connection, 1, "2026-01-12", 4)
        world.slots(connection, 1, "2099-01-12", 2)
        world.appointment(connection, "2026-01-12 08:00Z", status="expired", channel="online")
        world.appointment(connection, "2026-01-12 08:00Z", status="booked", channel="online", verified=True)
        connection.execute(
            sa.text("""
                INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, state, created_at, expires_at,
                                  last_activity_at, ended_at)
                SELECT 1, id, sha256(CAST(CAST(id AS text) AS bytea)), '\\x00', 'expired', '2026-01-02 08:07Z',
                       '2026-01-02 08:17Z', '2026-01-02 08:07Z', '2026-01-02 08:20Z' FROM slot""")
        )
    refresh(chain, AS_OF)
    before = _published(chain)
    assert (1, date(2026, 1, 2), 6, 2, 1, 1) in before["funnel"]
    _execute(chain, "DELETE FROM hold")
    _execute(chain, "DELETE FROM slot WHERE local_date < '2026-02-01'")
    _execute(chain, "DELETE FROM appointment WHERE status = 'expired'")
    assert refresh(chain, AS_OF).counts.changed == 0
    assert _published(chain) == before
    _agrees(chain)
    _execute(chain, "DELETE FROM slot WHERE local_date > '2099-01-01'")  # never happened: no longer offered
    assert refresh(chain, AS_OF).counts.retired == 1


def test_a_hold_counts_on_the_day_of_its_creation_however_it_ends(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.slots(connection, 1, "2026-01-12", 1)
        connection.execute(
            sa.text("""
                INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, created_at, expires_at,
                                  last_activity_at)
                SELECT 1, id, sha256('t'), sha256('v'), '2026-01-02 08:00Z', '2026-01-02 08:10Z', '2026-01-02 08:00Z'
                FROM slot""")
        )
    refresh(chain, AS_OF)
    _execute(chain, "UPDATE hold SET state = 'expired', ended_at = '2026-01-02 08:10Z'")
    with chain.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM statistic_change")) == 0
    _execute(chain, "UPDATE hold SET created_at = '2026-01-03 08:00Z', expires_at = '2026-01-03 08:10Z'")
    refresh(chain, AS_OF)
    assert [row[1] for row in _published(chain)["funnel"]] == [date(2026, 1, 3)]
    _agrees(chain)


def test_occupancy_follows_slots_and_their_agenda(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.slots(connection, 1, "2026-04-07", 4)
        world.appointment(connection, "2026-04-07 08:00Z")
        world.appointment(connection, "2026-04-07 08:30Z", status="cancelled")
    refresh(chain, AS_OF)
    query = sa.text("SELECT booked_minutes, offered_minutes FROM statistic_occupancy WHERE agenda_id = 1")
    with chain.connect() as connection:
        assert tuple(connection.execute(query).one()) == (30, 120)
    _execute(chain, "UPDATE slot SET state = 'retired' WHERE starts_at > '2026-04-07 09:00Z'")
    refresh(chain, AS_OF)
    with chain.connect() as connection:
        assert tuple(connection.execute(query).one()) == (30, 90)
    _agrees(chain)


def test_messages_are_counted_through_their_states_and_their_clean_up(chain: sa.Engine) -> None:
    _execute(
        chain,
        """
        INSERT INTO message (id, clinic_id, kind, recipient_type, recipient_id, send_after, expires_at,
                             template_revision, channel, created_at, changed_at)
        SELECT n, 1, 'reminder', 'patient', 1, now(), now(), 1, 'sms', '2026-03-29 21:30Z', now()
        FROM generate_series(1, 3) n;
        INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                    message_id, withheld, planned_at)
        SELECT 'appointment', n, 1, 'reminder', 'patient', 1, 1, CASE WHEN n < 4 THEN n END,
               CASE WHEN n = 4 THEN 'no_address' END, '2026-03-29 21:30Z'
        FROM generate_series(1, 4) n""",
    )
    refresh(chain, AS_OF)
    _execute(chain, "UPDATE message SET state = 'sent', sent_at = now() WHERE id = 1")
    _execute(chain, "UPDATE message SET state = 'failed', reason = 'no_such_number' WHERE id = 2")
    refresh(chain, AS_OF)
    counted = {(1, date(2026, 3, 29), "reminder", "sms", state, 1) for state in ("sent", "failed", "planned")}
    counted.add((1, date(2026, 3, 29), "reminder", None, "withheld", 1))
    assert set(_published(chain)["messages"]) == counted
    _agrees(chain)
    _execute(chain, "DELETE FROM message_ledger")
    _execute(chain, "DELETE FROM message")
    assert refresh(chain, AS_OF).counts.changed == 0
    assert set(_published(chain)["messages"]) == counted
    _agrees(chain)


REPORT = """
    INSERT INTO report (clinic_id, external_id, patient_id, appointment_id, title, published_at, updated_at)
    VALUES (1, :name, 1, :visit, 'Referto', CAST(CAST(:at AS text) AS timestamptz), now())"""


def test_reports_are_timed_from_the_end_of_their_visit(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        visit = world.appointment(connection, "2026-03-27 08:00Z", status="completed")
    _execute(chain, REPORT, name="R1", visit=visit, at="2026-03-28 23:30Z")  # after midnight in Rome; 39 h later
    _execute(chain, REPORT, name="R2", visit=None, at="2026-03-29 09:00Z")
    refresh(chain, AS_OF)
    row = (1, date(2026, 3, 29), 2, 0, 1, 39 * 60, 0, 1)
    assert _published(chain)["reports"] == [row]
    _execute(chain, "UPDATE appointment SET ends_at = '2026-03-28 08:30Z', starts_at = '2026-03-28 08:00Z'")
    _execute(chain, "UPDATE report SET withdrawn_at = now() WHERE external_id = 'R2'")
    refresh(chain, AS_OF)
    assert _published(chain)["reports"] == [(*row[:3], 1, 1, 15 * 60, 1, 1)]
    _agrees(chain)


def test_a_visit_moved_while_its_report_arrives_is_not_lost(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        visit = world.appointment(connection, "2026-03-27 08:00Z", status="completed")
    refresh(chain, AS_OF)
    moved, arrived = chain.connect(), threading.Event()

    def arrive() -> None:
        _execute(chain, REPORT, name="R1", visit=visit, at="2026-03-27 20:30Z")
        arrived.set()

    with moved:
        moved.execute(sa.text("UPDATE appointment SET ends_at = ends_at + interval '2 hours'"))
        arriving = threading.Thread(target=arrive)
        arriving.start()
        assert not arrived.wait(0.5)  # it waits for the one that moves the visit
        refresh(chain, AS_OF)
        moved.commit()
    arriving.join()
    refresh(chain, AS_OF)
    assert _published(chain)["reports"] == [(1, date(2026, 3, 27), 1, 0, 1, 10 * 60, 1, 1)]
    _agrees(chain)


def test_money_is_exact(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        for status in ("booked", "completed", "cancelled"):
            world.appointment(connection, "2026-04-07 08:00Z", status=status, price="33.60", agreement=1)
        world.appointment(connection, "2026-04-07 08:00Z", price=None, agreement=1)
    refresh(chain, AS_OF)
    with chain.connect() as connection:
        row = connection.execute(sa.text("SELECT booked, accepted, unpriced FROM statistic_revenue")).one()
    assert [str(value) for value in row] == ["67.20", "33.60", "1"]


def test_a_clinic_alone_and_a_clinic_without_data(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-04-07 08:00Z")
        world.appointment(connection, "2026-04-07 08:00Z", clinic=2)
    refresh(chain, AS_OF, "LIS1")
    assert set(_days(chain)) == {(2, date(2026, 4, 7))}
    assert refresh(chain, AS_OF, "VUO1").outcome is Outcome.NOTHING_TO_DO
    assert refresh(chain, AS_OF, "VUO1", full=True).outcome is Outcome.NOTHING_TO_DO
    refresh(chain, AS_OF, "BO01", full=True)
    assert len(_days(chain)) == 2
    with pytest.raises(PermanentError, match="XX99"):
        refresh(chain, AS_OF, "XX99")
    _agrees(chain)


def test_a_preview_keeps_nothing(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-04-07 08:00Z")
    assert refresh(chain, AS_OF, preview=True).counts.created == 1
    assert _days(chain) == {}
    assert refresh(chain, AS_OF).counts.created == 1


def test_drift_is_found_by_the_night_named_and_put_right(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-04-07 08:00Z")
        world.appointment(connection, "2026-04-08 08:00Z")
    refresh(chain, AS_OF)
    with chain.begin() as connection:
        assert comparison_due(connection, AS_OF)
        connection.execute(
            sa.text("UPDATE statistic_appointment SET appointments = 7, quoted = 1 WHERE day = '2026-04-07'")
        )
        world.appointment(connection, "2026-04-09 08:00Z")  # waits for a refresh: not drift
    comparison = compare(chain, AS_OF, whole=True)
    assert comparison.drifted == (("appointments", "BO01", date(2026, 4, 7)),)
    with chain.connect() as connection:
        assert not comparison_due(connection, AS_OF)
    refresh(chain, AS_OF)
    _agrees(chain)


def test_a_sample_finds_drift_where_days_are_few(chain: sa.Engine) -> None:
    with chain.begin() as connection:
        world.appointment(connection, "2026-04-07 08:00Z")
    refresh(chain, AS_OF)
    _execute(chain, "DELETE FROM statistic_appointment")
    found = [compare(chain, AS_OF.replace(minute=minute), whole=False) for minute in range(10)]
    assert any(comparison.drifted for comparison in found)
