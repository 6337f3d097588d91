"""The preview of a price list beside the one SQL comparison that it rests on, and applying a plan beside the UPDATE.

Both begin with the same bytes on the wire. Measured is CPU, of this process and of the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import sqlalchemy as sa

from benchmarks import wire
from benchmarks.harness import Bench, Figure, cpu, in_turn, peak_mb
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.studiolab.client import Studiolab

AS_OF = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
SIZES = (20_000, 50_000, 60_000, 100_000, 200_000)
CLINICS = 5
"""Each has a list of that size; one of them is looked at."""
LOOKED_AT, CODE = 3, "B3"
AGREEMENTS = 50
"""Each service has a private price and one for each of these."""
ROUNDS = 5
UNCHANGED = 40
"""Rounds of a list that has not changed: each takes a few thousandths of a second."""

CHAIN = """
    INSERT INTO clinic (id, code, name, region, municipality_code)
    SELECT n, 'B' || n, 'Prova', 'Emilia-Romagna', 'A944' FROM generate_series(1, :clinics) n;
    INSERT INTO service (clinic_id, external_id, code, name, duration_minutes)
    SELECT c.id, 'S' || n, 'C' || n, 'Visita', 20 FROM clinic c, generate_series(0, :most / (:agreements + 1)) n;
    INSERT INTO agreement (clinic_id, external_id, name, kind, valid_from)
    SELECT c.id, 'A' || n, 'Fondo ' || n, 'fund', '2026-01-01' FROM clinic c, generate_series(1, :agreements) n
"""

PRICES = """
    INSERT INTO price (clinic_id, service_id, agreement_id, amount, currency, valid_from)
    SELECT s.clinic_id, s.id, a.id, 50 + n % 90, 'EUR', '2026-01-01'
    FROM generate_series(:held, :size - 1) n
    JOIN service s ON s.external_id = 'S' || n / (:agreements + 1)
    LEFT JOIN agreement a ON a.clinic_id = s.clinic_id AND a.external_id = 'A' || n % (:agreements + 1)
"""

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
FIELDS = ("service_id", "agreement_id", "collaborator_id", "amount", "patient_share", "currency", "vat_rate",
          "valid_from", "valid_to")  # fmt: skip


def _records(count: int, changed: int) -> Iterator[dict[str, Any]]:
    for n in range(count):
        yield {
            "service_id": f"S{n // (AGREEMENTS + 1)}",
            "agreement_id": f"A{n % (AGREEMENTS + 1)}" if n % (AGREEMENTS + 1) else None,
            "collaborator_id": None,
            "amount": f"{50 + n % 90 + (n < changed)}.00",
            "patient_share": None,
            "currency": "EUR",
            "vat_rate": None,
            "valid_from": "2026-01-01",
            "valid_to": None,
        }


def _preview(engine: sa.Engine, url: str, scope: Scope, changed: int) -> Report:
    with Studiolab(CODE, url, "token") as client:
        report = lists.synchronise(engine, client, "prices", scope, as_of=AS_OF, preview=True)
    assert report.counts.updated == changed, report
    return report


def _reference(connection: psycopg.Connection, url: str, clinic: int, changed: int) -> None:
    """COPY of the same records, and the one comparison, by a connection that is open already, as ours is."""
    connection.execute("""
        CREATE TEMP TABLE incoming (
            service text, agreement text, collaborator text, amount numeric(10, 2),
            patient_share numeric(10, 2), currency text, vat_rate numeric(5, 2), valid_from date, valid_to date)
        ON COMMIT DROP
    """)
    with connection.cursor().copy("COPY incoming FROM STDIN") as copy:
        for items in wire.pages(url, "prices"):
            for item in items:
                copy.write_row([item[name] for name in FIELDS])
    connection.execute("ANALYZE incoming")
    found = connection.execute(DIFFERENCE, {"clinic": clinic}).fetchone()
    connection.commit()
    assert found == (changed,)


def _applied(engine: sa.Engine, url: str, scope: Scope, changed: int) -> tuple[float, float]:
    """CPU of applying a plan of ``changed`` updates, and of the plain UPDATE of as many rows of the same table."""
    seen = _preview(engine, url, scope, changed)
    with engine.connect() as connection:
        plan = plans.load(connection, seen.plan_id or 0)
    reports: list[Report] = []
    ours = cpu(
        engine,
        lambda: reports.append(settle(engine, PRICE, scope, plan, as_of=AS_OF, actor="bench", reason="misura")),
    )
    assert (reports[0].outcome, reports[0].counts.updated) == (Outcome.OK, changed), reports[0].reasons

    def plain() -> None:
        with engine.begin() as connection:
            connection.execute(
                sa.text(f"""UPDATE price t SET amount = r.amount + 1, updated_at = now() FROM {plan.rows} r
                            WHERE r.id = t.id""")
            )

    return ours, cpu(engine, plain)


def _unchanged(engine: sa.Engine, url: str, scope: Scope) -> tuple[float, float, float]:
    """CPU of a synchronisation whose list has not changed; of the plainest program that asks the same (a new client,
    the ETag kept in a table, when it was last looked at); and of reading the list plainly, page by page."""
    kept = {"clinic": scope.clinic_id, "etag": wire.ETAG}
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE plain (clinic bigint PRIMARY KEY, etag text, looked_at timestamptz)"))
        connection.execute(sa.text("INSERT INTO plain VALUES (:clinic, :etag)"), kept)

    def ours() -> None:
        with Studiolab(CODE, url, "token") as client:
            report = lists.synchronise(engine, client, "prices", scope, as_of=AS_OF)
        assert report.reasons[0].code == "not_modified", report

    def plain() -> None:
        with engine.connect() as connection:
            etag = connection.scalar(sa.text("SELECT etag FROM plain WHERE clinic = :clinic"), kept)
        with wire.client() as client:
            answer = client.get(f"{url}/prices", params={"limit": wire.PAGE}, headers={"If-None-Match": etag})
        assert answer.status_code == 304
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE plain SET looked_at = now() WHERE clinic = :clinic"), kept)

    ways = [partial(cpu, engine, partial(_often, way)) for way in (ours, plain)]
    ways.append(partial(cpu, engine, lambda: deque(wire.pages(url, "prices"), maxlen=0)))
    each, other, whole = in_turn(ROUNDS, *ways)
    return each / UNCHANGED, other / UNCHANGED, whole


def _often(way: Callable[[], None]) -> None:
    for _ in range(UNCHANGED):
        way()


def figures(bench: Bench) -> Iterator[Figure]:
    with (
        TemporaryDirectory() as place,
        wire.serving(Path(place)) as url,
        bench.engine() as engine,
        psycopg.connect(plain_url(engine.url)) as plain_connection,
    ):
        folder = Path(place)
        scope = Scope("sync_prices", CODE, LOOKED_AT)
        held = 0
        values = {"clinics": CLINICS, "agreements": AGREEMENTS, "most": bench.size(SIZES[-1])}
        with engine.begin() as connection:
            for statement in CHAIN.split(";"):
                connection.execute(sa.text(statement), values)
        for size in map(bench.size, SIZES):
            with engine.begin() as connection:
                connection.execute(sa.text(PRICES), {**values, "held": held, "size": size})
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text("VACUUM ANALYZE"))
            held, changed = size, size // 100
            wire.write(folder, "prices", _records(size, changed), size)
            ours, reference = in_turn(
                ROUNDS,
                partial(cpu, engine, partial(_preview, engine, url, scope, changed)),
                partial(cpu, engine, partial(_reference, plain_connection, url, LOOKED_AT, changed)),
            )
            name = f"preview of {size}, 1 % changed, of {CLINICS} clinics"
            yield Figure("prices", name, ours, reference, "CPU s", 2.0, peak_mb=peak_mb())
        updates = held // 20
        wire.write(folder, "prices", _records(held, updates), held)
        applied, plain = _applied(engine, url, scope, updates)
        yield Figure("prices", f"plan apply of {updates} updates", applied, plain, "CPU s", 3.0, peak_mb=peak_mb())
        with Studiolab(CODE, url, "token") as client:  # the reference's updates are taken back: in step with the list
            assert lists.synchronise(engine, client, "prices", scope, as_of=AS_OF).outcome is Outcome.OK
        same, asked, read = _unchanged(engine, url, scope)
        yield Figure("prices", "unchanged list (304), beside the plainest question for it", same, asked, "CPU s", 2.0)
        yield Figure("prices", f"unchanged list (304), beside reading its {held} rows", same, read, "CPU s", 1.0)
