"""Every address with the permission that stands on it; nothing else answers whoever is not known."""

from __future__ import annotations

import ast
import html
import json
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster import web
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.web import looks, sessions
from polydesk_dagster.web.application import PAGES
from polydesk_dagster.web.roles import PERMISSIONS, May, Role
from tests.waiting import until
from tests.web.world import Served

LISTED = Path(__file__).with_name("routes.json")


def _all() -> dict[str, str | None]:
    return {
        f"{method} {path}": may and may.value for pages in PAGES for (method, path), may in pages.permissions.items()
    }


def test_the_routes_are_those_of_the_list() -> None:
    """A new page is added to ``routes.json`` too: who may see it is read there at a glance."""
    assert _all() == json.loads(LISTED.read_text())


def test_whoever_is_not_known_gets_no_further_than_the_login(door: Served) -> None:
    client = door.client()
    for route, may in _all().items():
        method, path = route.split()
        answer = client.request(method, re.sub(r"{\w+(:int)?}", "1", path))
        if may is None:
            assert answer.status_code != 303 or route == "POST /lingua", route
        elif method == "GET":
            assert answer.headers["location"].startswith("/entra"), route
        else:
            assert answer.status_code == 401, route


def test_every_role_may_what_the_roles_before_it_may() -> None:
    assert PERMISSIONS[Role.SPECIALIST] < PERMISSIONS[Role.DESK] < PERMISSIONS[Role.MANAGER]
    assert PERMISSIONS[Role.MANAGER] < PERMISSIONS[Role.SUPERUSER] == frozenset(May)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_sees_the_services(door: Served, role: Role) -> None:
    answer = door.signed_in(role).get("/")
    assert answer.status_code == 200
    assert "Generazione automatica" in answer.text


def test_health_tells_a_stranger_only_whether_all_is_well(door: Served) -> None:
    assert door.client().get("/health/live").text == "ok"
    assert door.client().get("/health").json().keys() == {"ok", "at"}
    assert door.signed_in("desk").get("/health").json().keys() == {"ok", "at", "findings"}


def test_what_strangers_are_told_is_told_where_the_database_does_not_say_who_asks(
    door: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

    with door.signed_in("superuser") as browser:
        monkeypatch.setattr(sessions, "look", away)
        assert browser.get("/health").json().keys() == {"ok", "at"}
        assert browser.get("/static/polydesk.css").status_code == 200
        page = browser.get("/")
    assert page.status_code == 503
    assert "Il database non risponde" in page.text


def test_a_database_that_goes_in_mid_page_is_told_by_what_was_asked(
    door: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has only looked looks again; who has asked for something does not know whether it was done."""

    def away(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

    with door.signed_in("superuser") as browser:
        form = door.form(browser)
        monkeypatch.setattr(looks, "clinics", away)
        monkeypatch.setattr(activity, "resume", away)
        looked, asked = browser.get("/chiusure"), browser.post("/servizi/send_reminders/riprendi", data=form)
    assert (looked.status_code, asked.status_code) == (503, 503)
    assert "riprova tra poco" in looked.text
    assert "non si sa se" in asked.text


@pytest.mark.parametrize(("language", "said"), [("it", "Lo schema"), ("en", "The database"), ("de", "Das Schema")])
def test_what_was_found_is_told_in_the_readers_language(door: Served, language: str, said: str) -> None:
    reader, asked = door.signed_in("desk"), {"Accept-Language": language}
    findings = reader.get("/health", headers=asked).json()["findings"]
    (schema,) = (each["message"] for each in findings if each["code"] == "schema")
    assert schema.startswith(said)
    assert schema in html.unescape(reader.get("/salute", headers=asked).text)


def test_what_goes_wrong_inside_is_told_nobody(door: Served, caplog: pytest.LogCaptureFixture) -> None:
    from polydesk_dagster.web import services

    def broken(*_: object) -> None:
        raise ValueError("Mario Rossi RSSMRA70A01A944X")

    patch = pytest.MonkeyPatch()
    patch.setattr(services.looks, "states", broken)
    answer = door.signed_in("desk").get("/")
    patch.undo()
    assert answer.status_code == 500
    until(lambda: "ValueError" in caplog.text)
    assert "RSSMRA" not in answer.text + caplog.text


WRITE_WHEN_ASKED = {"enter_by_link", "messages"}
"""What a GET writes for: the session of who enters, samples that are planned and rolled back."""


def test_a_page_that_only_shows_has_no_connection_that_writes() -> None:
    found = {
        view.name
        for module in Path(web.__path__[0]).glob("*.py")
        for view in ast.walk(ast.parse(module.read_text()))
        if isinstance(view, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("pages.get(" in ast.unparse(each) for each in view.decorator_list)
        and "door.engine" in ast.unparse(view)
    }
    assert found == WRITE_WHEN_ASKED


def test_who_opens_a_signed_link_cannot_write(door: Served) -> None:
    signed = door.door.signed
    with pytest.raises(sa.exc.InternalError, match="read-only"), signed.begin() as connection:
        connection.execute(sa.text("DELETE FROM message"))
    with door.door.engine.begin() as connection:  # and the connection comes back as it was
        connection.execute(sa.text("DELETE FROM message"))
