from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import service
from polydesk_dagster.demo import chain, told
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.messages.world import gateway


@pytest.mark.slow
@pytest.mark.parametrize("at", ["02:00", "12:05", "22:40"])
def test_whatever_the_hour_the_first_run_has_not_come_too_late_for_everybody(engine: sa.Engine, at: str) -> None:
    as_of = world.rome("2026-03-12", at)
    chain.load(engine, "small", as_of=as_of)
    told.before(engine, as_of)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM message WHERE sent_at > :at"), {"at": as_of}) == 0
    with gateway() as (_, providers):
        for kind in ("reminder", "preparation"):
            report = service.send(engine, as_of, kind, providers)
            assert report.outcome in {Outcome.OK, Outcome.PARTIAL, Outcome.NOTHING_TO_DO}
