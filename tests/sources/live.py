"""Clinics with a studiolab at which nobody answers, and all services live."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.runtime.state import activity
from tests import world


def go_live(connection: sa.Connection, now: datetime) -> None:
    """All services, two days before ``now``."""
    before = now - timedelta(days=2)
    activity.go_live(connection, activity.STANDING, actor="desk:anna", reason="prova del listino", as_of=before)


def clinics(
    engine: sa.Engine, database: URL, home: Path, monkeypatch: pytest.MonkeyPatch, codes: Iterable[str], now: datetime
) -> sa.Engine:
    """Have clinics with these ``codes`` in the ``database``, which the process's settings name from then on."""
    monkeypatch.setenv("POLYDESK_HOME", str(home))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    with engine.begin() as connection:
        for code in codes:
            world.integration(connection, world.clinic(connection, code), "http://127.0.0.1:9/api/v1")
        go_live(connection, now)
    return engine
