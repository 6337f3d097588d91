"""The agenda-days that a change of closures touches, and their slots derived again."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.clinic.calendar.effective import REACHES
from polydesk_dagster.outcome import Report

# The days of the closures and their eves, whose slots may reach over midnight, of every agenda that they reach.
_TOUCHED = f"""
    CREATE TEMP TABLE touched_cell ON COMMIT DROP AS
    SELECT DISTINCT a.id AS agenda_id, CAST(day AS date) AS local_date
    FROM ({{closures}}) c
    CROSS JOIN agenda a JOIN clinic k ON k.id = a.clinic_id AND k.active
    CROSS JOIN LATERAL generate_series(greatest(c.date_from - 1, CAST(:as_of AS date) - 1),
                                       least(c.date_to, CAST(:as_of AS date) + 731), interval '1 day') AS day
    WHERE a.auto_generate AND {REACHES}
"""


def derive_touched(connection: sa.Connection, closures: str, as_of: datetime) -> Report | None:
    """Derive again what closures touch, before and after their change, in the caller's transaction; None if nothing is.

    ``closures`` is SQL: rows of layer, region, municipality_code, clinic_id, agenda_id, date_from, date_to.
    """
    connection.execute(sa.text("DROP TABLE IF EXISTS touched_cell"))
    touched = connection.execute(sa.text(_TOUCHED.format(closures=closures)), {"as_of": as_of}).rowcount
    return slots.derive(connection, "touched_cell", as_of) if touched else None
