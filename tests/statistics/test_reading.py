from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from polydesk_dagster.clinic.statistics import reading
from polydesk_dagster.clinic.statistics.reading import HIDDEN, SMALLEST, TOTAL, WITHHELD, Period, withheld
from polydesk_dagster.clinic.statistics.refresh import refresh
from polydesk_dagster.told import teller
from polydesk_dagster.values import Term
from tests.statistics import world

told = teller("it").value
AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)
MARCH = Period(date(2026, 3, 1), date(2026, 3, 31))


@pytest.fixture
def march(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        world.chain(connection)
        for day in range(1, 21):
            world.appointment(connection, f"2026-03-{day:02} 08:00Z", status="completed", lead=6)
        for day in range(1, 6):
            world.appointment(connection, f"2026-03-{day:02} 09:00Z", status="no_show", lead=60)
        for day in range(1, 4):
            world.appointment(connection, f"2026-03-{day:02} 08:00Z", clinic=2, price="0.10", agreement=None)
        world.appointment(connection, "2026-03-02 10:00Z", status="expired", channel="online")
        world.appointment(connection, "2026-03-02 10:00Z", channel="online", verified=True)
        world.slots(connection, 1, "2026-03-02", 10)
    refresh(engine, AS_OF)
    return engine


def test_ratios_keep_their_parts(march: sa.Engine) -> None:
    with march.connect() as connection:
        chain = reading.overview(connection, MARCH)
        lisbon = reading.overview(connection, Period(MARCH.first, MARCH.last, 2))
        empty = reading.overview(connection, Period(MARCH.first, MARCH.last, 3))
    assert told(chain.no_shows.told) == "5 su 25 (20 %)"
    assert chain.appointments == 30
    assert (chain.occupancy.part, chain.occupancy.whole) == (29 * 30, 300)
    assert (chain.within_7_days.part, chain.within_7_days.whole) == (20, 29)
    assert lisbon.revenue_booked == Decimal("0.30")
    assert (empty.appointments, told(empty.no_shows.told), empty.lead_days) == (0, "0 su 0", None)


def test_the_online_funnel_counts_by_the_day_it_began(march: sa.Engine) -> None:
    with march.connect() as connection:
        february = reading.overview(connection, Period(date(2026, 2, 1), date(2026, 2, 28)))
    assert (february.booked_online, february.verified, february.confirmed) == (2, 1, 1)


def test_small_clinical_counts_are_not_told(march: sa.Engine) -> None:
    with march.connect() as connection:
        table = reading.by_service(connection, MARCH)
        channels = reading.by_channel(connection, MARCH)
    told = {row[0]: row[1] for row in table.rows}
    assert told == {"Visita cardiologica": HIDDEN, "Visita": HIDDEN}  # 26 alone would tell that the other is 3
    assert all(cell == WITHHELD for row in table.rows for cell in row[2:])
    assert [row[:2] for row in channels.rows] == [
        (Term("booking_channel", "desk"), 28),
        (Term("booking_channel", "online"), 1),
    ]  # not clinical


def test_weeks_and_clinics_are_told_by_outcome_with_their_totals(march: sa.Engine) -> None:
    with march.connect() as connection:
        weeks, clinics = reading.by_week(connection, MARCH), reading.by_clinic(connection, MARCH)
        nothing = reading.by_week(connection, Period(date(2020, 1, 1), date(2020, 1, 31)))
    outcomes = tuple(f"statistic_{each}" for each in ("status_completed", "status_booked", "status_no_show",
                                                      "status_expired", "total"))  # fmt: skip
    total = (TOTAL, 20, 4, 5, 1, 30)
    assert (weeks.columns, clinics.columns) == (("statistic_week", *outcomes), ("clinic", *outcomes))
    assert (weeks.rows[0], weeks.rows[1]) == ((date(2026, 2, 23), 1, 1, 1, 0, 3), (date(2026, 3, 2), 7, 3, 4, 1, 15))
    assert (len(weeks.rows), weeks.rows[-1]) == (5, total)
    assert clinics.rows == (("BO01", 20, 1, 5, 1, 27), ("LIS1", 0, 3, 0, 0, 3), total)
    assert nothing.rows == ()


def test_a_day_without_data_is_a_zero_in_a_series(march: sa.Engine) -> None:
    with march.connect() as connection:
        days = reading.daily(connection, MARCH, {"tutti": "appointments"}, "statistic_appointment")
    assert len(days) == 31
    assert (days.loc["2026-03-01", "tutti"], days.loc["2026-03-31", "tutti"]) == (3, 0)


def test_freshness_says_what_waits(march: sa.Engine) -> None:
    with march.begin() as connection:
        world.appointment(connection, "2026-03-30 08:00Z")
    with march.connect() as connection:
        fresh = reading.freshness(connection)
    assert fresh["appointments"].refreshed_at == AS_OF
    assert fresh["appointments"].watermark is not None
    assert (fresh["appointments"].waiting, fresh["offer"].waiting) == (1, 0)


@given(st.lists(st.integers(0, 40), max_size=12))
def test_no_small_count_is_told_or_can_be_worked_out(counts: list[int]) -> None:
    hidden = withheld(counts)
    assert all(hide or not 0 < count < SMALLEST for count, hide in zip(counts, hidden, strict=True))
    concealed = [count for count, hide in zip(counts, hidden, strict=True) if hide]
    told = [count for count, hide in zip(counts, hidden, strict=True) if not hide and count]
    if concealed and told:
        assert len(concealed) > 1
        assert sum(concealed) >= SMALLEST
    if all(count == 0 or count >= SMALLEST for count in counts):
        assert not concealed
