"""Generation that looks only at the new days of settled agendas comes to what a look at all days comes to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, time, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster import changes
from polydesk_dagster.clinic.calendar import slots, touched
from polydesk_dagster.outcome import Counts, Outcome, Report
from tests import world
from tests.world import AS_OF


def _looked_at(engine: sa.Engine) -> set[int]:
    """The agendas that are not settled."""
    with engine.connect() as connection:
        return set(
            connection.scalars(
                sa.text("""SELECT a.id FROM agenda a LEFT JOIN agenda_state g ON g.agenda_id = a.id
                           WHERE g.settled_at IS NULL""")
            )
        )


def _told(report: Report) -> tuple[object, ...]:
    """What a run came to, without the numbers of its plans."""
    reasons = {
        (reason.code, repr(sorted((k, v) for k, v in reason.values.items() if k != "plan")), reason.count)
        for reason in report.reasons
    }
    figures = {key: value for key, value in report.figures.items() if key != "what_to_do"}
    return report.outcome, report.counts, reasons, figures


def _night(engine: sa.Engine, as_of: datetime) -> Report:
    """A run, which is as a run over all days would have been, and leaves nothing for one to do."""
    wanted = slots.generate(engine, as_of, preview=True, whole=True)
    seen = slots.generate(engine, as_of, preview=True)
    assert _told(seen) == _told(wanted)
    done = slots.generate(engine, as_of)
    assert done.counts == wanted.counts
    left = slots.generate(engine, as_of, preview=True, whole=True)
    assert left.counts == replace(left.counts, created=0, updated=0, retired=0)
    again = slots.generate(engine, as_of)
    assert again.counts == left.counts
    return done


Deed = Callable[[sa.Connection, world.Practice, datetime, int], None]


def _free(connection: sa.Connection, as_of: datetime, number: int) -> int | None:
    found = connection.scalars(
        sa.text(
            "SELECT id FROM slot WHERE state = 'free' AND NOT manual AND starts_at > :as_of ORDER BY starts_at, id"
        ),
        {"as_of": as_of},
    ).all()
    return found[number % len(found)] if found else None


def _free_unit(connection: sa.Connection, slot: int | None) -> bool:
    return slot is not None and not connection.scalar(
        sa.text("SELECT EXISTS (SELECT FROM seat WHERE slot_id = :slot)"), {"slot": slot}
    )


def _book(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    slot = _free(connection, as_of, number)
    if slot is not None and _free_unit(connection, slot):
        patient = world.patient(connection)
        world.appointment(connection, slot, service_id=here.service, patient_id=patient)


def _hold(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    slot = _free(connection, as_of, number)
    if slot is not None and _free_unit(connection, slot):
        world.hold(connection, here.clinic, slot, created_at=as_of, last_activity_at=as_of,
                   expires_at=as_of + timedelta(minutes=10))  # fmt: skip


def _cancel(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    connection.execute(
        sa.text("""UPDATE appointment SET status = 'cancelled' WHERE id =
                   (SELECT id FROM appointment WHERE status = 'booked' ORDER BY id OFFSET :n LIMIT 1)"""),
        {"n": number % 3},
    )


def _by_hand(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    starts = (as_of + timedelta(days=number % 12)).replace(hour=18, minute=0, second=0, microsecond=0)
    connection.execute(
        sa.text("""INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity, manual)
                   SELECT :agenda, :starts, :ends, :day, 1, true WHERE :starts > :as_of ON CONFLICT DO NOTHING"""),
        {"agenda": here.agenda, "starts": starts, "ends": starts + timedelta(minutes=30),
         "day": starts.astimezone(world.ROME).date(), "as_of": as_of},
    )  # fmt: skip


def _closed(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    day = (as_of + timedelta(days=number % 12)).date()
    layer, where = (("national", {}), ("clinic", {"clinic_id": here.clinic}), ("agenda", {"agenda_id": here.agenda}))[
        number % 3
    ]
    world.closure(connection, day, day, layer=layer, **where)


def _closed_and_derived(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    day = (as_of + timedelta(days=number % 12)).date()
    world.closure(connection, day, day, layer="chain")
    rows = f"""SELECT 'chain' AS layer, NULL::text AS region, NULL::text AS municipality_code,
                      NULL::bigint AS clinic_id, NULL::bigint AS agenda_id, date '{day}' AS date_from,
                      date '{day}' AS date_to"""
    touched.derive_touched(connection, rows, as_of)


def _taken_back(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
    last = [plan for plan in changes.latest(connection, service="generate_slots") if plan.state == "applied"]
    if last:
        made = changes.undo(connection, last[0].id, as_of=as_of, actor="desk:anna")
        if made.plan_id is not None:
            changes.apply(connection, made.plan_id, as_of=as_of, actor="desk:anna", reason="non era da fare")


def _sql(statement: str) -> Deed:
    def deed(connection: sa.Connection, here: world.Practice, as_of: datetime, number: int) -> None:
        values = {"agenda": here.agenda, "specialist": here.specialist, "clinic": here.clinic, "n": number,
                  "today": as_of.date()}  # fmt: skip
        text = sa.text(statement)
        connection.execute(text, {name: values[name] for name in text._bindparams})

    return deed


DEEDS: tuple[Deed, ...] = (
    _book,
    _book,
    _hold,
    _cancel,
    _by_hand,
    _closed,
    _closed_and_derived,
    _taken_back,
    _sql("UPDATE closure SET lifted_at = now() WHERE id = (SELECT max(id) FROM closure WHERE lifted_at IS NULL)"),
    _sql("UPDATE agenda_rule SET ends_at = time '12:00' + :n % 3 * interval '20 minutes' WHERE agenda_id = :agenda"),
    _sql("UPDATE agenda_rule SET crosses_midnight = true, starts_at = '22:00', ends_at = '02:00'"
         " WHERE agenda_id = :agenda AND weekday = 1 + :n % 7"),
    _sql("UPDATE agenda_rule SET every_weeks = 1 + :n % 2 WHERE agenda_id = :agenda"),
    _sql("UPDATE agenda_rule SET valid_to = CAST(:today AS date) + :n % 40 WHERE agenda_id = :agenda"),
    _sql("DELETE FROM agenda_rule WHERE agenda_id = :agenda AND weekday = 1 + :n % 7"),
    _sql("INSERT INTO agenda_rule (agenda_id, weekday, starts_at, ends_at, valid_from)"
         " VALUES (:agenda, 1 + :n % 7, '12:30', '15:00', CAST(:today AS date) + :n % 20)"),
    _sql("UPDATE agenda SET capacity = 1 + :n % 2 WHERE id = :agenda"),
    _sql("UPDATE agenda SET horizon_days = 10 + :n % 6 WHERE id = :agenda"),
    _sql("UPDATE agenda SET active = NOT active WHERE id = :agenda"),
    _sql("UPDATE agenda SET valid_to = CAST(:today AS date) + :n % 20 WHERE id = :agenda"),
    _sql("UPDATE specialist SET ends_on = CAST(:today AS date) + :n % 20 WHERE id = :specialist"),
    _sql("UPDATE clinic SET horizon_days = 12 + :n % 4 WHERE id = :clinic"),
    _sql("UPDATE clinic SET time_zone = CASE :n % 2 WHEN 0 THEN 'Europe/Rome' ELSE 'Europe/London' END"
         " WHERE id = :clinic"),
    _sql("UPDATE slot SET state = 'retired' WHERE id = (SELECT min(id) FROM slot s WHERE agenda_id = :agenda"
         " AND starts_at > now() AND state = 'free' AND NOT EXISTS (SELECT FROM seat WHERE slot_id = s.id))"),
    _sql("DELETE FROM slot s WHERE agenda_id = :agenda AND local_date < CAST(:today AS date)"
         " AND NOT EXISTS (SELECT FROM seat WHERE slot_id = s.id)"
         " AND NOT EXISTS (SELECT FROM orphan WHERE slot_id = s.id)"
         " AND NOT EXISTS (SELECT FROM appointment WHERE slot_id = s.id)"
         " AND NOT EXISTS (SELECT FROM hold WHERE slot_id = s.id)"),
)  # fmt: skip

nights = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.tuples(st.sampled_from(range(len(DEEDS))), st.integers(0, 200), st.booleans()), max_size=2),
    ),
    min_size=2,
    max_size=4,
)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights=nights, first=st.dates(date(2026, 3, 9), date(2026, 3, 27)))
def test_whatever_happens_between_two_nights(
    engine: sa.Engine, nights: list[tuple[int, list[tuple[int, int, bool]]]], first: date
) -> None:
    with engine.begin() as connection:
        world.clear(connection, "clinic", "patient", "closure", "agenda_touched", "plan")
        here = world.practice(connection, horizon_days=12)
        night = world.agenda(connection, here.clinic, here.location, specialist_id=here.specialist, weekdays=())
        world.insert(connection, "agenda_rule", [
            {"agenda_id": night, "weekday": 6, "starts_at": time(21), "ends_at": time(3), "crosses_midnight": True,
             "slot_minutes": None, "valid_from": date(2026, 1, 5)},
            {"agenda_id": night, "weekday": 3, "starts_at": time(9), "ends_at": time(10, 40), "crosses_midnight": False,
             "slot_minutes": 20, "valid_from": date(2026, 1, 5)},
        ])  # fmt: skip
    as_of = datetime.combine(first, time(1), AS_OF.tzinfo)
    _night(engine, as_of)
    for days, deeds in nights:
        as_of += timedelta(days=days, hours=1 if days == 0 else 0)
        for which, number, other in deeds:
            # a slot by hand may overlap another, a plan may have moved: then nothing has happened
            with contextlib.suppress(sa.exc.IntegrityError), engine.begin() as connection:
                DEEDS[which](connection, replace(here, agenda=night) if other else here, as_of, number)
        _night(engine, as_of)


def test_the_second_night_looks_at_the_new_day_alone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.practice(connection, horizon_days=30)
    _night(engine, AS_OF)
    assert _looked_at(engine) == set()
    with engine.begin() as connection:
        # what a run that looked would mend, if it were not said to be settled
        connection.execute(sa.text("ALTER TABLE slot DISABLE TRIGGER slots_touched_update"))
        connection.execute(sa.text("UPDATE slot SET capacity = 9 WHERE local_date = '2026-03-23'"))
        connection.execute(sa.text("ALTER TABLE slot ENABLE TRIGGER slots_touched_update"))
    later = slots.generate(engine, AS_OF + timedelta(days=1))
    assert later.counts == Counts(created=8, unchanged=later.counts.unchanged)


def test_after_four_weeks_all_days_are_looked_at_again(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.practice(connection, horizon_days=90)
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE slot DISABLE TRIGGER slots_touched_update"))
        connection.execute(sa.text("UPDATE slot SET capacity = 9 WHERE local_date = '2026-05-04'"))
        connection.execute(sa.text("ALTER TABLE slot ENABLE TRIGGER slots_touched_update"))
    assert slots.generate(engine, AS_OF + timedelta(days=20)).counts.updated == 0
    assert slots.generate(engine, AS_OF + timedelta(days=28)).counts.updated == 8


def test_a_slot_that_is_written_while_a_run_works_is_seen_by_the_next(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        here = world.practice(connection, horizon_days=10)
    slots.generate(engine, AS_OF)
    with engine.connect() as writer:
        writer.execute(
            sa.text("UPDATE slot SET capacity = 5 WHERE agenda_id = :a AND local_date = '2026-03-16'"),
            {"a": here.agenda},
        )
        assert slots.generate(engine, AS_OF).counts.changed == 0, "not committed: nobody's business yet"
        writer.commit()
    assert slots.generate(engine, AS_OF).counts.updated == 8


def test_a_clinic_that_fails_leaves_the_others(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        broken = world.practice(connection, "AA01", horizon_days=7)
        for code in ("BB01", "CC01", "DD01", "EE01", "FF01"):
            world.practice(connection, code, horizon_days=7)
        connection.execute(
            sa.text(f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF EXISTS (SELECT FROM new_rows WHERE agenda_id = {broken.agenda}) THEN
                    RAISE EXCEPTION 'not this one'; END IF; RETURN NULL; END $$""")
        )
        connection.execute(
            sa.text("""CREATE TRIGGER refuse AFTER INSERT ON slot REFERENCING NEW TABLE AS new_rows
                       FOR EACH STATEMENT EXECUTE FUNCTION refuse()""")
        )
    report = slots.generate(engine, AS_OF)
    assert report.outcome is Outcome.PARTIAL
    assert {reason.clinic for reason in report.reasons if reason.code == "agenda_refused"} == {"AA01"}
    with engine.connect() as connection:
        assert (
            connection.scalar(
                sa.text("SELECT count(DISTINCT a.clinic_id) FROM slot s JOIN agenda a ON a.id = s.agenda_id")
            )
            == 5
        )
