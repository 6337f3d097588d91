"""*Salute* and the health endpoint where one clinic is not read: first a warning, then a fault."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import sqlalchemy as sa

from polydesk_dagster.runtime import health
from polydesk_dagster.runtime.state import activity
from tests import world
from tests.runtime import written
from tests.web.world import Served


def test_a_clinic_that_is_not_read_is_shown_by_name_and_makes_the_endpoint_ill_when_it_is_long(door: Served) -> None:
    now = datetime.now(UTC)
    with door.door.engine.begin() as connection:
        for code in ("BO01", "MI01"):
            world.integration(connection, world.clinic(connection, code), "http://127.0.0.1:9/api/v1")
        connection.execute(sa.text("UPDATE clinic SET name = 'Centro Reno' WHERE code = 'BO01'"))
        why = {"actor": "desk:anna", "reason": "messaggi provati con la direzione"}
        activity.go_live(connection, ["sync_events"], as_of=now - timedelta(hours=3), **why)

    def asked(down: timedelta) -> tuple[int, bool, str]:
        with door.door.engine.begin() as connection:
            connection.execute(
                sa.text("""INSERT INTO event_cursor (clinic_id, failures, down_since)
                           SELECT id, 3, :since FROM clinic WHERE code = 'BO01'
                           ON CONFLICT (clinic_id) DO UPDATE SET down_since = excluded.down_since"""),
                {"since": now - down},
            )
        with door.signed_in("manager") as browser:
            answer = browser.get("/health")
            page = unescape(browser.get("/salute").text)
        (shown,) = re.findall(r'<span class="outcome (\w+)">Centro Reno \(BO01\): da [^<]+</span>', page)
        return answer.status_code, answer.json()["ok"], shown

    with written.storage(door.door.settings) as (dagster, _):
        for kind in health.DAEMONS:
            written.beats(dagster, kind, now)
        written.ticked(dagster, "studiolab_events", now)
        assert asked(timedelta(minutes=9)) == (200, True, "partial")
        assert asked(timedelta(hours=2)) == (503, False, "failed")
