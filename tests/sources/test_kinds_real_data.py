"""The engine on real lists: municipalities from one edition to the next, and a tariff reform."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import plans, show
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.stage import Unreadable
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.outcome import Outcome, Reason, Report
from polydesk_dagster.sources.kinds.municipalities import MUNICIPALITY
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from tests import world
from tests.changes import world as w

AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
CHAIN = Scope("import_municipalities")


def _plan(engine: sa.Engine, report: Report) -> Plan:
    assert report.plan_id is not None
    with engine.connect() as connection:
        return plans.load(connection, report.plan_id)


def _municipalities(engine: sa.Engine, records: list, bad: list[Unreadable] = ()) -> Report:
    return synchronise(engine, MUNICIPALITY, CHAIN, w.pages(records, bad=bad), as_of=AS_OF)


def test_municipalities_of_istat_2023_to_2024(engine: sa.Engine, shared_data: Path) -> None:
    folder = shared_data / "comuni"
    first = _municipalities(engine, w.istat(folder / "istat_elenco_comuni_2023-11-05.csv.gz"))
    assert (first.outcome, first.counts.created) == (Outcome.OK, 7901)
    second = _municipalities(engine, w.istat(folder / "istat_situas_comuni_2024-04-26.csv.gz"))
    counts = second.counts
    assert (second.outcome, counts.created, counts.retired, counts.updated) == (Outcome.OK, 1, 3, 5)
    with engine.connect() as connection:
        rows = list(show.rows(connection, _plan(engine, second), MUNICIPALITY))
    renamed = {row.after.get("name") or row.after["other_name"] for row in rows if row.action == "update"}
    assert renamed == {
        "Montemagno Monferrato",
        "Campospinoso Albaredo",
        "Popoli Terme",
        "Montagna sulla strada del vino",
        "Sovodnje ob Soči",
    }
    again = _municipalities(engine, w.istat(folder / "istat_situas_comuni_2024-04-26.csv.gz"))
    assert (again.outcome, again.counts.changed) == (Outcome.NOTHING_TO_DO, 0)


@pytest.mark.slow
def test_municipalities_of_anpr_2020_to_2023(engine: sa.Engine, shared_data: Path) -> None:
    """Every row is written, unchanged, or named with what is wrong with it; nothing is lost between them."""
    folder = shared_data / "comuni"
    for name in ("anpr_archivio_comuni_2020-08-12.csv.gz", "anpr_archivio_comuni_2023-10-03.csv.gz"):
        records = w.anpr(folder / name)
        bad = [
            Unreadable(r.cadastral_code, "invalid", Reason("wire_not_foreseen"), None)
            for r in records
            if r.cadastral_code == "ND"
        ]
        good = [r for r in records if r.cadastral_code != "ND" and len(r.province) == 2 and r.province.isalpha()]
        report = _municipalities(engine, good, bad)
        plan = _plan(engine, report)
        assert plan.tally["rejected"] == len(bad)
        if "2023" in name:  # two rows of that edition contradict each other: a person has to look
            assert report.outcome is Outcome.REFUSED
            assert [guard.name for guard in plan.failed_guards] == ["duplicate_keys"]
            report = settle(
                engine,
                MUNICIPALITY,
                CHAIN,
                plan,
                as_of=AS_OF,
                actor="desk:anna",
                reason="due righe doppie, viste",
                past_guards=["duplicate_keys"],
            )
        assert report.outcome is Outcome.PARTIAL, report.reasons
        in_force = {r.cadastral_code for r in good if r.valid_to is None}
        with engine.connect() as connection:
            ours = set(connection.scalars(sa.text("SELECT cadastral_code FROM municipality WHERE valid_to IS NULL")))
            conflicts = [row for row in show.rows(connection, plan, MUNICIPALITY) if row.action == "conflict"]
        named = {row.after["cadastral_code"] for row in conflicts}
        assert in_force - named <= ours
        assert ours <= in_force | named
        assert all(row.finding in {"overlapping", "duplicate"} for row in conflicts)
    again = _municipalities(engine, good, bad)
    assert not _plan(engine, again).writes


def test_a_tariff_reform_is_counted_stopped_and_applied_on_purpose(engine: sa.Engine, shared_data: Path) -> None:
    folder = shared_data / "listino"
    lists = {
        version: w.tariffs(folder / f"umbria_nomenclatore_{version}.csv.gz")
        for version in ("v03_2024-09-17", "v04_2025-01-09", "v05_2024-09-17")
    }
    with engine.begin() as connection:
        clinic = world.clinic(connection)
    offered = {t.code: t for tariffs in lists.values() for t in tariffs}
    services = [w.service(f"S{t.code}", t.code, t.name) for t in offered.values()]
    report = synchronise(engine, SERVICE, Scope("sync_services", "BO01", clinic), w.pages(services), as_of=AS_OF)
    assert (report.outcome, report.counts.created) == (Outcome.OK, len(offered))

    scope = Scope("sync_prices", "BO01", clinic)

    def sync(version: str) -> Report:
        records = [w.price(f"S{t.code}", str(t.amount), valid_from=t.valid_from) for t in lists[version]]
        return synchronise(engine, PRICE, scope, w.pages(records), as_of=AS_OF)

    v03, v04, v05 = lists
    assert sync(v03).counts.created == 1975
    reform = sync(v04)
    plan = _plan(engine, reform)
    assert reform.outcome is Outcome.REFUSED
    assert {"too_many_changed", "too_many_retired"} <= {guard.name for guard in plan.failed_guards}
    assert {"price_jump", "code_reused"} <= {guard.name for guard in plan.holding_guards}
    assert (plan.tally["missing_here"], plan.tally["missing_there"], plan.tally["differs"]) == (1069, 934, 1036)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM price WHERE valid_to IS NULL")) == 1975
    passed = [guard.name for guard in plan.speaking_guards]
    applied = settle(
        engine, PRICE, scope, plan, as_of=AS_OF, actor="desk:anna", reason="riforma tariffaria", past_guards=passed
    )
    assert applied.outcome is Outcome.OK
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM price WHERE valid_to IS NULL")) == 2110
        reused = connection.execute(
            sa.text("""SELECT p.amount FROM price p JOIN service s ON s.id = p.service_id
                       WHERE s.code = '69.92.4' ORDER BY p.valid_from""")
        )
        assert [str(amount) for (amount,) in reused] == ["2803.90", "99.00"]
    news = sync(v05)
    plan = _plan(engine, news)
    assert (news.outcome, plan.tally["missing_here"], plan.tally.get("differs", 0)) == (Outcome.OK, 8, 0)
    assert news.counts.changed == 8
    assert sync(v05).outcome is Outcome.NOTHING_TO_DO
