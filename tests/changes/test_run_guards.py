"""``polydesk run`` on plans: a guard that stops one is told, and going past it names the plan that was looked at."""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.commands import show
from polydesk_dagster.database import service_runs
from polydesk_dagster.database.engine import create_engine, plain_url
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report
from polydesk_dagster.runtime import orders, submit
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings
from polydesk_dagster.sources import epochs, integrations, vendors
from polydesk_dagster.values import SAID
from tests import world
from tests.postgres import EMPTY, copied, dagster_storage, dropped, left
from tests.sources.lab import AGREEMENTS, PRICES, SERVICES

pytestmark = pytest.mark.slow

TOKEN = "POLYDESK_STUDIOLAB_TOKEN_ALL"
BASE = {"services": SERVICES, "agreements": AGREEMENTS, "prices": PRICES}
REPRICED = BASE | {"prices": [PRICES[0] | {"amount": "5.00"}, *PRICES[1:]]}


class Desk:
    """A terminal of an installation with two clinics, each with its studiolab."""

    def __init__(self, engine: sa.Engine, simulator: StudiolabSimulator) -> None:
        self.engine, self.simulator = engine, simulator

    def said(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, " ".join(done.output.replace("│", " ").split())

    def run(self, *arguments: str) -> tuple[int, Any]:
        done = CliRunner().invoke(app, ["run", *arguments, "--json"])
        return done.exit_code, json.loads(done.stdout)

    def all(self, query: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text(query)))


@contextmanager
def _desk(url: URL, home: Path) -> Iterator[Desk]:
    """The desk over a database; its clinics are made where there are none."""
    engine, simulator = create_engine(url), StudiolabSimulator()
    storage = url.set(database=f"{url.database}_dagster")
    dagster_storage(storage)
    pointed = sa.text("UPDATE integration SET base_url = :url FROM clinic c WHERE c.id = clinic_id AND c.code = :code")
    environment = {"POLYDESK_HOME": str(home), "POLYDESK_DATABASE_URL": plain_url(url), TOKEN: DEMO_TOKEN}
    # What a command adds to the environment is this desk's too.
    with dropped(storage), patch.dict(os.environ, environment), in_thread(simulator) as address:
        with engine.begin() as connection:
            restored.moved(connection)  # a copy is known for one, and would keep everything in
            for code in ("BO01", "BZ01"):
                simulator.hold(code, BASE)
                its = address.replace("/api/v1", f"/{code}/api/v1")
                if connection.execute(pointed, {"code": code, "url": its}).rowcount:
                    epoch = vendors.epoch(integrations.configured(connection, code))
                    same = {"same": True, "reason": "Lo stesso, a un'altra porta", "as_of": datetime.now(UTC)}
                    epochs.decide(connection, code, epoch, actor="test", **same)
                else:
                    world.integration(connection, world.clinic(connection, code), its, token_env=TOKEN)
        yield Desk(engine, simulator)
        engine.dispose()


@pytest.fixture
def desk(database: URL, tmp_path: Path) -> Iterator[Desk]:
    with _desk(database, tmp_path) as desk:
        yield desk


@pytest.fixture(scope="module")
def synced(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The database of two clinics which have what their studiolabs have; for copies."""
    with copied(server, EMPTY) as url:
        with _desk(url, tmp_path_factory.mktemp("synced")) as desk:
            for clinic in ("BO01", "BZ01"):
                for service in ("sync_services", "sync_prices"):
                    assert desk.run(service, "--clinic", clinic)[0] == 0
        left(url)
        yield str(url.database)


@pytest.fixture
def in_step(server: URL, synced: str, tmp_path: Path) -> Iterator[Desk]:
    """The desk of two clinics which have what their studiolabs have."""
    with copied(server, synced) as url, _desk(url, tmp_path) as desk:
        yield desk


def _codes(answer: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in answer["reasons"]]


def test_a_list_cut_short_is_a_refusal_by_name_with_its_plan(in_step: Desk) -> None:
    in_step.simulator.hold("BO01", BASE | {"prices": PRICES[:8]})
    for service, *preview in (("preview_prices",), ("sync_prices", "--preview"), ("sync_prices",)):
        status, answer = in_step.run(service, "--clinic", "BO01", *preview)
        assert (status, answer["outcome"]) == (3, "refused")
        assert {"guard_source_short", "guard_too_many_retired", "what_to_do"} <= set(_codes(answer))
        told = " ".join(reason["text"] for reason in answer["reasons"])
        assert f"plan apply {answer['plan_id']} --past-guard source_short --past-guard too_many_retired" in told
    assert answer["counts"]["retired"] == 0
    assert in_step.all("SELECT outcome FROM service_run WHERE service = 'sync_prices' ORDER BY id DESC LIMIT 1") == [
        "refused"
    ]
    status, text = in_step.said("run", "sync_prices", "--clinic", "BO01")
    assert status == 3
    (plan,) = in_step.all("SELECT max(id) FROM plan")
    for part in ("rifiutato", "Niente è stato scritto", f"Piano {plan} (prezzi · BO01 · 13 "):
        assert part in text


def test_past_a_guard_over_rows_goes_who_names_the_plan_and_every_guard(in_step: Desk) -> None:
    in_step.simulator.hold("BO01", REPRICED)
    status, answer = in_step.run("sync_prices", "--clinic", "BO01")
    assert (status, answer["outcome"], answer["counts"]["waiting"]) == (1, "partial", 1)
    assert "rows_set_aside" in _codes(answer)
    plan = str(in_step.run("preview_prices", "--clinic", "BO01")[1]["plan_id"])
    past = ("--past-guard", "price_jump", "--past-guard", "code_reused", "--reason", "listino nuovo della direzione")
    status, text = in_step.said("run", "sync_prices", "--clinic", "BO01", *past)
    assert (status, "--past-guard serve con --plan" in text) == (2, True)
    # A row that two guards have set aside goes past both or stays.
    status, text = in_step.said("run", "sync_prices", "--plan", plan, *past[:2], *past[4:])
    assert (status, f"plan apply {plan} --past-guard price_jump --past-guard code_reused" in text) == (3, True)
    assert in_step.all("SELECT count(*) FROM price WHERE amount = 5.00") == [0]
    status, answer = in_step.run("sync_prices", "--plan", plan, *past)
    assert (status, answer["outcome"], answer["counts"]["updated"]) == (0, "ok", 1)
    assert in_step.all(f"SELECT actor FROM audit WHERE plan_id = {plan}") == [f"desk:{getpass.getuser()}"]
    assert in_step.all(f"SELECT unnest(past_guards) FROM plan WHERE id = {plan}") == ["code_reused", "price_jump"]


def test_a_plan_of_another_clinic_or_service_is_refused_by_name(in_step: Desk) -> None:
    in_step.simulator.hold("BZ01", BASE | {"prices": [PRICES[0] | {"amount": "51.50"}, *PRICES[1:]]})
    plan = str(in_step.run("preview_prices", "--clinic", "BZ01")[1]["plan_id"])
    status, answer = in_step.run("sync_prices", "--clinic", "BO01", "--plan", plan)
    assert (status, _codes(answer)) == (3, ["plan_of_another_clinic"])
    assert "BZ01" in answer["reasons"][0]["text"]
    status, answer = in_step.run("sync_services", "--clinic", "BZ01", "--plan", plan)
    assert (status, _codes(answer)) == (3, ["plan_of_another_service"])
    assert "Sync prezzi e convenzioni" in answer["reasons"][0]["text"]
    assert in_step.all("SELECT count(*) FROM price WHERE amount = 51.50") == [0]
    assert in_step.said("run", "sync_prices", "--plan", "999")[0] == 2
    assert in_step.run("sync_prices", "--clinic", "BO01", "--plan", "999")[1]["reasons"][0]["code"] == "unknown_plan"
    assert in_step.run("sync_prices", "--plan", plan)[0] == 0
    assert in_step.all("SELECT count(*) FROM price WHERE amount = 51.50") == [1]


def test_a_preview_shows_every_plan_and_which_one_comes_first(desk: Desk) -> None:
    assert desk.run("sync_services", "--clinic", "BO01")[0] == 0
    status, answer = desk.run("preview_prices", "--clinic", "BO01")
    agreements, prices = desk.all("SELECT id FROM plan WHERE service = 'sync_prices' ORDER BY id")
    assert (status, answer["plan_id"]) == (1, prices)  # prices without their agreement wait for a person
    assert {"other_plans", "apply_first"} <= set(_codes(answer))
    _, text = desk.said("run", "preview_prices", "--clinic", "BO01")
    assert f"prima applica il piano {agreements + 2} (convenzioni)" in text
    assert f"Piano {agreements + 2} (convenzioni · BO01" in text
    assert f"Piano {prices + 2} (prezzi · BO01" in text
    assert "Piano:" not in text, "numbers of plans are no figure to be added up"


def test_a_plan_of_conflicts_alone_says_to_look_at_them(in_step: Desk) -> None:
    in_step.simulator.hold("BO01", BASE | {"prices": [*PRICES, PRICES[0] | {"service_id": "S9999"}]})
    status, text = in_step.said("run", "preview_prices", "--clinic", "BO01")
    (plan,) = in_step.all("SELECT max(id) FROM plan")
    assert status == 1
    assert f"1 riga in conflitto: aspetta una persona, vedi il piano {plan}" in text
    assert f"guarda che cosa è in conflitto (polydesk plan show {plan})" in text
    assert "allineati" not in text.partition("Che cosa fare")[2]


def test_nobody_is_told_to_apply_a_plan_that_cannot_be_applied_any_more(in_step: Desk) -> None:
    in_step.simulator.hold("BO01", BASE | {"prices": [PRICES[0] | {"amount": "51.50"}, *PRICES[1:]]})
    used, moved = (str(in_step.run("preview_prices", "--clinic", "BO01")[1]["plan_id"]) for _ in range(2))
    assert in_step.run("sync_prices", "--plan", used)[0] == 0
    for plan, code in ((used, "plan_applied"), (moved, "moved")):
        assert code in _codes(in_step.run("sync_prices", "--plan", plan)[1])
        status, text = in_step.said("run", "sync_prices", "--plan", plan)
        assert (status, "l'anteprima" in text, "plan apply" in text) == (3, True, False)
    assert "plan apply" not in in_step.said("run", "sync_prices", "--plan", used, "--preview")[1]


def test_people_read_the_fields_in_italian_and_programs_as_they_are(
    in_step: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = PRICES[1] | {"valid_to": "2027-01-01"}
    following = PRICES[1] | {"valid_from": "2027-01-01", "amount": "99.00"}
    prices = [PRICES[0] | {"amount": "51.50"}, ended, *PRICES[2:], following]
    in_step.simulator.hold("BO01", BASE | {"prices": prices})
    _, text = in_step.said("run", "sync_prices", "--clinic", "BO01", "--preview")
    (plan,) = in_step.all("SELECT max(id) FROM plan")
    for said in (text, in_step.said("plan", "show", str(plan))[1]):
        assert "importo: 50,00 € → 51,50 €" in said
        assert "99,00 €" in said
        assert "clinic_id" not in said
    file = tmp_path / "plan.csv"
    assert in_step.said("plan", "show", str(plan), "--csv", str(file))[0] == 0
    assert '""amount"": ""51.50""' in file.read_text()
    assert "clinic_id" in file.read_text()
    monkeypatch.setattr(show, "_language", "en")
    assert "€50.00 → €51.50" in in_step.said("plan", "show", str(plan))[1]


def test_a_service_that_only_looks_has_its_last_outcome_in_the_list(desk: Desk) -> None:
    assert desk.run("preview_services", "--clinic", "BO01")[0] == 0
    assert desk.run("sync_services", "--clinic", "BO01", "--preview")[0] == 0
    listed = json.loads(CliRunner().invoke(app, ["services", "--json"]).stdout)
    last = {row["key"]: row["last_outcome"] for row in listed}
    assert (last["preview_services"], last["preview_prices"], last["sync_services"]) == ("ok", None, None)


def test_a_price_list_that_fails_beside_agreements_in_step_is_a_failure_of_its_clinic_alone(in_step: Desk) -> None:
    in_step.simulator.fail("status", "/BO01/api/v1/prices", status=403, times=None)
    status, answer = in_step.run("sync_prices", "--clinic", "BO01")
    assert (status, answer["outcome"]) == (4, "failed")
    status, answer = in_step.run("sync_prices")
    assert (status, answer["outcome"]) == (1, "partial")
    assert {each["clinic"]: each["outcome"] for each in answer["clinics"]} == {
        "BO01": "failed",
        "BZ01": "nothing_to_do",
    }


def test_each_reason_of_a_run_for_many_clinics_says_whose_it_is(in_step: Desk) -> None:
    """A source that has become another one, where the reason itself knows of no clinic."""
    with in_step.engine.begin() as connection:
        connection.execute(sa.text("UPDATE integration SET base_url = replace(base_url, '/api/v1', '/new/api/v1')"))
    status, answer = in_step.run("sync_services")
    assert (status, answer["outcome"]) == (3, "refused")
    assert [(each["code"], each["clinic"]) for each in answer["reasons"]] == [
        ("source_changed", "BO01"),
        ("source_changed", "BZ01"),
    ]
    kept = "SELECT DISTINCT r.reasons->0->>'clinic' = c.code FROM service_run r JOIN clinic c ON c.id = r.clinic_id"
    assert in_step.all(f"{kept} WHERE r.outcome = 'refused'") == [True]


def test_each_plan_of_a_run_for_many_clinics_stands_beside_its_clinic(in_step: Desk) -> None:
    for clinic in ("BO01", "BZ01"):
        in_step.simulator.hold(clinic, REPRICED)
    _, answer = in_step.run("preview_prices")
    made = {each["clinic"]: each["plan_id"] for each in answer["clinics"]}
    assert set(made) == {"BO01", "BZ01"}
    of = "SELECT c.code || p.id FROM plan p JOIN clinic c ON c.id = p.clinic_id"
    assert {f"{clinic}{plan}" for clinic, plan in made.items()} <= set(in_step.all(of))


def test_a_run_that_died_half_way_shows_what_it_had_recorded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_: Settings, __: str, order: orders.Order, *___: object) -> submit.Finished:
        report = Report(Outcome.OK, Counts(updated=3), (Reason("said", {SAID: "Detto prima."}),))
        now = datetime.now(UTC)
        with desk.engine.begin() as connection:
            service_runs.record(
                connection, order.job, report, clinic="BO01", preview=False, dagster_run="r", as_of=now, started=now,
                seconds=1,
            )  # fmt: skip
        return submit.Finished("r", "FAILURE")

    monkeypatch.setattr(submit, "execute", dies)
    status, answer = desk.run("sync_services", "--clinic", "BO01")
    assert (status, answer["outcome"], answer["counts"]["updated"]) == (1, "partial", 3)
    assert _codes(answer) == ["said", "no_report"]


def test_a_run_that_could_not_be_recorded_says_why_at_the_command(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(
            sa.text("""
                CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                    $$BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = 'disk_full'; END$$;
                CREATE TRIGGER full_disk BEFORE INSERT ON service_run EXECUTE FUNCTION full_disk()""")
        )
    status, answer = desk.run("sync_services", "--clinic", "BO01")
    assert (status, answer["outcome"], _codes(answer)) == (4, "failed", ["refused_disk"])
    assert "Il disco del server" in answer["reasons"][0]["text"]
    status, answer = desk.run("sync_prices")
    assert (status, set(_codes(answer))) == (4, {"refused_disk"})


def test_brackets_in_a_name_are_printed_as_they_are(desk: Desk) -> None:
    named = [SERVICES[0] | {"name": "Visita [/] a|b [beta] :warning:"}, *SERVICES[1:]]
    desk.simulator.hold("BO01", BASE | {"services": named})
    plan = str(desk.run("preview_services", "--clinic", "BO01")[1]["plan_id"])
    status, text = desk.said("plan", "show", plan)
    assert status == 0
    assert "[/] a|b [beta] :warning:" in text
    assert f"Piano {plan} · Sync servizi · BO01 · da applicare" in text


def test_an_undo_says_of_which_plan_and_whether_it_was_a_preview(desk: Desk) -> None:
    status, answer = desk.run("sync_services", "--clinic", "BO01")
    plan = answer["plan_id"]
    status, text = desk.said("plan", "undo", str(plan), "--preview")
    assert status == 0
    assert text.startswith(f"Annullamento del piano {plan} con il piano {plan + 1}: anteprima: niente è cambiato")
    status, text = desk.said("plan", "undo", str(plan))
    assert text.startswith(f"Annullamento del piano {plan} con il piano {plan + 2}: riuscito")


def test_the_rows_of_a_plan_go_into_a_file_of_its_owner_alone(desk: Desk, tmp_path: Path) -> None:
    plan = str(desk.run("preview_services", "--clinic", "BO01")[1]["plan_id"])
    file = tmp_path / "plan.csv"
    assert desk.said("plan", "show", plan, "--csv", str(file))[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600
    status, text = desk.said("plan", "show", plan, "--csv", "/nonexistent/x.csv")
    assert (status, "non riesco a scrivere «/nonexistent/x.csv»" in text) == (2, True)


def test_a_dangerous_button_says_its_phrase_and_who_would_lose_what_before_it_is_pressed(desk: Desk) -> None:
    now = datetime.now(UTC)
    with desk.engine.begin() as connection:
        practice = world.practice(connection, "NA01")
        slot = world.slot(connection, practice.agenda, now.replace(microsecond=0) + timedelta(days=1))
        world.hold(
            connection,
            practice.clinic,
            slot,
            created_at=now,
            last_activity_at=now,
            expires_at=now + timedelta(minutes=10),
        )
    for looking in ((), ("--preview",)):
        status, text = desk.said("run", "release_all_holds", *looking)
        assert status == 0, text
        assert "anteprima: niente è cambiato" in text
        assert re.search("«LIBERA 1 [a-z]{6}»", text)
        assert "Chi sta prenotando adesso" in text
        assert "NA01 1 0 0" in text
    last = next(row for row in json.loads(CliRunner().invoke(app, ["services", "--json"]).stdout)
                if row["key"] == "release_all_holds")  # fmt: skip
    assert last["last_outcome"] is None, "a look is not a run"
