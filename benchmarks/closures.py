"""Importing a closed day, with the slots of its days: the cost grows with the days it touches, not with the table.

Measured is the CPU of the server and of this process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, cpu, peak_mb
from benchmarks.slots import CHAIN, CLINICS
from polydesk_dagster.central import Closure
from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.outcome import Report

AS_OF = datetime(2026, 1, 12, 2, 0, tzinfo=UTC)
DAY = "2026-02-04"
YEAR = 2026


def _days(*days: str) -> tuple[Closure, ...]:
    return tuple(
        Closure.model_validate({"id": day, "name": "Prova", "date_from": day, "date_to": day, "scope": "national"})
        for day in days
    )


def _import(engine: sa.Engine, *days: str) -> Report:
    return closures.import_year(engine, YEAR, "v", _days(*days), (), as_of=AS_OF)


def _measure(bench: Bench, agendas: int, horizon: int) -> tuple[float, float, int]:
    """Seconds to import one more closed day, seconds of the plain UPDATE of as many slots, and how many they are."""
    with bench.engine() as engine:
        with engine.begin() as connection:
            for statement in CHAIN.split(";"):
                values = {"agendas": agendas, "clinics": CLINICS, "horizon": horizon}
                connection.execute(sa.text(statement), values)
        slots.generate(engine, AS_OF)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE"))
        _import(engine, "2026-01-20", "2026-01-21")
        reports: list[Report] = []
        ours = cpu(engine, lambda: reports.append(_import(engine, "2026-01-20", "2026-01-21", DAY)))
        assert reports[0].counts.created == 1, reports[0].reasons
        with engine.begin() as connection:
            gone = connection.execute(
                sa.text("SELECT count(*) FROM slot WHERE local_date = :day AND state = 'retired'"), {"day": DAY}
            ).scalar_one()

        def plain() -> None:
            with engine.begin() as connection:
                connection.execute(
                    sa.text("""UPDATE slot SET state = 'retired' FROM agenda a
                               WHERE a.id = slot.agenda_id AND a.auto_generate AND local_date = :day"""),
                    {"day": "2026-02-05"},
                )

        return ours, cpu(engine, plain), int(gone)


def figures(bench: Bench) -> Iterator[Figure]:
    agendas = bench.size(1000)
    small, _, _ = _measure(bench, agendas, 30)
    large, plain, gone = _measure(bench, agendas, 300)
    assert gone, "the closed day had no slots"
    yield Figure("closures", "one day, ten times the slots in the table", large, small, "CPU s", 1.5, peak_mb=peak_mb())
    yield Figure("closures", f"one day ({gone} slots), beside their plain UPDATE", large, plain, "CPU s", 8.0)
