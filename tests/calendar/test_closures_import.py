"""Default closures: a full set a year against ours, and the slots of exactly the days that it touches."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster import changes
from polydesk_dagster.central import Closure, ClosureSet
from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.errors import TransientError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.wire import sort_records
from tests import world

AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)


def item(id_: str, day: str, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "name": f"Festa {id_}", "date_from": day, "date_to": day, "scope": "national", **fields}


def central(sets: dict[int, list[dict[str, Any]]]) -> Any:
    def ask(year: int) -> ClosureSet | None:
        if year not in sets:
            return None
        records = sort_records(Closure, sets[year], "id", {"year": year})
        return ClosureSet(year, "v1", records.valid, records.rejected)

    return ask


OTHER = [item(f"o{n}", f"2027-0{n}-01") for n in range(1, 5)]
THIS = [item(f"t{n}", f"2026-0{n}-25") for n in range(1, 10)]


@pytest.fixture
def practice(engine: sa.Engine) -> world.Practice:
    with engine.begin() as connection:
        practice = world.practice(connection)
    slots.generate(engine, AS_OF)
    return practice


def free(engine: sa.Engine, day: str) -> int:
    with engine.connect() as connection:
        return connection.execute(
            sa.text("SELECT count(*) FROM slot WHERE local_date = :day AND state = 'free'"), {"day": day}
        ).scalar_one()


def run(engine: sa.Engine, items: list[dict[str, Any]], **more: Any) -> Report:
    return closures.import_closures(engine, central({2026: items, 2027: OTHER}), as_of=AS_OF, **more)


def test_a_closure_comes_goes_and_comes_back_with_its_slots(engine: sa.Engine, practice: world.Practice) -> None:
    day = "2026-03-25"
    before, other = free(engine, day), free(engine, "2026-03-24")
    assert before
    first = run(engine, THIS)
    assert (first.outcome, first.counts.created) == (Outcome.OK, 13)
    assert (free(engine, day), free(engine, "2026-03-24")) == (0, other)
    again = run(engine, THIS)
    assert (again.outcome, again.counts.changed) == (Outcome.NOTHING_TO_DO, 0)
    lifted = run(engine, [c for c in THIS if c["id"] != "t3"])
    assert (lifted.outcome, lifted.counts.retired) == (Outcome.OK, 1)
    assert free(engine, day) == before
    back = run(engine, THIS)
    assert (back.outcome, back.counts.updated, free(engine, day)) == (Outcome.OK, 1, 0)
    with engine.begin() as connection:
        undone = changes.undo(connection, changes.latest(connection)[1].id, as_of=AS_OF, actor="desk:anna")
    assert (undone.outcome, free(engine, day)) == (Outcome.OK, before)


def test_a_day_is_closed_by_as_many_statements_however_many_clinics_it_closes(
    engine: sa.Engine, practice: world.Practice
) -> None:
    run(engine, THIS)
    asked: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    run(engine, [*THIS, item("t20", "2026-03-18")])
    one, asked[:] = len(asked), []
    with engine.begin() as connection:
        for code in ("RE01", "MO01", "PR01"):
            world.practice(connection, code)
    slots.generate(engine, AS_OF)
    assert free(engine, "2026-03-18") == 0 < free(engine, "2026-03-19")
    asked[:] = []
    run(engine, [*THIS, item("t20", "2026-03-18"), item("t21", "2026-03-19")])
    assert (len(asked), free(engine, "2026-03-19")) == (one, 0)


def test_half_days_and_moved_days(engine: sa.Engine, practice: world.Practice) -> None:
    day = "2026-03-25"
    before = free(engine, day)
    run(engine, [*THIS[:2], item("t3", day, part="morning"), *THIS[3:]])
    morning = free(engine, day)
    run(engine, [*THIS[:2], item("t3", day, part="afternoon"), *THIS[3:]])
    assert morning + free(engine, day) == before
    run(engine, [*THIS[:2], item("t3", "2026-03-26"), *THIS[3:]])
    assert (free(engine, day), free(engine, "2026-03-26")) == (before, 0)


@pytest.mark.parametrize("few", [[], THIS[:6]])
def test_an_empty_or_much_smaller_set_is_refused_and_the_last_good_one_kept(
    engine: sa.Engine, practice: world.Practice, few: list[dict[str, Any]]
) -> None:
    run(engine, THIS)
    report = run(engine, few)
    assert report.outcome is Outcome.REFUSED or report.outcome is Outcome.PARTIAL
    assert any(reason.code == "guard" for reason in report.reasons)
    assert free(engine, "2026-03-25") == 0


def test_bad_items_are_named_and_what_we_hold_of_them_stays(engine: sa.Engine, practice: world.Practice) -> None:
    run(engine, THIS)
    bad = [
        *THIS[:2],
        item("t3", "2026-03-25", date_to="2026-03-24"),
        *THIS[3:],
        item("x1", "2026-05-05", scope="region", region="Atlantide"),
    ]
    report = run(engine, bad)
    assert report.outcome is Outcome.PARTIAL
    assert (report.counts.waiting, report.counts.retired) == (2, 0)
    assert free(engine, "2026-03-25") == 0
    with engine.connect() as connection:
        line = connection.execute(sa.text("SELECT record_key, code FROM quarantine")).one()
    assert tuple(line) == ("t3", "invalid")


def test_one_year_that_fails_does_not_stop_the_other(engine: sa.Engine, practice: world.Practice) -> None:
    good = central({2026: THIS})

    def ask(year: int) -> ClosureSet | None:
        if year == 2027:
            raise TransientError("Server centrale: nessuna risposta")
        return good(year)

    report = closures.import_closures(engine, ask, as_of=AS_OF)
    assert (report.outcome, report.counts.created) == (Outcome.PARTIAL, 9)


@pytest.mark.parametrize("sets", [{2026: THIS}, {2026: THIS, 2027: []}], ids=["not found", "empty"])
def test_next_year_may_be_published_late(
    engine: sa.Engine, practice: world.Practice, sets: dict[int, list[dict[str, Any]]]
) -> None:
    report = closures.import_closures(engine, central(sets), as_of=AS_OF)
    assert (report.outcome, [reason.code for reason in report.reasons]) == (Outcome.OK, ["not_yet_published"])
    assert closures.import_closures(engine, central(sets), as_of=AS_OF).outcome is Outcome.NOTHING_TO_DO
    with engine.connect() as connection:
        september, october = datetime(2026, 9, 30, 12, tzinfo=UTC), datetime(2026, 9, 30, 22, tzinfo=UTC)
        assert calendar_checks.next_year_unpublished(connection, september).count == 0
        assert calendar_checks.next_year_unpublished(connection, october) == calendar_checks.Finding(1, "2027")
    run(engine, THIS)
    with engine.connect() as connection:
        assert calendar_checks.next_year_unpublished(connection, october).count == 0
    gone = closures.import_closures(engine, central(sets), as_of=AS_OF)
    assert gone.outcome in {Outcome.PARTIAL, Outcome.REFUSED}, "what was published does not go without a word"


def test_this_year_must_be_there(engine: sa.Engine, practice: world.Practice) -> None:
    report = closures.import_closures(engine, central({2027: OTHER}), as_of=AS_OF)
    assert (report.outcome, report.counts.created) == (Outcome.PARTIAL, 4)


def test_contradicting_ids_stop_the_set_and_repeated_ones_do_not(engine: sa.Engine, practice: world.Practice) -> None:
    assert run(engine, [*THIS, THIS[0]]).outcome is Outcome.OK
    report = run(engine, [*THIS, item("t1", "2026-04-02")])
    assert any("duplicate_keys" in str(reason.values) for reason in report.reasons)


def test_a_preview_writes_nothing_but_its_plan(engine: sa.Engine, practice: world.Practice) -> None:
    report = run(engine, THIS, preview=True)
    assert (report.outcome, report.counts.created) == (Outcome.OK, 13)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM closure")).scalar_one() == 0


def test_a_closed_day_takes_the_slots_that_reach_into_it_over_midnight(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, weekdays=(), slot_minutes=45)
        world.rules(connection, practice.agenda, (2, 3), "21:15", "02:00", crosses_midnight=True)
    slots.generate(engine, AS_OF)
    assert free(engine, "2026-03-24") == 4
    run(engine, THIS)
    assert (free(engine, "2026-03-24"), free(engine, "2026-03-25")) == (3, 0)
    run(engine, [c for c in THIS if c["id"] != "t3"])
    assert (free(engine, "2026-03-24"), free(engine, "2026-03-25")) == (4, 6)


parts = st.fixed_dictionaries(
    {
        "day": st.dates(date(2026, 3, 24), date(2026, 4, 3)),
        "length": st.integers(0, 2),
        "part": st.sampled_from(["day", "morning", "afternoon"]),
    }
)
"""Around the night of 29 March, when an hour is missing."""

turns = st.fixed_dictionaries(
    {"starts": st.integers(0, 95), "length": st.integers(2, 95), "minutes": st.sampled_from([15, 40, 45, 90, 240])}
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turn=turns, first=st.lists(parts, max_size=3), then=st.lists(parts, max_size=3))
def test_after_an_import_no_free_slot_touches_closed_hours(
    engine: sa.Engine, turn: dict[str, int], first: list[dict[str, Any]], then: list[dict[str, Any]]
) -> None:
    """Whatever the turn, whatever was closed before; and what is open again is offered again."""
    starts, ends = (time(n // 4, n % 4 * 15) for n in (turn["starts"], (turn["starts"] + turn["length"]) % 96))
    with engine.begin() as connection:
        world.clear(connection, "clinic", "patient", "closure", "plan")
        practice = world.practice(connection, weekdays=(), slot_minutes=turn["minutes"], horizon_days=30)
        world.rules(
            connection,
            practice.agenda,
            range(1, 8),
            starts.isoformat("minutes"),
            ends.isoformat("minutes"),
            crosses_midnight=ends <= starts,
        )
    slots.generate(engine, AS_OF)
    for number, chosen in enumerate((first, then)):
        items = [
            item(
                f"c{number}{n}",
                closed["day"].isoformat(),
                date_to=(closed["day"] + timedelta(days=closed["length"])).isoformat(),
                part=closed["part"],
            )
            for n, closed in enumerate(chosen)
        ]
        run(engine, [item("always", "2026-12-25"), *items])
        with engine.connect() as connection:
            assert calendar_checks.free_on_closure(connection, AS_OF).count == 0
        assert slots.generate(engine, AS_OF).counts.changed == 0, "the import has left nothing to the night"
