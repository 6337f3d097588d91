"""A list that has not changed is left unread only while nothing that it was compared with has been written since."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from polydesk_dagster.changes import step
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.studiolab.client import Studiolab
from tests import world
from tests.patients.world import person
from tests.sources.lab import AGREEMENTS, PRICES, Lab, lab, synced
from tests.sources.test_remote_policy import FAST

__all__ = ["lab", "synced"]  # fixtures

TABLES = sorted({table for kind in lists.KINDS.values() for table in kind.source.compared})  # type: ignore[union-attr]
WAYS = (
    "UPDATE {t} SET clinic_id = clinic_id WHERE {w}",
    "UPDATE {t} SET clinic_id = :other WHERE {w}",
    "UPDATE {t} SET clinic_id = :ours WHERE {w}",
    "DELETE FROM {t} WHERE {w}",
    "WITH gone AS (DELETE FROM {t} WHERE {w} RETURNING *) INSERT INTO {t} SELECT * FROM gone",
    "WITH gone AS (DELETE FROM {t} WHERE {w} RETURNING *) INSERT INTO {t} SELECT * FROM gone ON CONFLICT DO NOTHING",
    "MERGE INTO {t} USING (SELECT 1) one ON {w} WHEN MATCHED THEN UPDATE SET clinic_id = :other",
    "MERGE INTO {t} USING (SELECT 1) one ON {w} WHEN MATCHED THEN DELETE",
    "TRUNCATE {t} CASCADE",
)
VALUES = {
    "price": "UPDATE price SET amount = amount + 1 WHERE {w}",
    "service": "UPDATE service SET external_id = 'X' WHERE {w}",
    "agreement": "UPDATE agreement SET valid_to = '2030-01-01' WHERE {w}",
    "specialist": "UPDATE specialist SET last_name = 'Altra' WHERE {w}",
    "patient_link": "UPDATE patient_link SET suspended_at = now(), suspended_reason = 'x' WHERE {w}",
    "patient_review": "UPDATE patient_review SET state = 'dismissed', decided_at = now() WHERE {w}",
    "municipality": "UPDATE municipality SET name = 'Altrove' WHERE true",
}
ROWS = ("true", "false", "clinic_id = :ours", "clinic_id = :other", "clinic_id <> :ours")


@pytest.fixture(scope="module")
def chain(unwritten: sa.Engine) -> Iterator[sa.Connection]:
    """Two clinics with a record of everything, each of which could be the other's, in a transaction that is never
    committed."""
    town = {"cadastral_code": "A944", "valid_from": "1900-01-01", "istat_code": "037006", "name": "Bologna",
            "province": "BO", "region": "Emilia-Romagna"}  # fmt: skip
    with unwritten.connect() as connection:
        world.insert(connection, "municipality", [town])
        for code in ("BO01", "MI01"):
            clinic = world.clinic(connection, code)
            service = world.service(connection, clinic, external_id=f"S1{code}")
            world.specialist(connection, clinic, external_id=f"D1{code}")
            since = {"clinic_id": clinic, "valid_from": "2020-01-01"}
            world.insert(connection, "agreement", [since | {"external_id": f"C1{code}", "name": "F", "kind": "fund"}])
            world.insert(connection, "price", [since | {"service_id": service, "amount": 5}])
            about = {"clinic_id": clinic, "external_id": f"P1{code}"}
            world.insert(connection, "patient_review", [about | {"cause": "x", "record": {}, "found_at": world.AS_OF}])
            connection.execute(
                sa.text("INSERT INTO patient_link VALUES (:clinic_id, :external_id, :patient, 'code', NULL, now())"),
                about | {"patient": world.patient(connection)},
            )
        for kind in lists.KINDS.values():
            scope, at = _scope(connection, kind), step.written(connection, kind, _scope(connection, kind))
            connection.execute(
                sa.text("""INSERT INTO source_state (service, scope, records, etag, local_version, seen_at, source)
                           VALUES (:service, :scope, 1, 'same', :ours, now(), 'here')"""),
                {"service": step.source_name(kind, scope), "scope": scope.name, "ours": str(at)},
            )
        yield connection


def _scope(connection: sa.Connection, kind: Kind) -> Scope:
    if kind.name == "municipality":
        return Scope("sync", None, None)
    return Scope("sync", "BO01", connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'BO01'")))


def _believed(connection: sa.Connection, feed: str, scope: Scope) -> str | None:
    """The ETag of a list with which we were in step when all began."""
    kind = lists.KINDS[feed]
    return step.known_etag(connection, kind, scope, ours=step.written(connection, kind, scope), source="here")


def _rows(connection: sa.Connection) -> dict[str, object]:
    """By table all that the clinic has of it."""
    parts = [
        f"""SELECT '{table}', array_agg(CAST(t AS text) ORDER BY CAST(t AS text)) FROM {table} t
            WHERE {"true" if table == "municipality" else "clinic_id = (SELECT id FROM clinic WHERE code = 'BO01')"}"""
        for table in TABLES
    ]
    return dict(connection.execute(sa.text(" UNION ALL ".join(parts))).all())


@given(
    written=st.lists(
        st.tuples(st.sampled_from(TABLES), st.sampled_from((*WAYS, "")), st.sampled_from(ROWS)), min_size=1, max_size=3
    )
)
@settings(max_examples=40)
def test_whatever_changes_what_a_list_is_compared_with_has_it_read(
    chain: sa.Connection, written: list[tuple[str, str, str]]
) -> None:
    """Beside all that it is compared with, row by row."""
    with chain.begin_nested() as back:
        ours, other = chain.scalars(sa.text("SELECT id FROM clinic ORDER BY code")).all()[::-1]
        before = _rows(chain)
        for table, way, rows in written:
            statement = VALUES[table] if table == "municipality" or not way else way
            try:
                with chain.begin_nested():
                    chain.execute(sa.text(statement.format(t=table, w=rows)), {"ours": ours, "other": other})
            except sa.exc.DBAPIError:
                pass  # the schema forbids it
        after = _rows(chain)
        for feed, kind in lists.KINDS.items():
            assert kind.source is not None
            moved = any(before[table] != after[table] for table in kind.source.compared)
            assert not (moved and _believed(chain, feed, _scope(chain, kind))), feed
        back.rollback()


def test_what_others_write_has_nothing_read(chain: sa.Connection) -> None:
    with chain.begin_nested() as back:
        chain.execute(sa.text("UPDATE patient SET last_name = 'Altra'"))
        for table in set(TABLES) - {"municipality"}:
            for way in (VALUES[table], "DELETE FROM {t} WHERE {w} AND false"):
                whose = "clinic_id = (SELECT id FROM clinic WHERE code = 'MI01')"
                assert chain.execute(sa.text(way.format(t=table, w=whose))).rowcount == ("false" not in way)
        for feed, kind in lists.KINDS.items():
            assert _believed(chain, feed, _scope(chain, kind)) == "same"
        back.rollback()


@pytest.mark.parametrize("feed", lists.KINDS)
def test_every_table_that_a_list_is_compared_with_is_named_and_counted(connection: sa.Connection, feed: str) -> None:
    """What only tells of a record that is set aside, with which no list is in step, need not be."""
    source = lists.KINDS[feed].source
    assert source is not None
    kept = set(connection.scalars(sa.text("SELECT relname FROM pg_class WHERE relkind = 'r'")))
    said = " ".join([source.desired or "", source.current or "", source.retirable, source.blocked, *source.judge])
    aside = {"patients": {"patient", "clinic"}, "prices": {"plan", "plan_hold"}}.get(feed, set())
    assert set(re.findall(r"(?:FROM|JOIN|USING)\s+(\w+)", said)) & kept - aside <= set(source.compared)
    watched = connection.scalars(
        sa.text("""SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                   WHERE t.tgname LIKE 'list_changed%' AND t.tgenabled = 'A'
                   GROUP BY c.relname HAVING bit_or(CAST(t.tgtype AS integer)) & 60 = 60""")
    ).all()
    assert set(source.compared) <= set(watched)


def _codes(report: Report) -> list[str]:
    return [reason.code for reason in report.reasons]


def test_what_was_begun_before_a_reading_and_ends_after_it_is_read(synced: Lab) -> None:
    """Nor does one writer of a clinic wait for another."""
    synced.write("UPDATE source_state SET etag = NULL")
    with synced.engine.begin() as slow:
        slow.execute(sa.text("UPDATE price SET amount = amount + 1 WHERE amount = 55"))
        with synced.engine.begin() as quick:
            quick.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            quick.execute(sa.text("UPDATE price SET amount = amount WHERE amount = 52"))
        assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO
        assert _codes(synced.sync("prices")) == ["not_modified"]
    assert synced.sync("prices").counts.updated == 1
    assert _codes(synced.sync("prices")) == ["not_modified"]


@pytest.mark.parametrize("when", ["INSERT INTO source_state", "CREATE TEMP TABLE wanted"])
@pytest.mark.parametrize("changed", [0, 1])
def test_what_ends_while_a_list_is_compared_is_read(synced: Lab, when: str, changed: int) -> None:
    """However late: between looking at ours and noting that they are in step, with something to write or nothing."""
    synced.hold(agreements=AGREEMENTS, prices=[PRICES[0] | {"amount": f"{50 + changed}.00"}, *PRICES[1:]])
    with synced.engine.begin() as connection:
        connection.execute(sa.text("UPDATE source_state SET etag = NULL"))

    def meddle(_c: object, _r: object, statement: str, *_: object) -> None:
        if when in statement and not met:
            met.append(statement)
            synced.write("UPDATE price SET amount = amount + 1 WHERE amount = 55")

    met: list[str] = []
    sa.event.listen(synced.engine, "before_cursor_execute", meddle)
    synced.sync("prices")
    sa.event.remove(synced.engine, "before_cursor_execute", meddle)
    assert met
    assert "not_modified" not in _codes(synced.sync("prices"))
    assert synced.rows("SELECT count(*) FROM price WHERE amount = 55") == [(1,)]
    assert _codes(synced.sync("prices")) == ["not_modified"]


def test_prices_are_compared_again_where_what_they_name_was_written(synced: Lab) -> None:
    synced.sync("prices")
    assert _codes(synced.sync("prices")) == ["not_modified"]
    synced.write("UPDATE service SET external_id = 'S99' WHERE external_id = 'S3'")
    assert "not_modified" not in _codes(synced.sync("prices"))


def test_many_writes_are_folded_and_stay_counted(synced: Lab) -> None:
    with synced.engine.begin() as connection:
        for _ in range(2 * step.FEW):
            connection.execute(sa.text("UPDATE price SET amount = amount"))
    count = "SELECT sum(times), count(*) FROM list_change WHERE record = 'price'"
    ((written, rows),) = synced.rows(count)
    assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO
    ((after, few),) = synced.rows(count)
    assert (after, rows >= 2 * step.FEW, few) == (written, True, 1)
    assert _codes(synced.sync("prices")) == ["not_modified"]


def test_what_an_import_notes_of_its_patients_is_no_reason_to_read_them_again(lab: Lab) -> None:
    scope = Scope("import_patients", "BO01", lab.clinic)

    def read() -> Report:
        with Studiolab("BO01", lab.url, DEMO_TOKEN, FAST) as client:
            return lists.synchronise(lab.engine, client, "patients", scope, as_of=world.AS_OF)

    lab.hold(patients=[person("P1")])
    assert read().counts.created == 1
    lab.hold(patients=[person("P1", last_name="Rosso")])
    read()
    assert lab.rows("SELECT count(*) FROM patient_link WHERE identity IS NOT NULL") == [(1,)]
    assert _codes(read()) == ["not_modified"]
    lab.write("UPDATE patient_link SET identity = 0")
    assert "not_modified" not in _codes(read())
    assert _codes(read()) == ["not_modified"]
