"""Which agenda-days are new, which are as the rules want them, and which have to be compared slot by slot."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar.expansion import WANTED
from polydesk_dagster.database import bulk

# Order does not matter to xor, and slots of an agenda do not overlap, so that their starts and their ends, each as a
# set, say which they are. Hashing the instants themselves is several times cheaper than taking their epoch.
DIGEST = """
    bit_xor(timestamp_hash_extended(starts_at AT TIME ZONE 'UTC', capacity)
            # timestamp_hash_extended(ends_at AT TIME ZONE 'UTC', -1))"""

PRESENT = f"""
    SELECT c.agenda_id, c.local_date, p.n, p.digest, p.unusual, p.crosses
    FROM (SELECT agenda_id, local_date FROM {{cells}}
          UNION SELECT agenda_id, local_date - 1 FROM {{cells}}) c
    CROSS JOIN LATERAL (SELECT (c.local_date + 1)::timestamp AT TIME ZONE :time_zone AS midnight) m
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE counted) AS n, {DIGEST} FILTER (WHERE counted) AS digest,
               coalesce(bool_or(s.state = 'orphan' OR s.manual) FILTER (WHERE counted), false) AS unusual,
               bool_or(s.ends_at > m.midnight) AS crosses
        FROM slot s CROSS JOIN LATERAL (SELECT s.starts_at > :as_of AND s.state <> 'retired' AS counted) u
        WHERE s.agenda_id = c.agenda_id AND s.local_date = c.local_date HAVING count(*) > 0) p
"""
"""What there is of the agenda-days of a table of cells, and of their eves."""

PRESENT_CELLS = f"CREATE TEMP TABLE present_cell ON COMMIT DROP AS {PRESENT.format(cells='derive_cell')}"

# Free of anything that a new slot could meet, the day before's slots that reach over midnight included.
FRESH = """
    CREATE TEMP TABLE fresh_cell ON COMMIT DROP AS
    SELECT c.agenda_id, c.local_date
    FROM derive_cell c
    LEFT JOIN present_cell p ON p.agenda_id = c.agenda_id AND p.local_date = c.local_date
    LEFT JOIN present_cell eve ON eve.agenda_id = c.agenda_id AND eve.local_date = c.local_date - 1 AND eve.crosses
    WHERE p.agenda_id IS NULL AND eve.agenda_id IS NULL
      AND c.agenda_id NOT IN (SELECT agenda_id FROM rule_day WHERE crosses)
"""

DIFFERING = f"""
    SELECT k.agenda_id, k.local_date
    FROM {{cells}} k
    LEFT JOIN present_cell p ON p.agenda_id = k.agenda_id AND p.local_date = k.local_date
    LEFT JOIN (SELECT agenda_id, local_date, count(*) AS n, {DIGEST} AS digest FROM ({WANTED}) s
               GROUP BY agenda_id, local_date) w ON w.agenda_id = k.agenda_id AND w.local_date = k.local_date
    WHERE (coalesce(p.n, 0), p.digest) IS DISTINCT FROM (coalesce(w.n, 0), w.digest) OR p.unusual
"""
"""The agenda-days of a table of cells that are not as the rules want them, beside what ``present_cell`` says."""

CHANGED = f"""
    CREATE TEMP TABLE changed_cell ON COMMIT DROP AS
    WITH known AS (
        SELECT c.agenda_id, c.local_date FROM derive_cell c
        EXCEPT SELECT agenda_id, local_date FROM fresh_cell
    )
    {DIFFERING.format(cells="known")}
"""


def sort_cells(connection: sa.Connection, values: Mapping[str, object]) -> None:
    for statement in (
        bulk.BY_INDEX,
        PRESENT_CELLS,
        bulk.ANY_WAY,
        "ANALYZE present_cell",
        FRESH,
        "ANALYZE fresh_cell",
        CHANGED,
        "ANALYZE changed_cell",
    ):
        connection.execute(sa.text(statement), values)


COUNT_BEFORE = """
    SELECT sum(p.n) FROM present_cell p
    JOIN derive_cell c ON c.agenda_id = p.agenda_id AND c.local_date = p.local_date
"""
