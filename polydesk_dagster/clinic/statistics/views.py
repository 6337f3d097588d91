"""Each statistic as it is shown: its plot, its figures and its tables for a period."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from polydesk_dagster.clinic.statistics import answered, reading
from polydesk_dagster.clinic.statistics.drawing import Drawing
from polydesk_dagster.clinic.statistics.reading import MESSAGE_STATES, STATUSES, Overview, Period
from polydesk_dagster.outcome import Table
from polydesk_dagster.values import Money, Value

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class View:
    """One statistic; the catalogues know its name (``statistic.KEY.name``) and what it says (``.summary``)."""

    key: str
    topics: tuple[str, ...]
    picture: Callable[[sa.Connection, Period], Drawing]
    figures: Callable[[Overview], Mapping[str, Value]]
    tables: tuple[Callable[[sa.Connection, Period], Table], ...] = ()


def _appointments(connection: sa.Connection, period: Period) -> Drawing:
    columns = {key: f"appointments * CAST(status = '{key}' AS integer)" for key in STATUSES}
    days = reading.daily(connection, period, columns, "statistic_appointment")
    return Drawing("appointments", days.add_prefix("status_"), "appointments", True)


def _occupancy(connection: sa.Connection, period: Period) -> Drawing:
    columns = {"booked": "booked_minutes", "offered": "offered_minutes"}
    days = reading.daily(connection, period, columns, "statistic_occupancy")
    return Drawing("occupancy", _shares(days, {"occupancy": ("booked", "offered")}, 100), "percent", False)


def _attendance(connection: sa.Connection, period: Period) -> Drawing:
    columns = {"no_shows": "no_shows", "due": "due", "cancellations": "cancellations", "made": "made"}
    days = reading.daily(connection, period, columns, "statistic_attendance")
    pairs = {"no_shows": ("no_shows", "due"), "cancellations": ("cancellations", "made")}
    return Drawing("attendance", _shares(days, pairs, 100), "percent", False)


def _lead_time(connection: sa.Connection, period: Period) -> Drawing:
    columns = {"known": "appointments", "minutes": "lead_minutes"}
    days = reading.daily(connection, period, columns, "statistic_lead_time")
    return Drawing("lead_time", _shares(days, {"lead_time": ("minutes", "known")}, 1 / 1440), "days", False)


def _revenue(connection: sa.Connection, period: Period) -> Drawing:
    columns = {"accepted_value": "accepted", "open_value": "booked - accepted"}
    days = reading.daily(connection, period, columns, "statistic_revenue")
    return Drawing("revenue", days, "euro", True)


def _funnel(connection: sa.Connection, period: Period) -> Drawing:
    columns = {f"funnel_{key}": key for key in ("held", "booked", "verified", "confirmed")}
    days = reading.daily(connection, period, columns, "statistic_funnel")
    return Drawing("online_funnel", days, "requests", False)


def _messages(connection: sa.Connection, period: Period) -> Drawing:
    columns = {f"message_{key}": f"messages * CAST(state = '{key}' AS integer)" for key in MESSAGE_STATES}
    days = reading.daily(connection, period, columns, "statistic_message")
    return Drawing("messages", days, "messages", True)


def _reports(connection: sa.Connection, period: Period) -> Drawing:
    days = reading.daily(connection, period, {"timed": "timed", "minutes": "minutes"}, "statistic_report")
    return Drawing("report_turnaround", _shares(days, {"turnaround": ("minutes", "timed")}, 1 / 60), "hours", False)


def _shares(days: DataFrame, pairs: Mapping[str, tuple[str, str]], scale: float) -> DataFrame:
    """For each series ``scale`` × part ÷ whole, day by day; a day without a whole has none."""
    import pandas as pd

    return pd.DataFrame(
        {key: scale * days[part] / days[whole].where(days[whole] != 0) for key, (part, whole) in pairs.items()}
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 1)


VIEWS: Mapping[str, View] = {
    view.key: view
    for view in (
        View(
            "appointments",
            ("appointments",),
            _appointments,
            lambda o: {
                "statistic_appointments": o.appointments,
                **{f"statistic_status_{status}": n for status, n in o.by_status.items()},
            },
            (reading.by_week, reading.by_clinic, reading.by_channel, reading.by_service, reading.by_specialist),
        ),
        View(
            "occupancy",
            ("appointments", "offer"),
            _occupancy,
            lambda o: {"statistic_occupancy": o.occupancy.told},
            (reading.by_agenda,),
        ),
        View(
            "attendance",
            ("appointments",),
            _attendance,
            lambda o: {"statistic_no_shows": o.no_shows.told, "statistic_cancellations": o.cancellations.told},
            (answered.by_plan, answered.by_answer),
        ),
        View(
            "lead_time",
            ("appointments",),
            _lead_time,
            lambda o: {
                "statistic_lead_days": _rounded(o.lead_days),
                "statistic_within_7_days": o.within_7_days.told,
                "statistic_within_30_days": o.within_30_days.told,
            },
        ),
        View(
            "revenue",
            ("appointments",),
            _revenue,
            lambda o: {
                "statistic_booked_value": Money(o.revenue_booked),
                "statistic_accepted_value": Money(o.revenue_accepted),
                "statistic_unpriced": o.unpriced,
            },
            (reading.by_agreement,),
        ),
        View(
            "online_funnel",
            ("funnel",),
            _funnel,
            lambda o: {
                "statistic_held": o.held,
                "statistic_booked": o.booked_online,
                "statistic_verified": o.verified,
                "statistic_confirmed": o.confirmed,
            },
        ),
        View(
            "messages",
            ("messages",),
            _messages,
            lambda o: {f"statistic_message_{state}": n for state, n in o.messages.items()},
            (reading.by_message_kind,),
        ),
        View(
            "report_turnaround",
            ("reports",),
            _reports,
            lambda o: {
                "statistic_reports": o.reports,
                "statistic_reports_withdrawn": o.reports_withdrawn,
                "statistic_turnaround": _rounded(o.turnaround_hours),
                "statistic_reports_in_1_day": o.reports_within_1_day.told,
                "statistic_reports_in_3_days": o.reports_within_3_days.told,
            },
        ),
    )
}
