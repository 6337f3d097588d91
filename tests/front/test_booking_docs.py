"""The page for a front end's developer, followed word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import slots
from tests import world
from tests.front.desk import programs
from tests.web.world import served

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "booking-api.md"


@pytest.mark.slow
def test_from_a_token_to_a_confirmed_booking_as_the_page_says(engine: sa.Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, horizon_days=20)
        connection.execute(sa.text("UPDATE service SET code = '89.7A.3'"))
    slots.generate(engine, datetime.now(UTC))
    steps = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with served(engine, tmp_path, front=programs(engine.url, tmp_path)) as door:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/polydesk").symlink_to(Path(sys.executable).parent / "polydesk")
        script = "".join(steps).replace("http://127.0.0.1:3000", door.origin)
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        environment = {**os.environ, "POLYDESK_HOME": str(tmp_path / "home"), "POLYDESK_DATABASE_URL": url}
        environment["PYTHONPATH"] = str(ROOT)
        told = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert told.returncode == 0, told.stdout + told.stderr
    assert '"status":"booked"' in told.stdout
    assert '"status":"cancelled"' in told.stdout
    with engine.connect() as connection:
        booking = connection.execute(sa.text("SELECT status, clinic_id, verified_at FROM appointment")).one()
    assert (booking.status, booking.clinic_id) == ("cancelled", practice.clinic)
    assert booking.verified_at is not None
