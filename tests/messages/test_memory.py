"""What a run takes of memory, however many messages are due."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import sqlalchemy as sa

from tests import world
from tests.messages.appetite import FEW, MANY
from tests.messages.world import AS_OF
from tests.waiting import PATIENCE

DUE, BOUND_MB = 50_000, 120


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells it")
def test_fifty_thousand_due_messages_are_planned_and_sent_within_120_mb(engine: sa.Engine) -> None:
    """Of the 50,000 as many are really sent as show what each one more takes: what the whole process takes, and so
    much for each of the others, must stay within the bound."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(
            sa.text("""
                WITH person AS (
                    INSERT INTO patient (last_name, first_name, mobile)
                    SELECT 'Rossi', 'Mario', '+39347' || lpad((n * 10 + 5)::text, 7, '0')
                    FROM generate_series(1, :count) n RETURNING id)
                INSERT INTO appointment (clinic_id, service_id, patient_id, starts_at, ends_at, status, channel,
                                         created_at)
                SELECT :clinic, :service, id, start, start + interval '30 minutes', 'booked', 'desk',
                       start - interval '9 days'
                FROM person CROSS JOIN LATERAL (SELECT CAST(:as_of AS timestamptz) + interval '26 hours') s (start)"""),
            {"clinic": practice.clinic, "service": practice.service, "count": FEW + MANY, "as_of": AS_OF},
        )
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.messages.appetite", url, AS_OF.isoformat()]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True).stdout
    took = json.loads(said)
    each = (took["many_mb"] - took["few_mb"]) / MANY
    assert took["many_mb"] + each * (DUE - MANY) < BOUND_MB, took
