"""The embedded server in an awkward home, and who may do what in it; made by an older version, as most homes are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from polydesk_dagster.commands.installation import migrated
from polydesk_dagster.database import embedded, programs
from polydesk_dagster.database.engine import (
    BUSINESS,
    DAGSTER,
    Role,
    business_url,
    create_engine,
    dagster_url,
    plain_url,
)
from polydesk_dagster.database.migrate import create_database, migrate
from polydesk_dagster.database.roles import SECRETS
from polydesk_dagster.front import tokens
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.settings import Settings
from polydesk_dagster.web import sessions
from polydesk_dagster.web.__main__ import programs as programs_outside
from polydesk_dagster.web.application import application
from polydesk_dagster.web.door import Door
from tests import world
from tests.waiting import PATIENCE
from tests.web.world import person


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """A home whose name has a blank, a plus and a quote, from before there were roles; brought up to date."""
    folder = Path(tempfile.mkdtemp(prefix="polydesk-roles-", dir="/tmp"))
    home = folder / "a blank + l'apostrofo"
    server = make_url(embedded.start(home)).set(drivername="postgresql+psycopg", database=BUSINESS)
    create_database(server)
    create_database(server.set(database=DAGSTER))
    old = create_engine(server)
    migrate(old)
    with old.begin() as connection:
        connection.execute(sa.text("CREATE TABLE plan_rows.p1 (ordinal bigint)"))
    old.dispose()
    assert embedded.stop(home, patience=PATIENCE)
    (home / "postgres" / "pg_hba.conf").write_text("local all all trust\n")
    embedded.start(home)
    settings = Settings(home=home)
    migrated(settings)
    migrated(settings)  # what is done is not done again
    app = create_engine(business_url(settings))
    with app.begin() as connection:
        connection.execute(sa.text("CREATE TABLE plan_rows.made_later (ordinal bigint)"))
    app.dispose()
    yield settings
    embedded.stop(home, patience=PATIENCE)
    shutil.rmtree(folder)


def answer(settings: Settings, role: str, query: str, database: str = BUSINESS) -> str:
    """The first value that a role is given, or why not."""
    url = plain_url(make_url(embedded.url(settings.home, role)).set(database=database))
    try:
        with psycopg.connect(url) as connection:
            found = connection.execute(query)  # type: ignore[call-overload]
            return str(found.fetchone()[0]) if found.description else "done"
    except psycopg.errors.InsufficientPrivilege:
        return "may not"
    except psycopg.OperationalError as error:
        return "may not" if "permission denied" in str(error) else str(error)


@pytest.mark.parametrize(
    ("role", "query", "said"),
    [
        (Role.APP, "SELECT count(*) FROM patient", "0"),
        (
            Role.APP,
            "INSERT INTO audit (as_of, actor, action, service, detail) VALUES (now(), 'a', 'b', 's', '{}')",
            "done",
        ),
        (Role.APP, "UPDATE audit SET actor = 'b'", "may not"),
        (Role.APP, "DELETE FROM audit", "may not"),
        (Role.APP, "ALTER TABLE audit DISABLE TRIGGER ALL", "may not"),
        (Role.APP, "TRUNCATE patient CASCADE", "may not"),
        (Role.APP, "CREATE TABLE public.own (a int)", "may not"),
        (Role.APP, "CREATE TABLE plan_rows.p2 (a int)", "done"),
        (Role.APP, "DROP TABLE plan_rows.p1", "done"),
        (Role.APP, "COPY (SELECT 1) TO PROGRAM 'id'", "may not"),
        (Role.APP, "SELECT pg_read_file('postgresql.conf')", "may not"),
        (Role.APP, "CREATE ROLE another SUPERUSER", "may not"),
        (Role.APP, "SET ROLE polydesk_owner", "may not"),
        (Role.APP, "UPDATE alembic_version SET version_num = '0001'", "may not"),
        (Role.OWNER, "CREATE TABLE public.own (a int)", "done"),
        (Role.OWNER, "CREATE ROLE another", "may not"),
        (Role.FRONT, "SELECT count(*) FROM cache_current", "0"),
        (Role.FRONT, "SELECT count(*) FROM patient", "may not"),
        (Role.FRONT, "SELECT count(*) FROM app_user", "may not"),
        (Role.FRONT, "UPDATE clinic SET name = 'x'", "may not"),
        (Role.FRONT, "CREATE TEMP TABLE t (a int)", "may not"),
        (Role.READER, "SELECT count(*) FROM patient", "0"),
        (Role.READER, "SELECT count(*) FROM plan_rows.made_later", "0"),
        (Role.READER, "INSERT INTO patient_look (at, person, page, plan_id) VALUES (now(), 'a', 'b', 1)", "may not"),
        (Role.READER, "UPDATE clinic SET name = 'x'", "may not"),
        (Role.READER, "DELETE FROM plan_rows.made_later", "may not"),
        (Role.READER, "SELECT nextval(pg_get_serial_sequence('plan', 'id'))", "may not"),
        (Role.READER, "CREATE TEMP TABLE t (a int)", "may not"),
        *((Role.READER, f"SELECT count(*) FROM {secret}", "may not") for secret in SECRETS),
        (Role.DAGSTER, "SELECT 1", "may not"),
    ],
)
def test_a_role_may_what_its_processes_need(settings: Settings, role: Role, query: str, said: str) -> None:
    assert answer(settings, role, query) == said


def test_the_front_may_what_bookings_and_questions_need(settings: Settings) -> None:
    engine = create_engine(business_url(settings))
    with engine.begin() as connection:
        given = {"who": "anna", "why": "prova dei ruoli", "as_of": datetime.now(UTC)}
        token = tokens.issue(connection, name="sito", scopes=[Scope.FIND], clinics=[], **given)  # type: ignore[arg-type]
    engine.dispose()
    now = datetime.now(UTC)
    query = {"service-type": "89.7A.3", "start": now.isoformat(), "end": (now + timedelta(days=1)).isoformat()}
    headers = {"Authorization": f"Bearer {token}", "Polydesk-Visitor": "visitatrice"}
    with TestClient(programs_outside(settings, "http://127.0.0.1:3000")) as asked:
        found = asked.get("/booking/Appointment/$find", params=query, headers=headers)
        assert (found.status_code, found.json()["total"]) == (200, 0), found.text
        assert asked.post("/assistant/ask", json={"question": "digiuno"}, headers=headers).status_code == 403


def test_dagsters_role_owns_its_storage_and_nobody_else_gets_in(settings: Settings) -> None:
    assert answer(settings, Role.DAGSTER, "CREATE TABLE runs (a int)", DAGSTER) == "done"
    assert dagster_url(settings).username == Role.DAGSTER
    for role in (Role.APP, Role.FRONT, Role.OWNER):
        assert answer(settings, role, "SELECT 1", DAGSTER) == "may not"
    assert answer(settings, Role.READER, "SELECT count(*) FROM runs", DAGSTER) == "0"
    assert answer(settings, Role.READER, "DELETE FROM runs", DAGSTER) == "may not"


MORE = (
    *("/servizi/sync_prices", "/rossa/release_all_holds", "/messaggi?tipo=reminder", "/messaggi?tipo=preparation"),
    *("/messaggi/testi/reminder/plain/sms/it", "/messaggi/testi/cancellation/plain/sms/it?clinica=BO01", "/health"),
)
"""Pages with something in their address."""


def test_every_page_is_shown_by_who_can_write_nothing(settings: Settings) -> None:
    """Of the real roles of an embedded server; what a page could write it would be refused, and not answer."""
    door = Door(settings, create_engine(business_url(settings)))
    with door.engine.begin() as connection:
        world.practice(connection)
        token = sessions.begin(connection, person(connection, "superuser"), "password", datetime.now(UTC))
    kept = json.loads((Path(__file__).parents[1] / "web" / "routes.json").read_text())
    pages = [route.removeprefix("GET ") for route in kept if route.startswith("GET ") and "{" not in route]
    with TestClient(application(door), base_url=door.address.public, cookies={door.cookie: token}) as browser:
        answers = {path: browser.get(path, follow_redirects=False).status_code for path in [*pages, *MORE]}
    door.close()
    door.engine.dispose()
    refused = {path: status for path, status in answers.items() if status not in {200, 303}}
    nobody_comes_by = {"/ingresso": 403, "/entra/oidc": 404, "/entra/oidc/ritorno": 404}
    assert refused == {**nobody_comes_by, "/messaggi/perche": 400, "/statistiche/file": 400, "/health": 503}


def test_no_role_of_ours_is_a_superuser_and_nobody_is_trusted(settings: Settings) -> None:
    query = "SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolsuper OR rolcreaterole OR rolbypassrls"
    assert answer(settings, "postgres", query) == "postgres"
    assert business_url(settings).username == Role.APP
    lines = "SELECT string_agg(DISTINCT type || ' ' || auth_method, ',') FROM pg_hba_file_rules"
    assert answer(settings, "postgres", lines) == "local peer"
    owned = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relowner = 10"
    assert answer(settings, "postgres", owned) == "0"
    assert answer(settings, "postgres", "SHOW listen_addresses") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_account_of_the_machine_does_not_get_in(settings: Settings) -> None:
    url = embedded.url(settings.home, Role.APP)
    done = subprocess.run(
        [str(programs.folder() / "psql"), f"{url}", "-c", "SELECT 1"],
        user="nobody",
        group="nogroup",
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode != 0
    assert "ermission denied" in done.stderr


@pytest.mark.parametrize("name", ["x" * 120, "a, b"])
def test_a_home_with_a_long_name_or_a_comma_has_its_socket_elsewhere(tmp_path: Path, name: str) -> None:
    data = tmp_path / name / "postgres"
    data.mkdir(parents=True)
    short = programs.socket_folder(data)
    try:
        assert len(str(short)) < 60
        assert short.stat().st_mode & 0o077 == 0
        assert programs.socket_folder(data) == short
        short.chmod(0o777)
        with pytest.raises(Exception, match="home_of_another"):
            programs.socket_folder(data)
    finally:
        short.rmdir()


def test_what_an_older_or_newer_server_left_is_named(tmp_path: Path) -> None:
    home = tmp_path / "other"
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(Exception, match="embedded_version"):
        embedded.start(home)
