from __future__ import annotations

import gzip
import json
import threading
from datetime import UTC, date, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from tests.statistics import world
from tests.waiting import until
from tests.warm import Program

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)


@pytest.fixture
def chain(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        world.chain(connection)
    return engine


def _execute(engine: sa.Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement))


def _served(engine: sa.Engine) -> dict[tuple[str, str], sa.Row]:
    query = sa.text("""
        SELECT c.code, kind, v.version, v.generation, v.etag, v.body, v.zipped, v.stale_on
        FROM cache_current JOIN cache_version v USING (clinic_id, kind, version) JOIN clinic c ON c.id = v.clinic_id""")
    with engine.connect() as connection:
        return {(row.code, row.kind): row for row in connection.execute(query)}


def _document(engine: sa.Engine, code: str, kind: str) -> list[dict[str, object]]:
    row = _served(engine)[code, kind]
    assert gzip.decompress(row.zipped) == row.body
    return json.loads(row.body)[kind]


def test_documents_hold_what_is_in_use_in_italian_order(chain: sa.Engine) -> None:
    _execute(
        chain,
        """
        INSERT INTO specialist (id, clinic_id, last_name, first_name, active, deleted_at, ends_on, sort_name,
                                sort_name_manual) VALUES
            (11, 1, 'Èrcoli', 'Ada', true, NULL, NULL, NULL, false),
            (12, 1, 'Fuori', 'Uso', false, NULL, NULL, NULL, false),
            (13, 1, 'Via', 'Andato', true, NULL, '2026-03-29', NULL, false),
            (14, 1, 'Cancellato', 'Ivo', true, now(), NULL, NULL, false),
            (15, 1, 'Zeta', 'Primo', true, NULL, NULL, 'aaa primo', true);
        INSERT INTO municipality (cadastral_code, valid_from, istat_code, name, province, region)
        VALUES ('A944', '1861-03-17', '037006', 'Bologna', 'BO', 'Emilia-Romagna')""",
    )
    report = caches.refresh(chain, AS_OF)
    assert (report.outcome, report.counts.created) == (Outcome.OK, 6)
    specialists = _document(chain, "BO01", "specialists")
    assert [person["last_name"] for person in specialists] == ["Zeta", "D'Angelo", "De Luca", "Èrcoli"]
    assert specialists[2] == {
        "id": 1, "sort": "DELUCA  ANNA", "title": "Dott.ssa", "last_name": "De Luca", "first_name": "Anna",
        "specialties": ["Cardiologia"], "locations": [1], "services": [1], "online": True,
    }  # fmt: skip
    assert [place["name"] for place in _document(chain, "BO01", "locations")] == ["Centro", "Fiera"]
    assert _document(chain, "BO01", "locations")[0]["municipality"] == "Bologna"
    assert _document(chain, "VUO1", "specialists") == []


def test_unchanged_content_keeps_its_version_and_writes_nothing(chain: sa.Engine) -> None:
    caches.refresh(chain, AS_OF)
    before = _served(chain)
    assert caches.refresh(chain, AS_OF).outcome is Outcome.NOTHING_TO_DO
    _execute(chain, "UPDATE specialist SET updated_at = now(), email = 'nuova@example.test' WHERE id = 1")
    report = caches.refresh(chain, AS_OF)
    assert (report.outcome, report.counts.unchanged) == (Outcome.NOTHING_TO_DO, 2)
    assert _served(chain) == before
    with chain.connect() as connection:
        assert caches.due(connection, AS_OF) is not None


def test_a_change_makes_one_new_version_of_one_document(chain: sa.Engine) -> None:
    caches.refresh(chain, AS_OF)
    before = _served(chain)
    _execute(chain, "UPDATE agenda SET online = false WHERE id = 1")
    with chain.connect() as connection:
        assert caches.due(connection, AS_OF) is None
    assert caches.refresh(chain, AS_OF).counts.updated == 1
    after = _served(chain)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {("BO01", "specialists")}
    assert after["BO01", "specialists"].version == before["BO01", "specialists"].version + 1
    for _ in range(3):
        _execute(chain, "UPDATE agenda SET online = NOT online WHERE id = 1")
        caches.refresh(chain, AS_OF)
    with chain.connect() as connection:
        kept = connection.scalar(
            sa.text("SELECT count(*) FROM cache_version WHERE clinic_id = 1 AND kind = 'specialists'")
        )
    assert kept == 2


def test_the_calendar_alone_changes_a_document(chain: sa.Engine) -> None:
    _execute(chain, "UPDATE specialist SET ends_on = '2026-04-02' WHERE id = 1")
    caches.refresh(chain, AS_OF)
    assert _served(chain)["BO01", "specialists"].stale_on == date(2026, 4, 3)
    with chain.connect() as connection:
        assert caches.due(connection, datetime(2026, 4, 2, 21, 59, tzinfo=UTC)) is not None
        assert caches.due(connection, datetime(2026, 4, 2, 22, 1, tzinfo=UTC)) is None
    caches.refresh(chain, datetime(2026, 4, 2, 22, 1, tzinfo=UTC))
    assert [person["id"] for person in _document(chain, "BO01", "specialists")] == [3]


def test_clearing_switches_one_clinic_to_a_fresh_generation(chain: sa.Engine) -> None:
    caches.refresh(chain, AS_OF)
    before = _served(chain)
    report = caches.clear(chain, AS_OF, "BO01")
    assert report.counts.updated == 2
    after = _served(chain)
    for key in after:
        cleared = key[0] == "BO01"
        assert (after[key].etag != before[key].etag) == cleared
        assert after[key].generation == 1 + cleared
        assert after[key].body == before[key].body
    assert caches.clear(chain, AS_OF).counts.updated == 6
    with chain.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM cache_version")) == 6
    with pytest.raises(PermanentError, match="XX99"):
        caches.clear(chain, AS_OF, "XX99")


def test_a_clinic_out_of_use_is_no_longer_served_and_a_preview_keeps_nothing(chain: sa.Engine) -> None:
    caches.refresh(chain, AS_OF)
    _execute(chain, "UPDATE clinic SET active = false WHERE id = 3")
    assert caches.refresh(chain, AS_OF, preview=True).counts.retired == 2
    assert ("VUO1", "specialists") in _served(chain)
    assert caches.refresh(chain, AS_OF).counts.retired == 2
    assert ("VUO1", "specialists") not in _served(chain)


def test_there_is_never_an_empty_moment(chain: sa.Engine) -> None:
    caches.refresh(chain, AS_OF)
    counts, stop = set(), threading.Event()

    def read() -> None:
        query = sa.text("SELECT count(*) FROM cache_current JOIN cache_version USING (clinic_id, kind, version)")
        with chain.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.is_set():
                counts.add(connection.scalar(query))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        caches.clear(chain, AS_OF)
    stop.set()
    reader.join()
    assert counts == {6}


@pytest.mark.slow
def test_a_killed_clearing_leaves_the_old_generation_whole(chain: sa.Engine, database: URL) -> None:
    caches.refresh(chain, AS_OF)
    before = _served(chain)
    code = (
        "import sys; from datetime import UTC, datetime; from sqlalchemy.engine import make_url\n"
        "from polydesk_dagster.clinic.caches import documents as caches\n"
        "from polydesk_dagster.database.engine import create_engine\n"
        "caches.clear(create_engine(make_url(sys.argv[1])), datetime(2026, 3, 30, tzinfo=UTC))"
    )
    with chain.begin() as blocker:
        blocker.execute(sa.text("LOCK TABLE cache_change IN SHARE MODE"))  # stops it when all is built
        killed = Program(code, database.render_as_string(hide_password=False))
        waiting = sa.text(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = CAST('cache_change' AS regclass)"
        )
        until(lambda: blocker.scalar(waiting))
        killed.kill()
        killed.wait()
    assert _served(chain) == before
    caches.clear(chain, AS_OF)
    assert {row.generation for row in _served(chain).values()} == {2}


def test_a_change_that_commits_during_a_refresh_is_built_by_the_next(chain: sa.Engine) -> None:
    caches.refresh(chain, AS_OF)
    with chain.connect() as slow:
        slow.execute(sa.text("UPDATE specialist SET first_name = 'Nuova' WHERE id = 1"))
        _execute(chain, "UPDATE specialist SET first_name = 'Altra' WHERE id = 3")
        caches.refresh(chain, AS_OF)
        slow.commit()
    caches.refresh(chain, AS_OF)
    assert {person["first_name"] for person in _document(chain, "BO01", "specialists")} == {"Nuova", "Altra"}
