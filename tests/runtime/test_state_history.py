"""What a service's state costs to read follows from how many clinics there are, not from how long they have existed."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.database import service_runs
from polydesk_dagster.runtime.state.services import service_states
from tests.budgets import Spent, spent

NOW = datetime(2026, 3, 27, 12, 0, tzinfo=UTC)
CLINICS = 150

CHAIN = """
    INSERT INTO clinic (code, name, region, municipality_code)
    SELECT 'C' || to_char(n, 'FM000'), 'Prova', 'Lazio', 'H501' FROM generate_series(1, :clinics) n"""
LINKED = """
    INSERT INTO integration (clinic_id, base_url, token_env, active)
    SELECT id, 'https://studiolab.example/api/v1', 'POLYDESK_STUDIOLAB_TOKEN_TEST', true FROM clinic"""
NIGHTS = """
    INSERT INTO service_run (service, clinic_id, outcome, counts, reasons, as_of, started_at, seconds)
    SELECT s, c.id, 'ok', '{}', '[]', at, at, 1
    FROM unnest(CAST(:services AS text[])) s, clinic c, generate_series(CAST(:first AS integer), :last) n,
         LATERAL (SELECT CAST(:now AS timestamptz) - n * interval '1 day' AS at)"""
PLANS = """
    INSERT INTO plan (service, kind, clinic_id, fingerprint, tally, guards, state, as_of, created_at, expires_at,
                      applied_at, applied_by)
    SELECT 'sync_prices', k, c.id, 'f', '{}', '[]', 'applied', at, at, at, at, 'dagster'
    FROM unnest(ARRAY['agreement', 'price']) k, clinic c, generate_series(CAST(:first AS integer), :last) n,
         LATERAL (SELECT CAST(:now AS timestamptz) - n * interval '1 day' AS at)"""
WAITS = """
    INSERT INTO plan (service, kind, clinic_id, fingerprint, tally, guards, as_of, created_at, expires_at)
    SELECT 'sync_prices', 'service', id, 'f', '{}', '[{"passed": false}]', :now, :now, :now + interval '1 day'
    FROM clinic WHERE id % 10 = 0"""


def test_a_longer_history_costs_no_block_more(engine: sa.Engine, database: URL) -> None:
    services = [service.key for service in SERVICES if service.per_clinic]

    def kept(first: int, last: int) -> None:
        values = {"clinics": CLINICS, "services": services, "now": NOW, "first": first, "last": last}
        chain = (CHAIN, LINKED) if first == 1 else ()
        for statement in (*chain, NIGHTS, PLANS, *((WAITS,) if first == 1 else ())):
            with engine.begin() as connection:
                connection.execute(sa.text(statement), values)
        with engine.begin() as connection:
            connection.execute(sa.text("ANALYZE"))

    def read() -> Spent:
        return spent(database, _read)

    kept(1, 5)
    few = read()
    kept(6, 40)
    many = read()
    assert many.blocks <= 1.5 * few.blocks, (few, many)


def _read(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        states = {state.service.key: state for state in service_states(connection, None, NOW, live=True)}
        assert len(states["sync_prices"].runs) == CLINICS
        assert sum(each.count for each in states["sync_prices"].waiting) == CLINICS // 10
        assert len(service_runs.past(connection, "import_patients")) == 30
