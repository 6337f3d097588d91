"""What the charts and the manager's report say of a period: figures with their numerators and denominators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import sqlalchemy as sa

from polydesk_dagster.catalog import ROME
from polydesk_dagster.outcome import Table
from polydesk_dagster.values import Money, Reason, Share, Term, Value

if TYPE_CHECKING:
    from pandas import DataFrame

SMALLEST = 5
"""A count of a clinical breakdown below this is not told, nor one from which it could be worked out."""

HIDDEN = f"<{SMALLEST}"
WITHHELD = Term("statistic", "withheld")
TOTAL = Term("statistic", "total")

STATUSES = ("completed", "accepted", "booked", "no_show", "cancelled", "unverified", "expired")
MESSAGE_STATES = ("sent", "planned", "claimed", "retry", "withheld", "failed", "unknown")


@dataclass(frozen=True, slots=True)
class Period:
    """Local days from ``first`` to ``last``, both inclusive, of one clinic or of all."""

    first: date
    last: date
    clinic_id: int | None = None

    @property
    def values(self) -> dict[str, object]:
        return {"first": self.first, "last": self.last, "clinic": self.clinic_id}

    @classmethod
    def around(cls, as_of: datetime, clinic_id: int | None) -> Period:
        """What a run shows: the last month and the next two weeks."""
        today = as_of.astimezone(ROME).date()
        return cls(today - timedelta(days=30), today + timedelta(days=14), clinic_id)


_WITHIN = "day BETWEEN :first AND :last AND (CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic)"


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current a topic is."""

    refreshed_at: datetime | None
    watermark: datetime | None
    """When the newest change that is counted was made."""
    waiting: int
    """Cells that changed since."""
    rows: int


def freshness(connection: sa.Connection) -> dict[str, Freshness]:
    """By topic; a topic never refreshed is absent unless changes wait for it."""
    rows = connection.execute(
        sa.text("""
            SELECT topic, p.refreshed_at, p.watermark, coalesce(w.cells, 0) AS waiting, coalesce(p.stored, 0) AS rows
            FROM statistic_publication p
            FULL JOIN (SELECT topic, count(DISTINCT (clinic_id, day)) AS cells FROM statistic_change GROUP BY topic) w
            USING (topic)""")
    )
    return {row.topic: Freshness(row.refreshed_at, row.watermark, row.waiting, row.rows) for row in rows}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A share that never goes without its parts."""

    part: int
    whole: int

    @property
    def told(self) -> Reason:
        """«5 su 25 (20 %)»."""
        parts: dict[str, Value] = {"part": self.part, "whole": self.whole}
        if not self.whole:
            return Reason("part_of_none", parts)
        return Reason("part_of_whole", {**parts, "share": Share(self.part / self.whole)})


@dataclass(frozen=True, slots=True)
class Overview:
    """The figures of a period; money in EUR, lead times in days."""

    by_status: Mapping[str, int]
    no_shows: Ratio
    cancellations: Ratio
    occupancy: Ratio
    """Minutes."""
    lead_days: float | None
    within_7_days: Ratio
    within_30_days: Ratio
    revenue_booked: Decimal
    revenue_accepted: Decimal
    unpriced: int
    held: int
    booked_online: int
    verified: int
    confirmed: int
    messages: Mapping[str, int]
    """By state."""
    reports: int
    reports_withdrawn: int
    turnaround_hours: float | None
    """From the end of the visit to the publication of its report."""
    reports_within_1_day: Ratio
    reports_within_3_days: Ratio

    @property
    def appointments(self) -> int:
        return sum(self.by_status.values())


def overview(connection: sa.Connection, period: Period) -> Overview:
    """Everything about a period in one look."""

    def one(columns: str, table: str) -> sa.Row[tuple[object, ...]]:
        return connection.execute(sa.text(f"SELECT {columns} FROM {table} WHERE {_WITHIN}"), period.values).one()

    statuses = connection.execute(
        sa.text(f"""
            SELECT status, CAST(sum(appointments) AS bigint) AS n FROM statistic_appointment
            WHERE {_WITHIN} GROUP BY status"""),
        period.values,
    )
    n = {row.status: int(row.n) for row in statuses}
    lead = one(
        "sum(appointments) AS known, sum(lead_minutes) AS minutes, sum(within_7_days) AS w7,"
        " sum(within_30_days) AS w30",
        "statistic_lead_time",
    )
    money = one("sum(booked) AS booked, sum(accepted) AS accepted, sum(unpriced) AS unpriced", "statistic_revenue")
    time = one("sum(booked_minutes) AS booked, sum(offered_minutes) AS offered", "statistic_occupancy")
    funnel = one(
        "sum(held) AS held, sum(booked) AS booked, sum(verified) AS verified, sum(confirmed) AS confirmed",
        "statistic_funnel",
    )
    messages = connection.execute(
        sa.text(f"""
            SELECT state, CAST(sum(messages) AS bigint) AS n FROM statistic_message
            WHERE {_WITHIN} GROUP BY state"""),
        period.values,
    )
    told = {row.state: int(row.n) for row in messages}
    reports = one(
        "sum(reports) AS n, sum(withdrawn) AS withdrawn, sum(timed) AS timed, sum(minutes) AS minutes,"
        " sum(within_1_day) AS w1, sum(within_3_days) AS w3",
        "statistic_report",
    )
    timed = int(reports.timed or 0)
    known = int(lead.known or 0)
    no_shows, cancelled = n.get("no_show", 0), n.get("cancelled", 0)
    return Overview(
        by_status={status: n[status] for status in STATUSES if status in n},
        no_shows=Ratio(no_shows, no_shows + n.get("accepted", 0) + n.get("completed", 0)),
        cancellations=Ratio(cancelled, sum(n.values()) - n.get("unverified", 0) - n.get("expired", 0)),
        occupancy=Ratio(int(time.booked or 0), int(time.offered or 0)),
        lead_days=float(lead.minutes) / known / 1440 if known else None,
        within_7_days=Ratio(int(lead.w7 or 0), known),
        within_30_days=Ratio(int(lead.w30 or 0), known),
        revenue_booked=Decimal(money.booked or 0),
        revenue_accepted=Decimal(money.accepted or 0),
        unpriced=int(money.unpriced or 0),
        held=int(funnel.held or 0),
        booked_online=int(funnel.booked or 0),
        verified=int(funnel.verified or 0),
        confirmed=int(funnel.confirmed or 0),
        messages={state: told[state] for state in MESSAGE_STATES if state in told},
        reports=int(reports.n or 0),
        reports_withdrawn=int(reports.withdrawn or 0),
        turnaround_hours=float(reports.minutes) / timed / 60 if timed else None,
        reports_within_1_day=Ratio(int(reports.w1 or 0), timed),
        reports_within_3_days=Ratio(int(reports.w3 or 0), timed),
    )


def withheld(counts: Sequence[int]) -> list[bool]:
    """Which of the counts of one breakdown must not be told.

    Those from 1 to 4; and if these alone could be worked out from the total, the smallest of the others as well.
    """
    hidden = [0 < count < SMALLEST for count in counts]
    rest = sorted((count, at) for at, count in enumerate(counts) if count >= SMALLEST)
    while any(hidden) and (sum(hidden) == 1 or sum(c for c, h in zip(counts, hidden, strict=True) if h) < SMALLEST):
        if not rest:
            break
        hidden[rest.pop(0)[1]] = True
    return hidden


def _clinical(key: str, dimension: str, rows: Sequence[Sequence[Value]]) -> Table:
    """A breakdown whose second column and every further whole number are counts of patients' appointments."""
    columns = (dimension, *_BREAKDOWN)
    told = [list(row) for row in rows]
    numbers = [at for at in range(1, len(columns)) if all(isinstance(row[at], int) for row in rows)]
    masks = {at: withheld([int(str(row[at])) for row in rows]) for at in numbers}
    for n, row in enumerate(told):
        for at in range(1, len(columns)):
            if masks[1][n]:
                row[at] = HIDDEN if at == 1 else WITHHELD
            elif at in masks and masks[at][n]:
                row[at] = WITHHELD
    return Table(key, columns, tuple(tuple(row) for row in told), len(told))


_BREAKDOWN = tuple(f"statistic_{key}" for key in ("appointments", "due", "no_shows", "cancelled", "lead_days"))

_BREAKDOWN_SQL = f"""
    SELECT {{dimension}} AS dimension, CAST(sum(appointments) AS bigint) AS appointments,
           coalesce(CAST(sum(appointments) FILTER (WHERE status IN ('no_show', 'accepted', 'completed')) AS bigint), 0)
               AS due,
           coalesce(CAST(sum(appointments) FILTER (WHERE status = 'no_show') AS bigint), 0) AS no_shows,
           coalesce(CAST(sum(appointments) FILTER (WHERE status = 'cancelled') AS bigint), 0) AS cancelled,
           round(sum(lead_minutes) / 1440.0 / nullif(sum(lead_known), 0), 1) AS lead
    FROM statistic_appointment WHERE {_WITHIN} AND status NOT IN ('unverified', 'expired')
    GROUP BY {{dimension}}
"""


def by_service(connection: sa.Connection, period: Period) -> Table:
    """Appointments by service, small counts withheld. A deleted service keeps its name."""
    rows = connection.execute(
        sa.text(f"""
            SELECT b.dimension, s.name, s.deleted_at IS NOT NULL AS deleted,
                   b.appointments, b.due, b.no_shows, b.cancelled, b.lead
            FROM ({_BREAKDOWN_SQL.format(dimension="service_id")}) b LEFT JOIN service s ON s.id = b.dimension
            ORDER BY b.appointments DESC, s.name, b.dimension"""),
        period.values,
    ).all()

    def name(row: sa.Row[tuple[object, ...]]) -> Value:
        if row.name is None:
            return Reason("statistic_service_gone", {"number": row.dimension})
        return Reason("statistic_service_deleted", {"name": row.name}) if row.deleted else str(row.name)

    return _clinical("statistic_by_service", "statistic_service", [(name(row), *row[3:]) for row in rows])


def by_specialist(connection: sa.Connection, period: Period) -> Table:
    """Appointments by specialist, small counts withheld: whom one sees can tell what for."""
    rows = connection.execute(
        sa.text(f"""
            SELECT CASE WHEN s.id IS NOT NULL THEN concat_ws(' ', s.title, s.last_name, s.first_name) END AS name,
                   b.appointments, b.due, b.no_shows, b.cancelled, b.lead
            FROM ({_BREAKDOWN_SQL.format(dimension="specialist_id")}) b LEFT JOIN specialist s ON s.id = b.dimension
            ORDER BY b.appointments DESC, s.sort_name, b.dimension"""),
        period.values,
    ).all()
    shown = [(row.name or Term("statistic", "no_specialist"), *row[1:]) for row in rows]
    return _clinical("statistic_by_specialist", "statistic_specialist", shown)


def by_channel(connection: sa.Connection, period: Period) -> Table:
    rows = connection.execute(
        sa.text(f"{_BREAKDOWN_SQL.format(dimension='channel')} ORDER BY appointments DESC, channel"), period.values
    ).all()
    shown = tuple((Term("booking_channel", row.dimension), *row[1:]) for row in rows)
    return Table("statistic_by_channel", ("statistic_channel", *_BREAKDOWN), shown, len(shown))


def by_agreement(connection: sa.Connection, period: Period) -> Table:
    """Revenue by agreement; what carries no price is counted beside it."""
    rows = connection.execute(
        sa.text(f"""
            SELECT a.name, CAST(coalesce(sum(r.booked_appointments), 0) AS bigint) AS booked,
                   sum(r.booked) AS booked_value, CAST(coalesce(sum(r.accepted_appointments), 0) AS bigint) AS accepted,
                   sum(r.accepted) AS accepted_value, CAST(coalesce(sum(r.unpriced), 0) AS bigint) AS unpriced
            FROM statistic_revenue r LEFT JOIN agreement a ON a.id = r.agreement_id
            WHERE r.{_WITHIN.replace("clinic_id =", "r.clinic_id =")}
            GROUP BY r.agreement_id, a.name ORDER BY sum(r.booked) DESC, 1"""),
        period.values,
    ).all()
    keys = ("agreement", "booked", "booked_value", "accepted", "accepted_value", "unpriced")
    shown = tuple(
        (
            row.name or Term("statistic", "private"),
            row.booked,
            Money(Decimal(row.booked_value or 0)),
            row.accepted,
            Money(Decimal(row.accepted_value or 0)),
            row.unpriced,
        )
        for row in rows
    )
    return Table("statistic_by_agreement", tuple(f"statistic_{key}" for key in keys), shown, len(shown))


def by_message_kind(connection: sa.Connection, period: Period) -> Table:
    """Messages by kind, channel and state."""
    rows = connection.execute(
        sa.text(f"""
            SELECT kind, channel, state, CAST(sum(messages) AS bigint) AS n
            FROM statistic_message WHERE {_WITHIN} GROUP BY kind, channel, state ORDER BY kind, n DESC, 2, 3"""),
        period.values,
    ).all()
    shown = tuple(
        (
            Term("message_kind", row.kind),
            Term("channel", row.channel) if row.channel else None,
            Term("message_state", row.state),
            row.n,
        )
        for row in rows
    )
    columns = ("message_kind", "message_channel", "message_state", "how_many")
    return Table("statistic_by_message_kind", columns, shown, len(shown))


def by_agenda(connection: sa.Connection, period: Period) -> Table:
    """Occupancy by agenda: booked and offered minutes."""
    rows = connection.execute(
        sa.text(f"""
            SELECT c.code, a.name, o.agenda_id, CAST(o.booked AS bigint) AS booked, CAST(o.offered AS bigint) AS offered
            FROM (SELECT clinic_id, agenda_id, sum(booked_minutes) AS booked, sum(offered_minutes) AS offered
                  FROM statistic_occupancy WHERE {_WITHIN} GROUP BY clinic_id, agenda_id) o
            JOIN clinic c ON c.id = o.clinic_id LEFT JOIN agenda a ON a.id = o.agenda_id
            ORDER BY CAST(o.booked AS numeric) / nullif(o.offered, 0) DESC NULLS LAST, 1, 2"""),
        period.values,
    ).all()
    shown = tuple(
        (
            row.code,
            row.name or Reason("statistic_agenda_gone", {"number": row.agenda_id}),
            row.booked,
            row.offered,
            Share(row.booked / row.offered) if row.offered else None,
        )
        for row in rows
    )
    keys = ("clinic", *(f"statistic_{key}" for key in ("agenda", "minutes_booked", "minutes_offered", "occupancy")))
    return Table("statistic_by_agenda", keys, shown, len(shown))


def daily(connection: sa.Connection, period: Period, columns: Mapping[str, str], table: str) -> DataFrame:
    """Day by day (the index), days without data as zero: each column is the sum of its expression over ``table``."""
    import pandas as pd

    sums = ", ".join(f"coalesce(sum({expression}), 0)" for expression in columns.values())
    rows = connection.execute(
        sa.text(f"SELECT day, {sums} FROM {table} WHERE {_WITHIN} GROUP BY day"), period.values
    ).all()
    found = pd.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=list(columns))
    found.index = pd.DatetimeIndex(found.index)
    days = pd.date_range(period.first, period.last)
    return found.astype(float).reindex(days, fill_value=0.0)


def by_week(connection: sa.Connection, period: Period) -> Table:
    """Weeks from Monday, by outcome."""
    monday = "s.day - (CAST(extract(isodow FROM s.day) AS integer) - 1)"
    return _by_outcome(connection, period, "statistic_by_week", "statistic_week", monday)


def by_clinic(connection: sa.Connection, period: Period) -> Table:
    """Clinics by outcome; of use for the chain."""
    return _by_outcome(connection, period, "statistic_by_clinic", "clinic", "c.code")


def _by_outcome(connection: sa.Connection, period: Period, key: str, first: str, over: str) -> Table:
    """The appointments of each value of ``over``, by outcome, with the sum and a last row of totals. Neither service
    nor specialist is in it, so that no count needs to be withheld."""
    rows = connection.execute(
        sa.text(f"""
            SELECT {over}, s.status, CAST(sum(s.appointments) AS bigint) AS appointments
            FROM statistic_appointment s JOIN clinic c ON c.id = s.clinic_id
            WHERE {_WITHIN.replace("clinic_id =", "s.clinic_id =")} GROUP BY 1, 2"""),
        period.values,
    )
    counted: dict[Value, Counter[str]] = {}
    for value, status, appointments in rows:
        counted.setdefault(value, Counter())[status] = appointments
    if not counted:
        return Table(key, (first,), (), 0)
    sums: Counter[str] = sum(counted.values(), Counter())
    statuses = [status for status in STATUSES if status in sums]
    told = [
        (value, *(counts[status] for status in statuses), counts.total())
        for value, counts in (*sorted(counted.items()), (TOTAL, sums))
    ]
    columns = (first, *(f"statistic_status_{status}" for status in statuses), "statistic_total")
    return Table(key, columns, tuple(told), len(told))
