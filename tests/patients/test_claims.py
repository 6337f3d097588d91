"""Whom a link means is looked at again at every import and event; a contradiction waits for a person."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.changes.stage import Page, Unreadable
from polydesk_dagster.clinic.patients import claims, differences, identity, reviews
from polydesk_dagster.clinic.patients.cleaning import fingerprint
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from tests import world
from tests.patients.world import MARIO, Import, person
from tests.waiting import PATIENCE, until

ANNA = {
    "last_name": "Verdi",
    "first_name": "Anna",
    "sex": "F",
    "birth_date": "1999-05-02",
    "birth_place": "F205",
    "fiscal_code": None,
}
WHO: dict[str, Any] = {"as_of": datetime(2026, 3, 10, 10, tzinfo=UTC), "actor": "desk:anna"}


@pytest.fixture
def run(engine: sa.Engine) -> Import:
    imported = Import(engine)
    imported(person("P2"))
    look(imported, person("P2"))
    return imported


def look(run: Import, *items: dict[str, Any]) -> int:
    """What an import finds about those who are linked already; how many links it suspends."""
    differing: list[Any] = []
    with run.engine.begin() as connection:
        known = identity.linked(connection, run.clinic)
        list(identity.missing_only([Page(1, items, (), "s", len(items))], known, differing))
        return claims.check(connection, run.clinic, differing, world.AS_OF)


def suspended(run: Import) -> list[Any]:
    return run.rows("SELECT external_id FROM patient_link WHERE suspended_at IS NOT NULL")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"last_name": "ROSSI", "email": "altra@posta.it"},
        {"birth_date": "1980-01-02"},
        {"last_name": "Bianchi"},
        {"fiscal_code": None},
        {"sex": None, "birth_date": None},
    ],
    ids=["nothing", "spelling", "a-date-corrected", "married", "without-code", "less-is-said"],
)
def test_a_correction_stays_linked_and_is_looked_at_once(run: Import, change: dict[str, Any]) -> None:
    said = person("P2", **change)
    assert look(run, said) == 0
    assert suspended(run) == []
    assert run.rows("SELECT identity FROM patient_link") == [(fingerprint(said),)]


def test_somebody_else_under_the_same_name_of_the_source_suspends_the_link(run: Import) -> None:
    assert look(run, person("P2", **ANNA)) == 1
    assert suspended(run) == [("P2",)]
    ((record, cause),) = run.reviews()
    assert record == "P2"
    assert cause.startswith("in studiolab è cambiata l'identità (il cognome")
    assert look(run, person("P2", **ANNA)) == 0, "asked once"
    assert run.rows("SELECT last_name FROM patient") == [("Rossi",)], "nothing of a patient is overwritten"


def _review(run: Import) -> int:
    ((review,),) = run.rows("SELECT id FROM patient_review WHERE state = 'open'")
    return int(review)


def test_a_person_says_that_it_is_the_same_and_the_link_is_whole_again(run: Import) -> None:
    look(run, person("P2", **ANNA))
    ((patient,),) = run.rows("SELECT id FROM patient")
    with run.engine.begin() as connection:
        assert reviews.link(connection, _review(run), patient, **WHO).counts.updated == 1
    assert suspended(run) == []
    assert run.rows("SELECT patient_id, made_by FROM patient_link") == [(patient, "person")]
    assert run.rows("SELECT count(*) FROM patient_link_ended") == [(1,)]


def test_a_person_says_that_it_is_somebody_new(run: Import) -> None:
    look(run, person("P2", **ANNA))
    with run.engine.begin() as connection:
        report = reviews.create(connection, _review(run), **WHO)
    assert report.counts.created == 1, [teller().reason(reason) for reason in report.reasons]
    assert run.rows("SELECT p.last_name FROM patient_link l JOIN patient p ON p.id = l.patient_id") == [("Verdi",)]
    assert run.rows("SELECT count(*) FROM patient") == [(2,)]


def test_the_hash_is_of_who_somebody_is_however_it_is_written() -> None:
    assert fingerprint(MARIO) == fingerprint(MARIO | {"last_name": " ROSSI", "updated_at": "2026-02-02T00:00:00Z"})
    assert fingerprint(person("P1", last_name="Nicolò")) == fingerprint(person("P9", last_name="Nicolo'"))
    assert fingerprint(MARIO) != fingerprint(MARIO | {"birth_date": "1980-01-02"})


NAMES = st.sampled_from(
    ("Rossi", " ROSSI", "De  Luca", "D'Angelo", "Nicolò", "Nicolo'", "Anna-Maria", "Öz", "Li.", "|")
)
CODES_DRAWN = st.sampled_from((None, "", MARIO["fiscal_code"], "rss mra 80a01 h501u", "STP1234567890123", "PIPPO"))
PEOPLE = st.lists(
    st.fixed_dictionaries(
        {
            "last_name": NAMES,
            "first_name": NAMES,
            "fiscal_code": CODES_DRAWN,
            "sex": st.sampled_from(("M", "F", "", None)),
        },
        optional={"birth_date": st.sampled_from((None, " 1980-01-01", "1999-05-02", "2000-02-30"))},
    ),
    min_size=8,
    max_size=24,
)


@given(PEOPLE)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whom_an_import_links_needs_no_second_look(run: Import, people: list[dict[str, Any]]) -> None:
    with run.engine.begin() as connection:
        world.clear(connection, "patient", "patient_review")
    said = {f"P{number}": person(f"P{number}", **fields) for number, fields in enumerate(people)}
    run(*said.values())
    noted = dict(run.rows("SELECT external_id, identity FROM patient_link"))
    assert noted == {name: fingerprint(said[name]) for name in noted}
    with run.engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient_link SET identity = NULL"))
    assert look(run, *said.values()) == 0
    assert dict(run.rows("SELECT external_id, identity FROM patient_link")) == noted


def test_whom_a_person_has_linked_is_not_contradicted_by_what_she_saw(engine: sa.Engine) -> None:
    run = Import(engine)
    run(person("P1"))
    hers = person("P2", **{**ANNA, "fiscal_code": MARIO["fiscal_code"]})
    run(hers)
    ((patient,),) = run.rows("SELECT id FROM patient")
    with run.engine.begin() as connection:
        assert reviews.link(connection, _review(run), patient, **WHO, reason="è la stessa").counts.updated == 1
    assert look(run, hers) == 0
    assert suspended(run) == []
    assert look(run, hers | {"last_name": "Neri"}) == 1, "what she has not seen is compared"


def test_a_code_that_the_source_learns_later_is_filled_in(engine: sa.Engine) -> None:
    run = Import(engine)
    run(person("P2", fiscal_code=None))
    look(run, person("P2", fiscal_code=None))
    assert look(run, person("P2")) == 0
    assert run.rows("SELECT fiscal_code, fiscal_code_kind FROM patient") == [(MARIO["fiscal_code"], "CF")]
    assert not suspended(run)


TWO = {"P1": {"first_name": "Mario"}, "P2": {"first_name": "Maria", "sex": "F"}}
CODES = {"P1": "RSSMRA80A01H501U", "P2": "RSSMRA80A41H501Y"}


def test_two_clinics_that_learn_of_the_same_people_in_opposite_order_wait_for_each_other(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "AT_ONCE", 1)
    clinics = [Import(engine), Import(engine, "MI01")]
    clinics[0](*(person(name, **who, fiscal_code=None) for name, who in TWO.items()))
    with engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
                       SELECT :clinic, external_id, patient_id, 'person', made_at FROM patient_link"""),
            {"clinic": clinics[1].clinic},
        )
    halfway = threading.Barrier(2)

    def learn(run: Import, *names: str) -> int:
        def said() -> Iterator[dict[str, Any]]:
            yield person(names[0], **TWO[names[0]], fiscal_code=CODES[names[0]])
            halfway.wait(PATIENCE)
            yield person(names[1], **TWO[names[1]], fiscal_code=CODES[names[1]])

        with engine.begin() as connection:
            return claims.check(connection, run.clinic, said(), world.AS_OF)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(learn, clinics[0], "P1", "P2"), pool.submit(learn, clinics[1], "P2", "P1")]
        assert [each.result() for each in both] == [0, 0]
    assert clinics[0].rows("SELECT DISTINCT fiscal_code FROM patient ORDER BY 1") == sorted(
        [(c,) for c in CODES.values()]
    )
    assert clinics[0].rows("SELECT count(*) FROM patient_link WHERE identity IS NOT NULL") == [(4,)]


def test_a_code_that_two_clinics_learn_at_once_is_given_to_one(engine: sa.Engine) -> None:
    here, there = Import(engine), Import(engine, "MI01")
    with engine.begin() as connection:
        for run in (here, there):
            connection.execute(
                sa.text("""
                    WITH one AS (
                        INSERT INTO patient (last_name, first_name, sex, birth_date, birth_place)
                        VALUES ('Rossi', 'Mario', 'M', '1980-01-01', 'H501') RETURNING id)
                    INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
                    SELECT :clinic, 'P1', id, 'person', now() FROM one"""),
                {"clinic": run.clinic},
            )

    def learn() -> None:
        with engine.begin() as connection:
            claims.check(connection, there.clinic, [MARIO], world.AS_OF)

    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            claims.check(connection, here.clinic, [MARIO], world.AS_OF)
            late = pool.submit(learn)
            until(lambda: late.done() or here.rows(waits), "the other clinic comes")
        late.result()
    assert here.rows(
        "SELECT clinic_id FROM patient_link JOIN patient p ON p.id = patient_id WHERE fiscal_code <> ''"
    ) == [(here.clinic,)]
    assert here.rows("SELECT clinic_id, field FROM patient_discrepancy") == [(there.clinic, "fiscal_code")]


def test_who_is_compared_waits_for_no_import_of_another_clinic(run: Import) -> None:
    with run.engine.begin() as importing:
        importing.execute(sa.text("LOCK TABLE patient IN SHARE ROW EXCLUSIVE MODE"))
        with run.engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
            assert claims.check(connection, run.clinic, [person("P2", **ANNA)], world.AS_OF) == 1


@pytest.mark.parametrize("code", ["RSSMRA80A01H501X", MARIO["fiscal_code"][:-1] + "?"], ids=["wrong", "none"])
def test_a_code_that_is_not_sound_is_not_filled_in(engine: sa.Engine, code: str) -> None:
    run = Import(engine)
    run(person("P2", fiscal_code=None))
    look(run, person("P2", fiscal_code=None))
    assert look(run, person("P2", fiscal_code=code)) == 0
    assert run.rows("SELECT fiscal_code FROM patient") == [(None,)]


def test_a_later_code_that_somebody_else_has_is_noted_for_a_person(engine: sa.Engine) -> None:
    run = Import(engine)
    run(person("P2", fiscal_code=None))
    look(run, person("P2", fiscal_code=None))
    with engine.begin() as connection:
        other = {"last_name": "Altro", "first_name": "Uno", "fiscal_code": MARIO["fiscal_code"]}
        code = {"fiscal_code_canonical": MARIO["fiscal_code"], "fiscal_code_kind": "CF"}
        world.insert(connection, "patient", [other | code])
    assert look(run, person("P2")) == 0
    with engine.connect() as connection:
        (found,) = differences.listed(connection, clinic="BO01", limit=9)
    assert (found.external_id, found.what) == ("P2", "fiscal_code")
    assert run.rows("SELECT fiscal_code FROM patient WHERE last_name = 'Rossi'") == [(None,)]


def test_who_is_gone_at_the_source_is_a_finding_after_two_readings(engine: sa.Engine) -> None:
    run = Import(engine)
    names = enumerate(("Rossi", "Verdi", "Bruni"))
    everybody = [person(f"P{n}", last_name=name, fiscal_code=None) for n, name in names]
    run(*everybody)

    def read(*items: dict[str, Any], minutes: int, bad: tuple[Unreadable, ...] = ()) -> int | None:
        with engine.begin() as connection:
            known = identity.linked(connection, run.clinic)
            unseen = identity.Unseen(known)
            list(identity.missing_only([Page(1, items, bad, "s", len(items))], known, [], unseen))
            if unseen.names is None:
                return None
            at = world.AS_OF + timedelta(minutes=minutes)
            differences.missing(connection, run.clinic, unseen.names, at)
            return differences.gone(connection, run.clinic, at)

    assert read(*everybody[:2], minutes=1) == 0  # once is no proof
    assert read(*everybody[:1], minutes=2) == 1
    with engine.connect() as connection:
        gone = differences.listed(connection, limit=9)
    assert [(each.external_id, each.what) for each in gone] == [("P2", "gone_at_source"), ("P1", "gone_at_source")]
    unreadable = Unreadable(None, "invalid", Reason("wire_not_foreseen"), None)
    assert read(*everybody[:1], minutes=3, bad=(unreadable,)) is None  # it could be either of them
    assert read(*everybody, minutes=4) == 0
    with engine.connect() as connection:
        assert not differences.listed(connection, limit=9)


def test_two_places_that_have_become_one_differ_no_more(run: Import) -> None:
    def differ() -> list[str]:
        with run.engine.connect() as connection:
            return [each.what for each in differences.listed(connection, limit=9)]

    with run.engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO patient_discrepancy (clinic_id, patient_id, field, ours, theirs, noticed_at)
                       SELECT clinic_id, patient_id, 'birth_place', 'A771', 'M320', now() FROM patient_link""")
        )
    assert differ() == ["birth_place"]
    place = {"cadastral_code": "A771", "name": "Prima", "valid_from": "1900-01-01", "valid_to": "2014-01-01",
             "successor": "M320", "istat_code": "058091", "province": "BO", "region": "Emilia-Romagna"}  # fmt: skip
    with run.engine.begin() as connection:
        world.insert(connection, "municipality", [place])
    assert differ() == []
