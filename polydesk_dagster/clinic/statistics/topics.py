"""What is counted: each topic's table and the SQL that counts it, for some cells or for all of them.

A cell is a (clinic, local day). The day of an instant is always ``(instant AT TIME ZONE zone)::date``, so that days
with a change of the clocks come out right; the indexed range around a cell is only there to find its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One published table.

    ``rows`` gives the source rows with their ``clinic_id`` and ``day``, of the temporary table ``cell`` joined with
    ``clinic`` (as ``c``); ``all_rows`` the same for everything. ``counted`` turns rows into the table's rows.
    ``days`` lists the days on which clinic ``c`` has source rows.
    """

    key: str
    table: str
    columns: tuple[str, ...]
    counted: str
    rows: str
    all_rows: str
    days: str

    @property
    def for_cells(self) -> str:
        return self.counted.format(rows=self.rows)

    def for_all(self, clinic_id: int | None) -> str:
        rows = self.all_rows if clinic_id is None else f"SELECT * FROM ({self.all_rows}) w WHERE clinic_id = :clinic"
        return self.counted.format(rows=rows)


def _around(column: str) -> str:
    """Narrow ``column`` to the neighbourhood of the cell's day, then to the day itself."""
    return f"""
        {column} >= CAST(cell.day AS timestamp) AT TIME ZONE c.time_zone - interval '3 hours'
        AND {column} < CAST(cell.day + 1 AS timestamp) AT TIME ZONE c.time_zone + interval '3 hours'
        AND CAST({column} AT TIME ZONE c.time_zone AS date) = cell.day"""


# OFFSET 0 keeps each LATERAL part whole: one index scan a cell, never a join over the whole table.
_APPOINTMENTS = Topic(
    key="appointments",
    table="statistic_appointment",
    columns=(
        *("clinic_id", "day", "agenda_id", "specialist_id", "service_id", "agreement_id", "channel", "status"),
        *("appointments", "minutes", "quoted", "priced", "lead_known", "lead_minutes", "within_7_days"),
        "within_30_days",
    ),
    counted="""
        SELECT clinic_id, day, agenda_id, specialist_id, service_id, agreement_id, channel, status,
               count(*) AS appointments,
               sum(CAST(floor(date_part('epoch', ends_at - starts_at) / 60) AS integer)) AS minutes,
               coalesce(sum(quoted_price), 0) AS quoted,
               count(quoted_price) AS priced,
               count(*) FILTER (WHERE created_at <= starts_at) AS lead_known,
               coalesce(sum(CAST(floor(date_part('epoch', starts_at - created_at) / 60) AS integer))
                        FILTER (WHERE created_at <= starts_at), 0) AS lead_minutes,
               count(*) FILTER (WHERE created_at <= starts_at AND starts_at - created_at <= '7 days')
                   AS within_7_days,
               count(*) FILTER (WHERE created_at <= starts_at AND starts_at - created_at <= '30 days')
                   AS within_30_days
        FROM ({rows}) r
        GROUP BY clinic_id, day, agenda_id, specialist_id, service_id, agreement_id, channel, status""",
    rows=f"""
        SELECT cell.day, a.*
        FROM cell JOIN clinic c ON c.id = cell.clinic_id
        CROSS JOIN LATERAL (SELECT * FROM counted_appointment s
                            WHERE s.clinic_id = cell.clinic_id AND {_around("s.starts_at")} OFFSET 0) a""",
    all_rows="""
        SELECT CAST(a.starts_at AT TIME ZONE c.time_zone AS date) AS day, a.*
        FROM counted_appointment a JOIN clinic c ON c.id = a.clinic_id""",
    days="""
        SELECT CAST(s.starts_at AT TIME ZONE c.time_zone AS date)
        FROM counted_appointment s WHERE s.clinic_id = c.id""",
)

_OFFER = Topic(
    key="offer",
    table="statistic_offer",
    columns=("clinic_id", "day", "agenda_id", "slots", "minutes"),
    counted="""
        SELECT clinic_id, day, agenda_id, CAST(sum(slots) AS bigint) AS slots, CAST(sum(minutes) AS bigint) AS minutes
        FROM ({rows}) r GROUP BY clinic_id, day, agenda_id""",
    rows="""
        SELECT cell.clinic_id, cell.day, s.agenda_id, s.slots, s.minutes
        FROM cell
        CROSS JOIN LATERAL (SELECT * FROM counted_slot o
                            WHERE o.clinic_id = cell.clinic_id AND o.day = cell.day OFFSET 0) s""",
    all_rows="SELECT clinic_id, day, agenda_id, slots, minutes FROM counted_slot",
    days="SELECT o.day FROM counted_slot o WHERE o.clinic_id = c.id",
)

_FUNNEL = Topic(
    key="funnel",
    table="statistic_funnel",
    columns=("clinic_id", "day", "held", "booked", "verified", "confirmed"),
    counted="""
        SELECT clinic_id, day, CAST(sum(held) AS bigint) AS held, sum(booked) AS booked, sum(verified) AS verified,
               sum(confirmed) AS confirmed
        FROM ({rows}) r GROUP BY clinic_id, day""",
    rows=f"""
        SELECT cell.clinic_id, cell.day, h.held, h.booked, h.verified, h.confirmed
        FROM cell JOIN clinic c ON c.id = cell.clinic_id
        CROSS JOIN LATERAL (
            SELECT s.holds AS held, 0 AS booked, 0 AS verified, 0 AS confirmed
            FROM counted_hold s WHERE s.clinic_id = cell.clinic_id AND {_around("s.created_at")}
            UNION ALL
            SELECT 0, 1, CAST(s.verified AS integer), CAST(s.status NOT IN ('unverified', 'expired') AS integer)
            FROM counted_appointment s
            WHERE s.channel = 'online' AND s.clinic_id = cell.clinic_id AND {_around("s.created_at")}
            OFFSET 0) h""",
    all_rows="""
        SELECT h.clinic_id, CAST(h.created_at AT TIME ZONE c.time_zone AS date) AS day, h.held, h.booked, h.verified,
               h.confirmed
        FROM (SELECT clinic_id, created_at, holds AS held, 0 AS booked, 0 AS verified, 0 AS confirmed FROM counted_hold
              UNION ALL
              SELECT clinic_id, created_at, 0, 1, CAST(verified AS integer),
                     CAST(status NOT IN ('unverified', 'expired') AS integer)
              FROM counted_appointment WHERE channel = 'online') h
        JOIN clinic c ON c.id = h.clinic_id""",
    days="""
        SELECT CAST(s.created_at AT TIME ZONE c.time_zone AS date) FROM counted_hold s WHERE s.clinic_id = c.id
        UNION
        SELECT CAST(s.created_at AT TIME ZONE c.time_zone AS date)
        FROM counted_appointment s WHERE s.channel = 'online' AND s.clinic_id = c.id""",
)

_MESSAGES = Topic(
    key="messages",
    table="statistic_message",
    columns=("clinic_id", "day", "kind", "channel", "state", "messages"),
    counted="""
        SELECT clinic_id, day, kind, channel, state, CAST(sum(messages) AS bigint) AS messages
        FROM ({rows}) r GROUP BY clinic_id, day, kind, channel, state""",
    rows=f"""
        SELECT cell.day, m.*
        FROM cell JOIN clinic c ON c.id = cell.clinic_id
        CROSS JOIN LATERAL (SELECT * FROM counted_message s
                            WHERE s.clinic_id = cell.clinic_id AND {_around("s.created_at")} OFFSET 0) m""",
    all_rows="""
        SELECT CAST(m.created_at AT TIME ZONE c.time_zone AS date) AS day, m.*
        FROM counted_message m JOIN clinic c ON c.id = m.clinic_id""",
    days="""
        SELECT CAST(s.created_at AT TIME ZONE c.time_zone AS date)
        FROM counted_message s WHERE s.clinic_id = c.id""",
)

_REPORT_ROWS = """
    SELECT s.clinic_id, s.published_at, s.withdrawn_at, s.published_at - a.ends_at AS turnaround
    FROM report s LEFT JOIN appointment a ON a.id = s.appointment_id AND a.ends_at <= s.published_at"""

_REPORTS = Topic(
    key="reports",
    table="statistic_report",
    columns=("clinic_id", "day", "reports", "withdrawn", "timed", "minutes", "within_1_day", "within_3_days"),
    counted="""
        SELECT clinic_id, day, count(*) AS reports, count(withdrawn_at) AS withdrawn, count(turnaround) AS timed,
               coalesce(sum(CAST(floor(date_part('epoch', turnaround) / 60) AS integer)), 0) AS minutes,
               count(*) FILTER (WHERE turnaround <= '24 hours') AS within_1_day,
               count(*) FILTER (WHERE turnaround <= '72 hours') AS within_3_days
        FROM ({rows}) r GROUP BY clinic_id, day""",
    rows=f"""
        SELECT cell.day, r.*
        FROM cell JOIN clinic c ON c.id = cell.clinic_id
        CROSS JOIN LATERAL ({_REPORT_ROWS}
                            WHERE s.clinic_id = cell.clinic_id AND {_around("s.published_at")} OFFSET 0) r""",
    all_rows=f"""
        SELECT CAST(r.published_at AT TIME ZONE c.time_zone AS date) AS day, r.*
        FROM ({_REPORT_ROWS}) r JOIN clinic c ON c.id = r.clinic_id""",
    days="""
        SELECT CAST(s.published_at AT TIME ZONE c.time_zone AS date) FROM report s WHERE s.clinic_id = c.id""",
)

TOPICS: Mapping[str, Topic] = {topic.key: topic for topic in (_APPOINTMENTS, _OFFER, _FUNNEL, _MESSAGES, _REPORTS)}
