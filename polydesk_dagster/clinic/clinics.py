"""Which clinic a code means, and which clinics have a studiolab."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError

ACTIVE_CLINICS = sa.text("""
    SELECT c.code FROM clinic c JOIN integration i ON i.clinic_id = c.id
    WHERE c.active AND i.active ORDER BY c.code""")
"""Codes of the clinics whose integration with studiolab is on."""


def clinic_id(connection: sa.Connection, code: str | None) -> int | None:
    """The id of the clinic ``code``; None for None, the whole chain.

    Raises:
        PermanentError: if there is no such clinic.
    """
    if code is None:
        return None
    found = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": code})
    if found is None:
        raise PermanentError("no_such_clinic", code=code)
    return int(found)
