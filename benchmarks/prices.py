"""The preview of a price list beside the one SQL comparison that it rests on, and applying a plan beside the UPDATE."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from statistics import median
from typing import Any

import psycopg
import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, seconds
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.records import Price
from polydesk_dagster.sources.studiolab.client import Studiolab

AS_OF = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
PAGE = 1000
ROUNDS = 5
"""Previews and references in turn, of which the medians are compared: each takes about a second, and a machine's speed
changes within less."""

# One SQL comparison of the same rows: what the source says, joined with what we hold.
DIFFERENCE = """
    SELECT count(*) FROM (
        SELECT svc.id AS service_id, agr.id AS agreement_id, spe.id AS specialist_id, i.amount, i.patient_share,
               i.vat_rate, i.valid_from, i.valid_to
        FROM incoming i
        JOIN service svc ON svc.clinic_id = %(clinic)s AND svc.external_id = i.service
        LEFT JOIN agreement agr ON agr.clinic_id = %(clinic)s AND agr.external_id = i.agreement
        LEFT JOIN specialist spe ON spe.clinic_id = %(clinic)s AND spe.external_id = i.collaborator) d
    FULL JOIN (SELECT * FROM price WHERE clinic_id = %(clinic)s) c
      ON c.service_id = d.service_id AND coalesce(c.agreement_id, 0) = coalesce(d.agreement_id, 0)
         AND coalesce(c.specialist_id, 0) = coalesce(d.specialist_id, 0) AND c.valid_from = d.valid_from
    WHERE c.id IS NULL OR d.service_id IS NULL
       OR ROW(d.amount, d.patient_share, d.vat_rate, d.valid_to)
          IS DISTINCT FROM ROW(c.amount, c.patient_share, c.vat_rate, c.valid_to)
"""


AGREEMENTS = 50
"""Each service has a private price and one for each of these."""


def _records(count: int, changed: int, offset: int) -> list[Price]:
    return [
        Price.model_construct(
            service_id=f"S{n // (AGREEMENTS + 1)}",
            agreement_id=f"A{n % (AGREEMENTS + 1)}" if n % (AGREEMENTS + 1) else None,
            collaborator_id=None,
            amount=Decimal(50 + n % 90 + (offset if n < changed else 0)),
            patient_share=None,
            currency="EUR",
            vat_rate=None,
            valid_from=date(2026, 1, 1),
            valid_to=None,
        )
        for n in range(count)
    ]


def _pages(records: list[Price]) -> list[Page]:
    cut = [records[first : first + PAGE] for first in range(0, len(records), PAGE)]
    return [Page(number, part, (), "s", len(records)) for number, part in enumerate(cut, 1)]


def _reference(engine: sa.Engine, clinic: int, records: list[Price], changed: int) -> float:
    """COPY of the same records, and the one comparison."""

    def compare() -> None:
        with psycopg.connect(plain_url(engine.url)) as connection:
            connection.execute("""
                CREATE TEMP TABLE incoming (
                    service text, agreement text, collaborator text, amount numeric(10, 2),
                    patient_share numeric(10, 2), currency text, vat_rate numeric(5, 2), valid_from date, valid_to date)
            """)
            with connection.cursor().copy("COPY incoming FROM STDIN") as copy:
                for record in records:
                    copy.write_row(
                        (
                            record.service_id,
                            record.agreement_id,
                            record.collaborator_id,
                            record.amount,
                            record.patient_share,
                            record.currency,
                            record.vat_rate,
                            record.valid_from,
                            record.valid_to,
                        )
                    )
            connection.execute("ANALYZE incoming")
            found = connection.execute(DIFFERENCE, {"clinic": clinic}).fetchone()
            assert found == (changed,)

    return seconds(compare)


def _applied(engine: sa.Engine, scope: Scope, count: int, changed: int) -> tuple[float, float]:
    """Seconds to apply a plan of ``changed`` updates, and for the plain UPDATE of as many rows of the same table."""
    seen = synchronise(engine, PRICE, scope, _pages(_records(count, changed, 1)), as_of=AS_OF, preview=True)
    with engine.connect() as connection:
        plan = plans.load(connection, seen.plan_id or 0)
    assert plan.tally["update"] == changed
    reports: list[Report] = []
    ours = seconds(
        lambda: reports.append(settle(engine, PRICE, scope, plan, as_of=AS_OF, actor="bench", reason="misura"))
    )
    assert (reports[0].outcome, reports[0].counts.updated) == (Outcome.OK, changed), reports[0].reasons

    def plain() -> None:
        with engine.begin() as connection:
            connection.execute(
                sa.text(f"""UPDATE price t SET amount = r.amount + 1, updated_at = now() FROM {plan.rows} r
                            WHERE r.id = t.id""")
            )

    return ours, seconds(plain)


def _unchanged(engine: sa.Engine, scope: Scope) -> tuple[float, float]:
    """Seconds of a synchronisation whose list has not changed, and of its HTTP round trip alone."""
    with engine.connect() as connection:
        held: list[dict[str, Any]] = [
            {
                "service_id": row.service,
                "agreement_id": row.agreement,
                "amount": str(row.amount),
                "currency": "EUR",
                "valid_from": "2026-01-01",
            }
            for row in connection.execute(
                sa.text("""SELECT s.external_id AS service, a.external_id AS agreement, p.amount FROM price p
                           JOIN service s ON s.id = p.service_id LEFT JOIN agreement a ON a.id = p.agreement_id""")
            )
        ]
    simulator = StudiolabSimulator()
    simulator.hold("B1", {"prices": held})
    with in_thread(simulator) as url:
        address = url.replace("/api/v1", "/B1/api/v1")
        with Studiolab("B1", address, DEMO_TOKEN) as client:
            assert lists.synchronise(engine, client, "prices", scope, as_of=AS_OF).outcome is Outcome.NOTHING_TO_DO
            with engine.connect() as connection:
                etag = connection.scalar(sa.text("SELECT etag FROM source_state"))
            trip = min(seconds(lambda: client.remote.get("/prices", {"limit": PAGE}, etag=etag)) for _ in range(5))
            reports: list[Report] = []
            ours = min(
                seconds(lambda: reports.append(lists.synchronise(engine, client, "prices", scope, as_of=AS_OF)))
                for _ in range(5)
            )
    assert all(report.reasons[0].code == "not_modified" for report in reports)
    return ours, trip


def figures(bench: Bench) -> Iterator[Figure]:
    count = bench.size(100_000)
    changed, updates = count // 100, count // 10
    with bench.engine() as engine:
        with engine.begin() as connection:
            clinic = connection.execute(
                sa.text("""INSERT INTO clinic (code, name, region, municipality_code)
                           VALUES ('B1', 'Prova', 'Emilia-Romagna', 'A944') RETURNING id""")
            ).scalar_one()
            connection.execute(
                sa.text("""INSERT INTO service (clinic_id, external_id, code, name, duration_minutes)
                           SELECT :clinic, 'S' || n, 'C' || n, 'Visita', 20 FROM generate_series(0, :last) n"""),
                {"clinic": clinic, "last": count // (AGREEMENTS + 1)},
            )
            connection.execute(
                sa.text("""INSERT INTO agreement (clinic_id, external_id, name, kind, valid_from)
                           SELECT :clinic, 'A' || n, 'Fondo ' || n, 'fund', '2026-01-01'
                           FROM generate_series(1, :agreements) n"""),
                {"clinic": clinic, "agreements": AGREEMENTS},
            )
        scope = Scope("sync_prices", "B1", clinic)
        first = synchronise(engine, PRICE, scope, _pages(_records(count, 0, 0)), as_of=AS_OF)
        assert first.counts.created == count, first.reasons
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE"))
        news = _records(count, changed, 1)
        pages = _pages(news)
        previews, references = [], []
        for _ in range(ROUNDS):
            previews.append(seconds(lambda: synchronise(engine, PRICE, scope, pages, as_of=AS_OF, preview=True)))
            references.append(_reference(engine, clinic, news, changed))
        ours, reference = median(previews), median(references)
        yield Figure("prices", f"preview of {count}, 1 % changed", ours, reference, "s", 2.0, peak_mb=peak_mb())
        applied, plain = _applied(engine, scope, count, updates)
        yield Figure("prices", f"plan apply of {updates} updates", applied, plain, "s", 3.0, peak_mb=peak_mb())
        same, trip = _unchanged(engine, scope)
        yield Figure("prices", "unchanged list, beside its round trip + 50 ms", same, trip + 0.05, "s", 1.0)
