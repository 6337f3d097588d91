"""What the rules of agendas produce: turns in the wall time of the clinic's zone, expanded into slots as instants.

Where the clocks change near a turn it is expanded with care, apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.agendas import AGENDAS, OVERLAPS, PROBLEMS
from polydesk_dagster.clinic.calendar.effective import CLOSED_HOURS, local_span

# A rule's turn on a day: a slot's day is that of its start, so a turn that crosses midnight also reaches the day after.
# The offset from UTC is null where the clocks change near the turn: those turns are expanded with care, apart.
RULE_DAYS = """
    CREATE TEMP TABLE rule_day ON COMMIT DROP AS
    SELECT d.agenda_id, d.rule_id, d.opens, d.closes, d.step, d.capacity, d.crosses,
           CASE WHEN o.before = o.after THEN o.before END AS utc_offset, o.before - o.after AS fold,
           CASE WHEN h.closed && tsrange(d.opens, d.closes) THEN h.closed END AS closed
    FROM (
        SELECT r.agenda_id, r.id AS rule_id, c.day + r.starts_at AS opens,
               c.day + r.ends_at + CASE WHEN r.crosses_midnight THEN interval '1 day' ELSE interval '0' END AS closes,
               make_interval(mins => coalesce(r.slot_minutes, a.slot_minutes)) AS step,
               coalesce(r.capacity, a.capacity) AS capacity, r.crosses_midnight AS crosses
        FROM working_agenda a
        JOIN (SELECT agenda_id, local_date AS day, false AS eve FROM derive_cell
              UNION
              SELECT c.agenda_id, c.local_date - 1, true FROM derive_cell c
              WHERE NOT EXISTS (SELECT FROM derive_cell p
                                WHERE p.agenda_id = c.agenda_id AND p.local_date = c.local_date - 1)
             ) c ON c.agenda_id = a.id
        JOIN agenda_rule r ON r.agenda_id = a.id AND r.weekday = extract(isodow FROM c.day)
            AND c.day >= r.valid_from AND c.day <= coalesce(r.valid_to, 'infinity')
            AND (c.day - (r.valid_from - (extract(isodow FROM r.valid_from)::int - 1))) / 7 % r.every_weeks = 0
        WHERE a.running AND a.problem IS NULL AND c.day <@ a.validity AND (r.crosses_midnight OR NOT c.eve)
    ) d
    CROSS JOIN LATERAL (
        SELECT d.opens::date::timestamp AS midnight, (d.closes::date + 1)::timestamp AS midnight_after
    ) m
    CROSS JOIN LATERAL (
        SELECT m.midnight - (m.midnight AT TIME ZONE :time_zone) AT TIME ZONE 'UTC' AS before,
               m.midnight_after - (m.midnight_after AT TIME ZONE :time_zone) AT TIME ZONE 'UTC' AS after
    ) o
    LEFT JOIN closed_hours h ON h.agenda_id = d.agenda_id
"""


def expand_rules(connection: sa.Connection, values: Mapping[str, object]) -> None:
    connection.execute(sa.text(AGENDAS), values)
    connection.execute(sa.text(PROBLEMS))
    connection.execute(sa.text(f"CREATE TEMP TABLE closed_hours ON COMMIT DROP AS {CLOSED_HOURS}"), values)
    connection.execute(sa.text(RULE_DAYS), values)
    connection.execute(sa.text(OVERLAPS))


# Around a change of the clocks. A wall time that does not exist is dropped; one that exists twice is taken the first
# time; a slot that the change makes overlap its predecessor, or outlast its turn, is dropped too.
SHIFTED = f"""
    CREATE TEMP TABLE shifted_slot ON COMMIT DROP AS
    SELECT agenda_id, rule_id, local_start, starts_at, ends_at, capacity,
           CASE WHEN gap OR ends_at > turn_end OR starts_at < lag(CASE WHEN NOT gap THEN ends_at END)
                                                               OVER (PARTITION BY agenda_id ORDER BY starts_at, gap)
                THEN 'gap' WHEN folded THEN 'fold' ELSE 'plain' END AS kind
    FROM (
        SELECT d.agenda_id, d.rule_id, g.local_start, d.capacity, i.at AS starts_at, i.at + d.step AS ends_at,
               i.at AT TIME ZONE :time_zone <> g.local_start AS gap, i.folded,
               d.closes AT TIME ZONE :time_zone AS turn_end
        FROM rule_day d
        CROSS JOIN LATERAL generate_series(d.opens, d.closes - d.step, d.step) AS g(local_start)
        CROSS JOIN LATERAL (SELECT g.local_start AT TIME ZONE :time_zone AS late) AS p
        CROSS JOIN LATERAL (SELECT (p.late - d.fold) AT TIME ZONE :time_zone = g.local_start AS folded) AS f
        CROSS JOIN LATERAL (SELECT CASE WHEN f.folded THEN p.late - d.fold ELSE p.late END AS at, f.folded) AS i
        WHERE d.utc_offset IS NULL
          AND (d.closed IS NULL
               OR NOT d.closed && {local_span("g.local_start", "(i.at + d.step) AT TIME ZONE :time_zone", "d.step")})
    ) s
"""

ODD = """
    UPDATE working_agenda SET odd = true WHERE id IN (SELECT agenda_id FROM shifted_slot WHERE kind <> 'plain')
"""
TOO_LONG = "mod(extract(epoch FROM closes - opens), extract(epoch FROM step)) <> 0"
"""SQL: the last slot of a turn of ``rule_day`` does not fit."""


def shift_across_dst(connection: sa.Connection, values: Mapping[str, object]) -> dict[str, int]:
    """Expand the turns near a change of the clocks; returns what was dropped there, and what does not fit its turn."""
    connection.execute(sa.text(SHIFTED), values)
    kinds = {
        str(kind): int(n)
        for kind, n in connection.execute(sa.text("SELECT kind, count(*) FROM shifted_slot GROUP BY kind"))
    }
    if kinds.keys() - {"plain"}:
        connection.execute(sa.text(ODD))
    connection.execute(sa.text("DELETE FROM shifted_slot WHERE kind = 'gap'"))
    connection.execute(sa.text("ANALYZE shifted_slot"))
    too_long = connection.scalar(sa.text(f"SELECT count(*) FROM rule_day WHERE {TOO_LONG}"))
    return {"gap": kinds.get("gap", 0), "fold": kinds.get("fold", 0), "too_long": int(too_long or 0)}


WANTED = """
    SELECT d.agenda_id, i.starts_at, i.starts_at + d.step AS ends_at, d.local_date, d.capacity
    FROM (SELECT d.*, c.local_date FROM rule_day d
          CROSS JOIN LATERAL (SELECT d.opens::date AS day UNION ALL SELECT d.closes::date WHERE d.crosses) reached
          JOIN {cells} c ON c.agenda_id = d.agenda_id AND c.local_date = reached.day
          WHERE d.utc_offset IS NOT NULL) d
    CROSS JOIN LATERAL generate_series(d.opens, d.closes - d.step, d.step) AS g(local_start)
    CROSS JOIN LATERAL (SELECT (g.local_start - d.utc_offset) AT TIME ZONE 'UTC' AS starts_at) AS i
    WHERE i.starts_at > :as_of
      AND (NOT d.crosses OR g.local_start::date = d.local_date)
      AND (d.closed IS NULL OR NOT d.closed && tsrange(g.local_start, g.local_start + d.step))
    UNION ALL
    SELECT s.agenda_id, s.starts_at, s.ends_at, c.local_date, s.capacity
    FROM {cells} c
    JOIN shifted_slot s ON s.agenda_id = c.agenda_id AND s.local_start::date = c.local_date
    WHERE s.starts_at > :as_of
"""
"""The slots that the rules produce for the agenda-days of a table of cells."""
