"""Coming in and going out: who gets a session, how long it holds, and how often one may try."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.web import sessions, throttle, tokens, users
from polydesk_dagster.web.login import local
from polydesk_dagster.web.roles import Role
from tests import world
from tests.web.world import PASSWORD, Served, person, session

NOW = world.AS_OF


def _login(client: httpx.Client, email: str, password: str = PASSWORD, next_: str = "/") -> httpx.Response:
    return client.post("/entra", data={"email": email, "password": password, "next": next_})


def test_a_password_opens_a_session_that_only_the_browser_knows(door: Served) -> None:
    with door.door.engine.begin() as connection:
        person(connection, "manager", password=True, email="Direzione@example.org")
    client = door.client()
    assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/entra"
    answer = _login(client, " direzione@EXAMPLE.org ", next_="/dagster/runs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dagster/runs")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert client.get("/").status_code == 200
    with door.door.engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT token_hash, way FROM web_session")).one()
    assert (bytes(kept.token_hash), kept.way) == (tokens.hashed(client.cookies[door.door.cookie]), "password")


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"state": "disabled"}, {"state": "bounced"}, {"role": "patient"}])
def test_who_may_not_come_in_is_told_what_everybody_is_told(door: Served, fields: dict[str, str]) -> None:
    with door.door.engine.begin() as connection:
        given = {"role": "desk", **fields}
        person(connection, given.pop("role"), password=True, email="x@example.org", **given)
        person(connection, "desk", password=True, email="y@example.org")
    client = door.client()
    answers = [
        _login(client, "x@example.org"),
        _login(client, "y@example.org", "un'altra password"),
        _login(client, "nessuno@example.org"),
    ]
    texts = {
        answer.text.replace(f"{mail}@example.org", "")
        for answer, mail in zip(answers, ("x", "y", "nessuno"), strict=True)
    }
    assert {answer.status_code for answer in answers} == {401}
    assert len(texts) == 1
    assert not client.cookies


@pytest.mark.slow
def test_an_account_is_tried_so_often_and_then_not_even_rightly(door: Served) -> None:
    with door.door.engine.begin() as connection:
        person(connection, "desk", password=True, email="x@example.org")
    client = door.client()
    with ThreadPoolExecutor(8) as pool:
        wrong = list(pool.map(lambda n: _login(client, "x@example.org", f"wrong {n}"), range(30)))
    assert sorted(answer.status_code for answer in wrong) == [401] * throttle.PER_ACCOUNT + [429] * 20
    assert _login(client, "x@example.org").status_code == 429


def test_what_is_counted_is_the_window_the_account_and_the_address(engine: sa.Engine) -> None:
    def attempt(email: str, address: str, at: datetime = NOW) -> int | None:
        return throttle.attempt(engine, email, address, at)

    for _ in range(throttle.PER_ACCOUNT):
        assert attempt("a@example.org", "::1")
    assert attempt("A@example.org ", "::2") is None
    assert attempt("b@example.org", "::1")
    assert attempt("a@example.org", "::2", NOW + throttle.WINDOW)
    number = attempt("b@example.org", "::1")
    assert number
    with engine.begin() as connection:
        throttle.succeeded(connection, number)
    for _ in range(throttle.PER_ACCOUNT):
        assert attempt("b@example.org", "::3")
    for number in range(throttle.PER_ADDRESS):
        attempt(f"c{number}@example.org", "::4")
    assert attempt("d@example.org", "::4") is None


def test_a_session_ends_after_a_shift_or_two_idle_hours_or_with_its_user(connection: sa.Connection) -> None:
    user = person(connection, "desk")
    token = sessions.begin(connection, user, "password", NOW)

    def holds(after: timedelta, *, touch: bool = False) -> bool:
        return sessions.look(connection, token, NOW + after, touch=touch) is not None

    assert holds(timedelta(hours=1, minutes=59))
    assert not holds(sessions.IDLE)
    for hour in range(1, 12):
        assert holds(timedelta(hours=hour), touch=True)
    assert not holds(sessions.ABSOLUTE)
    assert sessions.look(connection, "another", NOW) is None
    connection.execute(sa.text("UPDATE app_user SET state = 'disabled'"))
    assert not holds(timedelta(hours=11, minutes=1))


def test_going_out_ends_the_session_for_whoever_has_the_cookie(door: Served) -> None:
    client = door.signed_in("desk")
    token = client.cookies[door.door.cookie]
    assert client.post("/esci").status_code == 403
    assert client.post("/esci", data=door.form(client)).headers["location"] == "/entra"
    assert door.client(token).get("/").status_code == 303


def test_a_form_of_another_session_is_refused(door: Served) -> None:
    mine, hers = door.signed_in("desk"), door.signed_in("desk")
    assert mine.post("/esci", data=door.form(hers)).status_code == 403
    assert mine.get("/").status_code == 200


def test_a_link_lets_in_once_and_not_for_long(door: Served) -> None:
    with door.door.engine.begin() as connection:
        user = person(connection, "superuser")
        older = users.link(connection, user, "enter", datetime.now(UTC), timedelta(hours=1))
        token = users.link(connection, user, "enter", datetime.now(UTC), timedelta(hours=1))
    client = door.client()
    assert client.get("/ingresso", params={"gettone": older}).status_code == 403
    assert client.get("/ingresso", params={"gettone": token}).headers["location"] == "/"
    assert client.get("/").status_code == 200
    assert door.client().get("/ingresso", params={"gettone": token}).status_code == 403
    with door.door.engine.begin() as connection:
        late = users.link(connection, user, "enter", datetime.now(UTC) - timedelta(hours=2), timedelta(hours=1))
    assert door.client().get("/ingresso", params={"gettone": late}).status_code == 403


def _invited(connection: sa.Connection, role: str, token: str) -> int:
    user = person(connection, role, state="invited", activated_at=None, email=f"{token}@example.org")
    connection.execute(
        sa.text("""INSERT INTO activation_token (token_hash, user_id, created_at, expires_at)
                   VALUES (:hash, :user, now(), now() + interval '7 days')"""),
        {"hash": tokens.hashed(token), "user": user},
    )
    return user


def test_the_link_of_an_activation_mail_chooses_the_password_once(door: Served) -> None:
    with door.door.engine.begin() as connection:
        _invited(connection, "desk", "benvenuta")
    client = door.client()
    for _ in range(2):  # a mail scanner looks before she does
        assert "benvenuta" in client.get("/attiva", params={"codice": "benvenuta"}).text
    short = client.post("/attiva", data={"codice": "benvenuta", "password": "corta", "again": "corta"})
    other = client.post("/attiva", data={"codice": "benvenuta", "password": PASSWORD, "again": PASSWORD + "!"})
    assert (short.status_code, other.status_code) == (400, 400)
    chosen = client.post("/attiva", data={"codice": "benvenuta", "password": PASSWORD, "again": PASSWORD})
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/")
    assert client.get("/").status_code == 200
    again = door.client().post("/attiva", data={"codice": "benvenuta", "password": PASSWORD, "again": PASSWORD})
    assert again.status_code == 403
    assert _login(door.client(), "benvenuta@example.org").status_code == 303


def test_a_patients_link_is_good_at_the_portal_only_and_stays_so(door: Served) -> None:
    with door.door.engine.begin() as connection:
        _invited(connection, "patient", "paziente")
    data = {"codice": "paziente", "password": PASSWORD, "again": PASSWORD}
    assert door.client().post("/attiva", data=data).status_code == 403
    with door.door.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT used_at IS NULL FROM activation_token"))
        assert connection.scalar(sa.text("SELECT state FROM app_user")) == "invited"


@pytest.mark.slow
def test_a_reset_ends_everything_and_lets_choose_anew(door: Served) -> None:
    with door.door.engine.begin() as connection:
        user = person(connection, "manager", password=True, email="x@example.org")
        before = session(connection, user)
        token = users.reset(connection, "x@example.org", datetime.now(UTC))
    assert door.client(before).get("/").status_code == 303
    assert _login(door.client(), "x@example.org").status_code == 401
    new = "un'altra frase del tutto nuova"
    client = door.client()
    assert client.post("/attiva", data={"codice": token, "password": new, "again": new}).status_code == 303
    assert _login(door.client(), "x@example.org", new).status_code == 303


def test_people_are_added_changed_and_disabled(connection: sa.Connection) -> None:
    for code in ("BO01", "MI01"):
        world.clinic(connection, code)
    users.add(connection, "a@example.org", "Anna", Role.MANAGER, ["BO01", "MI01"], NOW)
    users.add(connection, "b@example.org", "Bea", Role.MANAGER, [], NOW)
    for email, role, clinics in (
        ("A@example.org", Role.DESK, ["BO01"]),
        ("c@example.org", Role.DESK, []),
        ("c@example.org", Role.SUPERUSER, ["BO01"]),
        ("c@example.org", Role.MANAGER, ["XX99"]),
    ):
        with pytest.raises(PermanentError):
            users.add(connection, email, "Carla", role, clinics, NOW)
    listed = {user.email: (user.role, user.clinics, user.state) for user in users.listed(connection)}
    assert listed == {
        "a@example.org": ("manager", ("BO01", "MI01"), "never_invited"),
        "b@example.org": ("manager", (), "never_invited"),
    }
    token = session(connection, _activate(connection, "a@example.org"))
    now = datetime.now(UTC)
    found = sessions.look(connection, token, now)
    assert found is not None
    assert (found.clinics, found.acts_for("MI01"), found.acts_for(None)) == (frozenset({"BO01", "MI01"}), True, False)
    users.change_role(connection, "a@example.org", Role.DESK, ["MI01"], now)
    assert sessions.look(connection, token, now) is None
    token = session(connection, _activate(connection, "b@example.org"))
    assert sessions.look(connection, token, now + timedelta(minutes=1)) is not None
    users.disable(connection, "b@example.org", now)
    assert sessions.look(connection, token, now) is None
    with pytest.raises(PermanentError):
        users.disable(connection, "nobody@example.org", now)


def _activate(connection: sa.Connection, email: str) -> int:
    return connection.scalars(
        sa.text("UPDATE app_user SET state = 'active', activated_at = now() WHERE email = :email RETURNING id"),
        {"email": email},
    ).one()


@pytest.mark.parametrize(
    ("given", "goes"),
    [
        ("/dagster/runs?x=1", "/dagster/runs?x=1"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("", "/"),
        (None, "/"),
    ],
)
def test_a_login_leads_to_a_page_of_ours(given: str | None, goes: str) -> None:
    assert local(given) == goes


@pytest.mark.parametrize("password", ["corta", "x" * 500, "aaaaaaaaaaaaaaaa", "direzione@example.org"])
def test_a_password_that_is_guessed_is_not_taken(password: str) -> None:
    assert users.weak(password, "direzione@example.org")
    assert users.weak(PASSWORD) is None
