"""Who a patient is: codes that agree with the person, links that are certain, and doubts that wait for a person."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from codicefiscale import codicefiscale

from polydesk_dagster import changes
from polydesk_dagster.changes import plans, show
from polydesk_dagster.clinic.patients import reviews
from polydesk_dagster.clinic.patients.identity import PATIENT
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told import teller
from tests import world
from tests.patients.world import MARIO, OMOCODIA, Import, person
from tests.waiting import until


@pytest.fixture
def run(engine: sa.Engine) -> Import:
    return Import(engine)


def test_who_is_missing_is_added_once_and_never_overwritten(run: Import) -> None:
    other = person("P2", fiscal_code=None, last_name="Verdi", birth_date="1990-05-05")
    first = run(MARIO, other)
    assert (first.outcome, first.counts.created) == (Outcome.OK, 2)
    assert run.links() == [("P1", "created"), ("P2", "created")]
    again = run(person("P1", last_name="Cambiato", mobile="3400000000"), other)
    assert (again.outcome, again.counts.unchanged) == (Outcome.NOTHING_TO_DO, 2)
    assert run.rows("SELECT last_name, mobile FROM patient ORDER BY id LIMIT 1") == [("Rossi", "+393331234567")]


def test_same_code_same_person_is_linked_across_clinics(run: Import, engine: sa.Engine) -> None:
    run(MARIO)
    other = Import(engine, "MI01")
    report = other(person("X9", last_name="ROSSI", first_name="MARIO"))
    assert (report.counts.created, report.counts.updated) == (0, 1)
    assert run.rows("SELECT count(*) FROM patient") == [(1,)]
    assert run.rows("SELECT count(DISTINCT patient_id) FROM patient_link") == [(1,)]


def test_the_same_code_alone_never_makes_one_of_two(run: Import, engine: sa.Engine) -> None:
    run(MARIO)
    other = Import(engine, "MI01")
    report = other(
        person("X1", fiscal_code=OMOCODIA),
        person("X2", fiscal_code=None),
        person("X3", fiscal_code=MARIO["fiscal_code"], birth_date=None, last_name="Rossi"),
    )
    assert (report.counts.changed, report.counts.waiting) == (0, 3)
    assert [id_ for id_, _ in other.reviews()] == ["X1", "X2", "X3"]
    assert other(person("X1", fiscal_code=OMOCODIA)).counts.changed == 0


def test_two_records_with_one_code_in_one_list(run: Import) -> None:
    report = run(MARIO, person("P2", fiscal_code=OMOCODIA), person("P3"))
    assert report.counts.created == 0
    assert len(run.reviews()) == 3


def test_twice_the_same_person_is_created_once(run: Import) -> None:
    report = run(MARIO, person("P3"))
    assert (report.counts.created, report.counts.waiting) == (1, 1)
    assert run.reviews() == [("P3", "lo stesso codice fiscale di un altro record")]
    assert run(MARIO, person("P3")).counts.changed == 0


def test_nobody_is_born_or_has_died_after_today(run: Import) -> None:
    today, tomorrow = "2026-03-10", "2026-03-11"
    born = person("P1", fiscal_code=None, birth_date=tomorrow)
    died = person("P2", deceased_on=tomorrow)
    ancient = person("P4", fiscal_code=None, birth_date="1880-01-01", last_name="Blu")
    born_today = person("P3", fiscal_code=None, birth_date=today, last_name="Neri")
    assert run(born, died, born_today, ancient).counts.created == 1
    future = "la data di nascita o di decesso è nel futuro"
    assert run.reviews() == [("P1", future), ("P2", future), ("P4", "la data di nascita è prima del 1900")]


def test_an_open_case_says_what_is_doubtful_now(run: Import) -> None:
    run(person("P1", last_name="Bianchi"))
    assert run.reviews() == [("P1", "il codice fiscale non concorda con il cognome")]
    run(person("P1", last_name="Bianchi", first_name="Ugo"))
    assert run.reviews() == [("P1", "il codice fiscale non concorda con il cognome e il nome")]
    mended = "ora senza dubbi: corretto alla fonte (prima: il codice fiscale non concorda con il cognome e il nome)"
    for _ in range(2):
        assert run(MARIO).counts.changed == 0, "whoever waits is decided by a person"
        assert run.reviews() == [("P1", mended)]


CLEAR = "ora senza dubbi: i dati con cui si confronta sono cambiati (prima: {})"


def test_a_case_is_clear_once_what_it_was_compared_with_has_changed(run: Import) -> None:
    """The record is the same: its place of birth has become valid, the one who was alike is told apart now."""
    nameless = {"fiscal_code": None, "last_name": "Neri"}
    waiting = (MARIO | {"birth_place": "M320"}, person("P2", **nameless))
    run(person("P3", **nameless))
    run(*waiting)
    doubts = [
        "il codice fiscale non concorda con il luogo di nascita",
        "stesso nome e data di nascita di un paziente noto",
    ]
    assert run.reviews() == [("P1", doubts[0]), ("P2", doubts[1])]
    place = {"cadastral_code": "H501", "name": "Prima", "valid_from": "1900-01-01", "valid_to": "2014-01-01",
             "successor": "M320", "istat_code": "058091", "province": "RM", "region": "Lazio"}  # fmt: skip
    with run.engine.begin() as connection:
        world.insert(connection, "municipality", [place])
        connection.execute(sa.text("UPDATE patient SET birth_date = '1980-01-02'"))
    for _ in range(2):
        assert run(*waiting).counts.changed == 0, "a person decides"
        assert run.reviews() == [("P1", CLEAR.format(doubts[0])), ("P2", CLEAR.format(doubts[1]))]
    with run.engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient SET birth_date = '1980-01-01'"))
    run(*waiting)
    assert run.reviews() == [("P1", CLEAR.format(doubts[0])), ("P2", doubts[1])], "and doubtful again"


def test_a_link_that_a_person_has_dissolved_is_not_called_clear(run: Import) -> None:
    run(MARIO)
    with run.engine.begin() as connection:
        reviews.unlink(connection, "BO01", "P1", as_of=world.AS_OF, actor="desk:anna", reason="è un altro")
    for _ in range(2):
        run(MARIO)
        assert run.reviews() == [("P1", "collegamento sciolto")]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("Kovačević", "Kovacevic"),
        ("Popescuț", "Popescut"),
        ("Müller", "Mueller"),
        ("Groß", "Gross"),
        ("Đorđević", "Dordevic"),
        ("D'Angelo", "Dangelo"),
        ("Nicolò", "Nicolo'"),
    ],
)
def test_another_spelling_of_a_name_waits_for_a_person(run: Import, ours: str, theirs: str) -> None:
    run(person("P1", fiscal_code=None, last_name=ours))
    other = Import(run.engine, "MI01")
    assert other(person("X1", fiscal_code=None, last_name=theirs)).counts.created == 0
    assert other.reviews()[-1] == ("X1", "stesso nome e data di nascita di un paziente noto")


def test_newborns_twins_and_a_married_name(run: Import) -> None:
    born = {"fiscal_code": None, "last_name": "Neri", "birth_date": "2026-03-01", "birth_place": None}
    ada, eva = person("P1", first_name="Ada", **born), person("P2", first_name="Eva", **born)
    twins = run(ada, eva)
    assert twins.counts.created == 2
    unnamed = run(person("P3", first_name="Neonato", **born), person("P4", first_name="Neonato", **born))
    assert (unnamed.counts.created, unnamed.counts.waiting) == (0, 2)
    # A married name disagrees with the code; a date corrected at the source is no new person for who is linked.
    bianchi = person("P5", last_name="Bianchi")
    married = run(ada, eva, bianchi)
    assert married.counts.waiting == 1
    moved = person("P1", first_name="Ada", **{**born, "birth_date": "2026-03-02"})
    assert run(moved, eva, bianchi).counts.unchanged == 2


def test_a_date_put_in_for_many_hides_no_namesake(run: Import, engine: sa.Engine) -> None:
    unknown = {"fiscal_code": None, "birth_date": "1900-01-01", "birth_place": None}
    names = [f"Rossi{first}{second}" for first in "abcdefghijkl" for second in "mnopqrstuvwx"]
    people = [person(f"P{n}", last_name=name, **unknown) for n, name in enumerate(names)]
    report = run(*people, person("P900", last_name="ROSSI AM", **unknown))
    assert (report.counts.created, report.counts.waiting) == (len(names) - 1, 2)
    assert [id_ for id_, _ in run.reviews()] == ["P0", "P900"]
    other = Import(engine, "MI01")
    again = other(person("X1", last_name="Rossibn", **unknown), person("X2", last_name="Verdi", **unknown))
    assert (again.counts.created, again.counts.waiting) == (1, 1)
    assert other.reviews()[-1] == ("X1", "stesso nome e data di nascita di un paziente noto")


def applied(run: Import, report: Report) -> Report:
    with run.engine.begin() as connection:
        return changes.apply(connection, report.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")


CODELESS = {"fiscal_code": None, "first_name": "Neonato", "birth_date": "2026-03-01", "birth_place": None}


@pytest.mark.parametrize(
    ("first", "second"),
    [(CODELESS, CODELESS), (CODELESS, {}), ({}, CODELESS)],
    ids=["neither-has-a-code", "the-first-has-none", "the-second-has-none"],
)
def test_two_clinics_that_compare_at_once_do_not_make_two_of_one(
    run: Import, engine: sa.Engine, first: dict[str, Any], second: dict[str, Any]
) -> None:
    other = Import(engine, "MI01")
    who = {"first_name": "Mario", "birth_date": MARIO["birth_date"]}
    seen = run(person("P1", **{**first, **who}), preview=True), other(person("X1", **{**second, **who}), preview=True)
    assert applied(run, seen[0]).counts.created == 1
    refused = applied(other, seen[1])
    assert (refused.outcome, [reason.code for reason in refused.reasons]) == (Outcome.REFUSED, ["exists_already"])
    assert "Rossi" not in str(refused)
    assert other(person("X1", **{**second, **who})).counts.waiting == 1
    assert other.reviews() == [("X1", "stesso nome e data di nascita di un paziente noto")]
    assert run.rows("SELECT count(*) FROM patient") == [(1,)]


@pytest.mark.parametrize(("coded", "dear"), [(False, "Altra"), (True, "Rossi")])
def test_under_the_lock_names_are_looked_at_only_where_a_date_of_birth_is_met(
    run: Import, engine: sa.Engine, coded: bool, dear: str
) -> None:
    """Neither those of all whom we have, nor of all who are new where one of them was born as one of ours was."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO patient (last_name, first_name, birth_date)
                       SELECT 'Altra', 'Donna', date '1950-01-01' + n FROM generate_series(1, 3000) n""")
        )
        connection.execute(
            sa.text(f"""CREATE OR REPLACE FUNCTION name_key(name text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
                       BEGIN
                           IF name = '{dear}' THEN
                               RAISE EXCEPTION 'it costs too much to look at everybody';
                           END IF;
                           RETURN lower(name);
                       END $$""")
        )
    people = [("Rossi", date(1999, 1, 1) + timedelta(days=n)) for n in range(150)]
    people += [("Verdi", date(1950, 1, 2))] if coded else []
    said = []
    for n, (name, born) in enumerate(people):
        code = codicefiscale.encode(name, "Mario", "M", born.strftime("%d/%m/%Y"), "H501") if coded else None
        said.append(person(f"P{n}", fiscal_code=code, last_name=name, birth_date=born.isoformat()))
    assert run(*said).counts.created == len(people)


def test_while_imports_stand_in_line_a_desk_writes(run: Import, engine: sa.Engine) -> None:
    mine = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as before:
            before.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('import_patients', 0))"))
            coming = pool.submit(run, person("P1"))
            until(lambda: coming.done() or run.rows(mine) == [(1,)], "the import comes")
            assert not coming.done()
            with engine.begin() as desk:
                desk.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
                world.insert(desk, "patient", [{"last_name": "Bianchi", "first_name": "Ugo"}])
        assert coming.result().counts.created == 1


def test_whom_the_desk_types_after_the_preview_is_not_created_again(run: Import) -> None:
    seen = run(person("P1", **CODELESS), preview=True)
    with run.engine.begin() as connection:
        world.patient(connection, last_name="ROSSI", first_name="neonato", birth_date=date(2026, 3, 1))
    assert applied(run, seen).reasons[0].code == "exists_already"


def test_a_known_person_who_changes_the_kind_of_code_waits_for_a_person(run: Import, engine: sa.Engine) -> None:
    run(person("P1", fiscal_code="STP1234567890123"))
    other = Import(engine, "MI01")
    report = other(person("X1"), person("X2", fiscal_code="STP3210987654321"))
    assert (report.counts.changed, [id_ for id_, _ in other.reviews()]) == (0, ["X1", "X2"])
    with engine.connect() as connection:
        (number,) = connection.scalars(sa.text("SELECT id FROM patient_review WHERE external_id = 'X1'"))
        connection.execute(sa.text("UPDATE patient_review SET candidates = '{}'"))
        assert len(reviews.candidates(connection, number)) == 1


def test_two_people_with_one_name_and_date_are_told_apart_by_their_codes(run: Import, engine: sa.Engine) -> None:
    run(MARIO)
    assert Import(engine, "MI01")(person("X1", birth_place="F205", fiscal_code=None)).counts.created == 0
    code = codicefiscale.encode("Rossi", "Mario", "M", "01/01/1980", "F205")
    assert Import(engine, "TO01")(person("Y1", birth_place="F205", fiscal_code=code)).counts.created == 1


def test_a_patient_whose_identity_was_corrected_after_the_preview_is_not_linked(run: Import, engine: sa.Engine) -> None:
    run(MARIO)
    other = Import(engine, "MI01")
    seen = other(person("X1"), preview=True)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient SET first_name = 'Luca', birth_date = '1970-01-01'"))
    refused = applied(other, seen)
    assert (refused.outcome, [(reason.code, teller().reason(reason)) for reason in refused.reasons]) == (
        Outcome.REFUSED,
        [("barred", f"riga 1 del piano {seen.plan_id}: l'anagrafica non è più quella con cui coincideva")],
    )
    assert other.rows("SELECT external_id FROM patient_link") == [("P1",)]


def test_a_patient_who_was_taken_back_after_the_preview_is_not_linked(run: Import, engine: sa.Engine) -> None:
    first = run(MARIO)
    other = Import(engine, "MI01")
    seen = other(person("X1"), preview=True)
    with engine.begin() as connection:
        changes.undo(connection, first.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert [reason.code for reason in applied(other, seen).reasons] == ["barred"]


def test_a_link_is_taken_back_once_also_when_the_patient_has_changed(run: Import, engine: sa.Engine) -> None:
    run(MARIO)
    other = Import(engine, "MI01")
    done = other(person("X1"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient SET first_name = 'Luca'"))
        undos = [
            changes.undo(connection, done.plan_id or 0, as_of=world.AS_OF, actor="desk:anna", preview=True)
            for _ in range(2)
        ]
    assert applied(other, undos[0]).counts.updated == 1
    assert (applied(other, undos[1]).outcome, other.links()) == (Outcome.REFUSED, [("P1", "created")])
    assert run.rows("SELECT count(*) FROM audit WHERE action = 'undo'") == [(1,)]


def test_undo_keeps_a_patient_whose_wishes_the_desk_has_noted(run: Import) -> None:
    report = run(MARIO, person("P2", fiscal_code=None, last_name="Verdi"))
    with run.engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient SET preferred_channel = 'email' WHERE last_name = 'Verdi'"))
        back = changes.undo(connection, report.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert (back.outcome, back.counts.retired) == (Outcome.PARTIAL, 1)
    assert run.rows("SELECT last_name, preferred_channel FROM patient") == [("Verdi", "email")]


def test_undo_takes_created_people_back_but_not_who_came_into_use(run: Import) -> None:
    report = run(MARIO, person("P2", fiscal_code=None, last_name="Verdi"))
    with run.engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient SET mobile = '+393400000000' WHERE last_name = 'Verdi'"))
        back = changes.undo(connection, report.plan_id or 0, as_of=world.AS_OF, actor="desk:anna")
    assert (back.outcome, back.counts.retired) == (Outcome.PARTIAL, 1)
    assert "Verdi" not in str(back.reasons)
    assert run.rows("SELECT last_name FROM patient") == [("Verdi",)]
    assert run.links() == [("P2", "created")]
    assert run.rows("SELECT external_id FROM patient_link_ended") == [("P1",)]


def test_the_plan_shows_every_row_to_who_may_see_it_and_nothing_to_others(run: Import) -> None:
    report = run(MARIO, preview=True)
    assert "Rossi" not in str(report)
    assert MARIO["fiscal_code"] not in str(report)
    with run.engine.connect() as connection:
        (row,) = show.rows(connection, plans.load(connection, report.plan_id or 0), PATIENT)
    assert (row.key, row.after["last_name"]) == ("P1", "Rossi")


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (person("P\0001", sex="X"), "P1"),
        (person("P\ud8001"), "P?1"),
        (person("\0", sex="X"), "?"),
        (person(world.NOISE), world.NOISE[:255]),
        (person("P1", last_name=world.NOISE), "P1"),
        (person("P1", sex="X", note=["a\0b", {"\ud800": math.inf}]), "P1"),
        (person("P1", sex="MF", fiscal_code=None), "P1"),
    ],
    ids=["nul", "surrogate", "only-nul", "long-id", "long-name", "unknown-field", "sex"],
)
def test_whatever_is_in_a_bad_record_it_is_set_aside_alone(run: Import, bad: dict[str, Any], key: str) -> None:
    good = [person(f"G{n}", fiscal_code=None, last_name=f"Neri{'o' * n}") for n in range(10)]
    report = run(*good, bad)
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 10, 1)
    assert run.rows("SELECT record_key FROM quarantine") == [(key,)]


def test_a_record_that_cannot_be_read_waits_in_quarantine_until_mended(run: Import) -> None:
    items = [person(f"P{n}", fiscal_code=None, last_name=f"Neri{'o' * n}") for n in range(2, 12)]
    report = run(*items, person("P1", birth_date="1980-02-31"))
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 10, 1)
    assert run.rows("SELECT record_key, resolved_at IS NULL FROM quarantine") == [("P1", True)]
    again = run(*items, person("P1", birth_date="1980-02-31"))
    assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 1), "known before"
    assert run(*items, MARIO).counts.created == 1
    assert run.rows("SELECT resolved_at IS NULL FROM quarantine") == [(False,)]


def test_a_place_that_became_part_of_another_is_the_same_place(run: Import) -> None:
    """The code says where Mario was born, the source says what that place is called today."""
    town = {"istat_code": "058091", "province": "RM", "region": "Lazio", "valid_from": "1900-01-01"}
    places = [
        town | {"cadastral_code": "H501", "name": "Prima", "valid_to": "2014-01-01", "successor": "M400"},
        town | {"cadastral_code": "M400", "name": "Seconda", "valid_to": "2020-01-01", "successor": "M401"},
        town | {"cadastral_code": "M401", "name": "Terza", "valid_to": None, "successor": None},
    ]
    with run.engine.begin() as connection:
        world.insert(connection, "municipality", places)
    today, elsewhere = MARIO | {"birth_place": "M401"}, person("P2", birth_place="A944")
    report = run(today, elsewhere)
    assert report.counts.created == 1
    assert [name for name, _ in run.reviews()] == ["P2"]


@pytest.mark.parametrize(("code", "taken"), [("12345678903", True), ("12345678901", False)])
def test_a_provisional_code_is_a_code_that_is_given_up_for_the_real_one(run: Import, code: str, taken: bool) -> None:
    report = run(MARIO | {"fiscal_code": code})
    assert (report.counts.created, report.counts.waiting) == ((1, 0) if taken else (0, 1))
    assert run.reviews() == ([] if taken else [("P1", "l'ultima cifra del codice fiscale provvisorio non torna")])
    if taken:
        assert run.rows("SELECT fiscal_code, fiscal_code_kind FROM patient") == [(code, "PRV")]
        again = run(MARIO | {"fiscal_code": code}, MARIO | {"id": "P7"})
        assert (again.counts.created, [name for name, _ in run.reviews()]) == (0, ["P7"])


CHAIN = """
    INSERT INTO patient (last_name, first_name, birth_date, fiscal_code, fiscal_code_canonical, fiscal_code_kind)
    SELECT 'Bianchi' || n, 'Elena', date '1930-01-01' + n % 20000, code, code, CASE WHEN code IS NOT NULL THEN 'CF' END
    FROM (SELECT n, CASE WHEN n % 50 > 0 THEN upper(substr(md5(CAST(n AS text)), 1, 16)) END AS code
          FROM generate_series(CAST(:first AS int), :last) n) others
"""


@pytest.mark.slow
def test_a_clinic_s_import_does_not_read_through_all_patients_of_the_chain(engine: sa.Engine) -> None:
    """A thousand clinics would each read what a thousand have."""
    days = [date(1950, 1, 1) + timedelta(days=47 * n) for n in range(200)]
    looked_at: list[int] = []

    @sa.event.listens_for(engine, "commit")
    def counted(connection: sa.Connection) -> None:
        found = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'patient'"
        looked_at[-1:] = [looked_at[-1] + (connection.exec_driver_sql(found).scalar() or 0)] if looked_at else []

    try:
        for name, clinic, first, last in (("Verdi", "BO01", 1, 8_000), ("Neri", "MI01", 8_001, 32_000)):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text(CHAIN), {"first": first, "last": last})
                connection.execute(sa.text("VACUUM ANALYZE patient"))
            coming = [
                person(f"P{n}", last_name=name, birth_date=day.isoformat(), fiscal_code=code if n % 40 else None)
                for n, day in enumerate(days)
                for code in [codicefiscale.encode(name, "Mario", "M", day.strftime("%d/%m/%Y"), "H501")]
            ]
            run = Import(engine, clinic)
            looked_at.append(0)
            assert run(*coming).counts.created == len(coming)
    finally:
        sa.event.remove(engine, "commit", counted)
    assert looked_at[1] - looked_at[0] < 24_000 / 10, looked_at  # those without a code may be gone through, a fiftieth
