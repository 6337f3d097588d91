"""A list in which nothing can repeat itself is not looked through for it, and comes to the same as one that is."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import compare
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.lists import KINDS
from polydesk_dagster.sources.records import Price
from tests import world

DAYS = [date(2025, 1, 1), date(2026, 1, 1), date(2026, 3, 10), date(2026, 6, 1)]

HELD = """
    INSERT INTO service (clinic_id, external_id, code, name, duration_minutes)
        SELECT :clinic, 'S' || n, 'C' || n, 'Visita', 20 FROM generate_series(1, 2) n;
    INSERT INTO agreement (clinic_id, external_id, name, kind, valid_from)
        VALUES (:clinic, 'A1', 'Fondo', 'fund', '2020-01-01');
    INSERT INTO price (clinic_id, service_id, agreement_id, amount, currency, valid_from)
        SELECT s.clinic_id, s.id, a.id, 50, 'EUR', '2026-01-01'
        FROM service s LEFT JOIN agreement a ON a.clinic_id = s.clinic_id AND s.external_id = 'S2'"""


@st.composite
def prices(draw: st.DrawFn) -> Price:
    first, last = sorted([draw(st.sampled_from(DAYS)), draw(st.sampled_from(DAYS))])
    return Price(
        service_id=draw(st.sampled_from(["S1", "S2", "S9"])),
        agreement_id=draw(st.sampled_from([None, "A1", "A9"])),
        collaborator_id=None,
        amount=draw(st.sampled_from(["50.00", "51.00"])),
        patient_share=None,
        currency="EUR",
        vat_rate=None,
        valid_from=first,
        valid_to=draw(st.sampled_from([None, last])),
    )


def planned(connection: sa.Connection, kind: Kind, scope: Scope, records: list[Price]) -> tuple[Any, ...]:
    """What comes of the list, in two pages: what is counted, and the rows."""
    with connection.begin_nested() as back:
        pages = [Page(1, records[:2]), Page(2, records[2:])]
        plan = compare(connection, kind, scope, pages, as_of=world.AS_OF)
        query = f"""SELECT action, finding, reason, service_id, agreement_id, amount, valid_from, valid_to, was_amount
                    FROM {plan.rows} ORDER BY ordinal"""
        rows = connection.execute(sa.text(query)).all() if plan.rows_kept else []
        back.rollback()
    return plan.tally, [guard.passed for guard in plan.guards], sorted(map(repr, rows))


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(prices(), max_size=5))
def test_prices_of_which_none_repeats_another_come_to_the_same(connection: sa.Connection, records: list[Price]) -> None:
    with connection.begin_nested() as back:
        clinic = world.clinic(connection)
        for statement in HELD.split(";"):
            connection.execute(sa.text(statement), {"clinic": clinic})
        scope = Scope("sync_prices", "BO01", clinic)
        assert PRICE.source is not None
        looked_through = replace(PRICE, source=replace(PRICE.source, apart=()))
        assert planned(connection, PRICE, scope, records) == planned(connection, looked_through, scope, records)
        back.rollback()


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.source is not None and kind.source.apart])
def test_what_tells_records_apart_is_part_of_their_key(kind: Kind) -> None:
    """Of prices it is less than their key, by the source's own names for what the key has ours of."""
    assert kind.source is not None
    assert set(kind.source.apart) <= set(kind.source.columns)
    if kind is not PRICE:
        assert kind.source.key == tuple(f"{{}}.{name}" for name in kind.source.apart)
