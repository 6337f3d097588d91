"""Doubtful patients: what a person decides holds, is told, can be taken back, and never makes one of two."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster import changes
from polydesk_dagster.cli import app
from polydesk_dagster.clinic.patients import reviews
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.outcome import Outcome, Report
from tests import world
from tests.patients.world import MARIO, OMOCODIA, Import, person
from tests.waiting import PATIENCE

WHO: dict[str, Any] = {"as_of": world.AS_OF, "actor": "desk:anna"}
WHY = "lo ha detto il paziente allo sportello"


@pytest.fixture
def milan(engine: sa.Engine) -> Import:
    """A second clinic, whose studiolab has the code of a patient of the first on somebody who may be another."""
    Import(engine)(MARIO)
    run = Import(engine, "MI01")
    run(person("X1", fiscal_code=OMOCODIA))
    return run


def only(run: Import) -> int:
    """The number of the only open review."""
    ((number,),) = run.rows("SELECT id FROM patient_review WHERE state = 'open'")
    return int(number)


def patient(run: Import) -> int:
    return int(run.rows("SELECT min(id) FROM patient")[0][0])


def code(report: Report) -> str:
    return report.reasons[0].code


def test_it_is_somebody_we_know(milan: Import) -> None:
    review = only(milan)
    with milan.engine.begin() as connection:
        (alike,) = reviews.candidates(connection, review)
        assert (alike.id, alike.same_code, alike.links) == (patient(milan), True, ("BO01 P1",))
        assert reviews.link(connection, review, alike.id, **WHO).outcome is Outcome.OK
        assert code(reviews.link(connection, review, alike.id, **WHO)) == "already_decided"
    assert milan.links()[-1] == ("X1", "person")
    assert milan(person("X1", fiscal_code=OMOCODIA)).outcome is Outcome.NOTHING_TO_DO
    assert milan.reviews() == []
    with milan.engine.connect() as connection:
        assert changes.audit.verify(connection) == []
    ((actor, detail),) = milan.rows("SELECT actor, detail FROM audit WHERE action = 'link'")
    assert (actor, detail["patient"]) == ("desk:anna", patient(milan))


def test_a_number_mistyped_links_nobody(milan: Import) -> None:
    with milan.engine.begin() as connection:
        stranger = connection.scalar(
            sa.text("INSERT INTO patient (last_name, first_name) VALUES ('Verdi', 'Ada') RETURNING id")
        )
        assert stranger is not None
        review = only(milan)
        assert code(reviews.link(connection, review, 999_999, **WHO)) == "unknown_patient"
        assert code(reviews.link(connection, review, stranger, **WHO)) == "not_a_candidate"
        assert reviews.link(connection, review, stranger, reason=WHY, **WHO).outcome is Outcome.OK


def test_somebody_new_is_created_but_one_code_for_two_only_on_a_persons_word(milan: Import) -> None:
    review = only(milan)
    with milan.engine.begin() as connection:
        assert code(reviews.create(connection, review, **WHO)) == "code_taken"
        assert code(reviews.create(connection, review, shared_code=True, reason="sì", **WHO)) == "reason_missing"
        assert milan.rows("SELECT count(*) FROM patient") == [(1,)]
        made = reviews.create(connection, review, shared_code=True, reason=WHY, **WHO)
    assert (made.outcome, made.counts.created) == (Outcome.OK, 1)
    assert milan.rows("SELECT fiscal_code, fiscal_code_canonical, birth_date::text, mobile FROM patient ORDER BY id")[
        1
    ] == (OMOCODIA, MARIO["fiscal_code"], "1980-01-01", "+393331234567")
    assert milan.links()[-1] == ("X1", "created")
    assert milan(person("X1", fiscal_code=OMOCODIA)).counts.changed == 0
    assert milan.reviews() == []
    assert milan.rows("SELECT detail ->> 'shared_code' FROM audit WHERE action = 'create'") == [("true",)]


def test_somebody_new_needs_no_more_words_where_nobody_has_the_code(engine: sa.Engine) -> None:
    run = Import(engine)
    run(person("P1", last_name="Bianchi"))  # a married name: the code says Rossi
    with engine.begin() as connection:
        assert reviews.create(connection, only(run), **WHO).outcome is Outcome.OK
    assert run.rows("SELECT last_name, fiscal_code FROM patient") == [("Bianchi", MARIO["fiscal_code"])]


def test_who_came_since_must_be_looked_at_before_anybody_is_created(engine: sa.Engine) -> None:
    run = Import(engine)
    born = {"fiscal_code": None, "birth_date": "2026-03-01", "birth_place": None, "first_name": "Neonato"}
    run(person("P1", **born), person("P2", **born))
    (first,), (second,) = run.rows("SELECT id FROM patient_review ORDER BY external_id")
    with engine.begin() as connection:
        assert reviews.create(connection, first, **WHO).outcome is Outcome.OK
        assert code(reviews.create(connection, second, **WHO)) == "new_candidate"
        assert len(reviews.load(connection, second).candidates) == 1
        assert reviews.create(connection, second, **WHO).outcome is Outcome.OK
    assert run.rows("SELECT count(*) FROM patient") == [(2,)]


def test_what_is_not_to_be_imported_stays_out_until_it_is_opened_again(milan: Import) -> None:
    review = only(milan)
    with milan.engine.begin() as connection:
        assert code(reviews.dismiss(connection, review, reason="no", **WHO)) == "reason_missing"
        assert reviews.dismiss(connection, review, reason="record di prova", **WHO).outcome is Outcome.OK
    again = milan(person("X1", fiscal_code=OMOCODIA), person("X2", last_name="Neri", fiscal_code=None))
    assert (again.counts.created, again.counts.skipped, again.counts.unchanged) == (1, 0, 1)
    assert milan.reviews() == []
    with milan.engine.begin() as connection:
        assert reviews.reopen(connection, review, reason="era una persona vera", **WHO).outcome is Outcome.OK
        assert code(reviews.reopen(connection, review, reason="era una persona vera", **WHO)) == "not_dismissed"
    assert [name for name, _ in milan.reviews()] == ["X1"]
    assert milan.rows("SELECT action FROM audit WHERE action IN ('dismiss', 'reopen') ORDER BY id") == [
        ("dismiss",),
        ("reopen",),
    ]


def test_a_plan_made_before_the_verdict_does_not_bring_the_question_back(milan: Import) -> None:
    others = [person("X2", last_name="Neri", fiscal_code=None), person("X3", last_name="Gallo", fiscal_code=None)]
    before = milan(person("X1", fiscal_code=OMOCODIA), *others, preview=True)
    review = only(milan)
    with milan.engine.begin() as connection:
        reviews.dismiss(connection, review, reason="record di prova", **WHO)
        applied = changes.apply(connection, before.plan_id or 0, **WHO)
    assert applied.counts.created == 2
    assert milan.reviews() == []


def test_a_wrong_link_is_ended_and_its_record_waits_again(milan: Import) -> None:
    with milan.engine.begin() as connection:
        reviews.link(connection, only(milan), patient(milan), **WHO)
        assert code(reviews.unlink(connection, "MI01", "X1", reason="boh", **WHO)) == "reason_missing"
        assert code(reviews.unlink(connection, "MI01", "X9", reason="persone diverse", **WHO)) == "not_linked"
        assert reviews.unlink(connection, "MI01", "X1", reason="persone diverse", **WHO).outcome is Outcome.OK
    assert milan.rows("SELECT external_id, reason FROM patient_link_ended") == [("X1", "persone diverse")]
    review = only(milan)
    with milan.engine.begin() as connection:
        assert reviews.load(connection, review).record["last_name"] == "Rossi"
        assert reviews.create(connection, review, shared_code=True, reason=WHY, **WHO).outcome is Outcome.OK


def test_a_link_that_the_import_made_waits_for_its_data_once_ended(milan: Import) -> None:
    milan(person("X5"))  # letter by letter Mario: linked without a question
    with milan.engine.begin() as connection:
        reviews.unlink(connection, "MI01", "X5", reason="persone diverse", **WHO)
        review = connection.execute(sa.text("SELECT max(id) FROM patient_review")).scalar_one()
        assert code(reviews.create(connection, review, **WHO)) == "no_record"
    assert milan(person("X5")).counts.changed == 0
    with milan.engine.begin() as connection:
        assert reviews.load(connection, review).record["first_name"] == "Mario"
        assert code(reviews.create(connection, review, **WHO)) == "code_taken"


def test_two_desks_create_nobody_twice(milan: Import) -> None:
    review = only(milan)
    codes: list[str] = []

    def decide() -> None:
        with milan.engine.begin() as connection:
            codes.append(code(reviews.create(connection, review, shared_code=True, reason=WHY, **WHO)))

    desks = [threading.Thread(target=decide) for _ in range(4)]
    for desk in desks:
        desk.start()
    for desk in desks:
        desk.join(PATIENCE)
    assert sorted(codes) == ["already_decided", "already_decided", "already_decided", "review_created"]
    assert milan.rows("SELECT count(*) FROM patient") == [(2,)]


def test_from_the_terminal(milan: Import, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))

    def polydesk(*arguments: str) -> tuple[int, Any]:
        done = CliRunner().invoke(app, ["patients", *arguments, "--json"])
        return done.exit_code, json.loads(done.stdout)

    def said(*arguments: str) -> str:
        return " ".join(CliRunner().invoke(app, ["patients", *arguments]).output.split())

    review = str(only(milan))
    (listed,) = polydesk("review", "--clinic", "MI01")[1]
    assert (listed["external_id"], listed["who"]) == ("X1", "R. M. 1980")
    for everybody in (json.dumps(listed), said("review")):
        assert "Rossi" not in everybody
        assert OMOCODIA not in everybody
    status, whole = polydesk("show", review)
    assert (status, whole["record"]["fiscal_code"]) == (0, OMOCODIA)
    assert whole["candidates"][0]["fiscal_code"] == MARIO["fiscal_code"]
    page = said("show", review)
    assert ("codice fiscale: RSSMRA80A01H50MM" in page, ": 01/01/1980" in page, "1980-" in page) == (True, True, False)
    status, refused = polydesk("create", review)
    assert (status, refused["reasons"][0]["code"]) == (3, "code_taken")
    assert polydesk("dismiss", review, "--reason", "record di prova")[0] == 0
    assert polydesk("review", "--state", "dismissed")[1][0]["reason"] == "record di prova"
    assert polydesk("reopen", review, "--reason", "era una persona vera")[0] == 0
    assert polydesk("link", review, str(patient(milan)))[1]["counts"]["updated"] == 1
    assert polydesk("unlink", "MI01", "X1", "--reason", "persone diverse")[0] == 0
    new = str(only(milan))
    assert polydesk("create", new, "--shared-code", "--reason", WHY)[1]["reasons"][0]["code"] == "review_created"
    assert "Nessun caso" in said("review")
    assert CliRunner().invoke(app, ["patients", "show", "999"]).exit_code == 2
    assert CliRunner().invoke(app, ["patients", "link", "999", "1"]).exit_code == 2
    actors = {actor for (actor,) in milan.rows("SELECT actor FROM audit WHERE service = 'import_patients'")}
    assert len([actor for actor in actors if actor.startswith("desk:")]) == 1
