"""OpenID Connect against a provider that listens: who it vouches for comes in, and nobody by another's journey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from joserfc.jwk import RSAKey

from tests.web.provider import Provider, providing
from tests.web.world import Served, person, served

SUBJECT = "b7d9"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing(sub=SUBJECT, email="Direzione@Example.org", email_verified=True) as listening:
        yield listening


@pytest.fixture
def door(engine: sa.Engine, tmp_path: Path, provider: Provider) -> Iterator[Served]:
    with engine.begin() as connection:
        person(connection, "manager", email="direzione@example.org")
    with served(engine, tmp_path / "home", **provider.settings) as listening:
        yield listening


def gone(client: httpx.Client, to: str = "/") -> str:
    """The address that the provider sends the browser back to."""
    there = client.get("/entra/oidc", params={"da": to})
    assert there.status_code == 302, there.text
    return httpx.get(there.headers["location"]).headers["location"]


def test_whom_the_provider_vouches_for_comes_in_and_is_bound(door: Served, provider: Provider) -> None:
    client = door.client()
    assert "/entra/oidc?da=" in client.get("/entra").text
    back = client.get(gone(client, "/dagster/runs"))
    assert (back.status_code, back.headers["location"]) == (303, "/dagster/runs")
    assert client.get("/").status_code == 200
    with door.door.engine.begin() as connection:
        assert connection.execute(sa.text("SELECT issuer, subject FROM user_identity")).all() == [
            (provider.issuer, SUBJECT)
        ]
        connection.execute(sa.text("UPDATE app_user SET email = 'nuova@example.org'"))
    again = door.client()
    assert again.get(gone(again)).status_code == 303  # bound to the subject, whatever the address becomes


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "nessuno@example.org"},
        {"email_verified": False},
        {"email_verified": None},
        {"aud": "another"},
        {"iss": "https://evil.example"},
        {"exp": 1_000_000_000},
    ],
    ids=str,
)
def test_whoever_is_not_ours_does_not(door: Served, provider: Provider, claims: dict[str, object]) -> None:
    provider.claims |= claims
    client = door.client()
    assert client.get(gone(client)).status_code == 403
    assert client.get("/").status_code == 303


def test_another_subject_with_the_same_address_does_not(door: Served, provider: Provider) -> None:
    first = door.client()
    assert first.get(gone(first)).status_code == 303
    provider.claims["sub"] = "another"
    second = door.client()
    assert second.get(gone(second)).status_code == 403


def test_a_disabled_person_does_not(door: Served) -> None:
    first = door.client()
    assert first.get(gone(first)).status_code == 303
    with door.door.engine.begin() as connection:
        connection.execute(sa.text("UPDATE app_user SET state = 'disabled'"))
    second = door.client()
    assert second.get(gone(second)).status_code == 403


def test_a_token_of_another_journey_or_another_key_is_refused(door: Served, provider: Provider) -> None:
    provider.nonce = "another"
    client = door.client()
    assert client.get(gone(client)).status_code == 403
    provider.nonce, provider.signing = None, RSAKey.generate_key(2048)
    assert client.get(gone(client)).status_code == 403


def test_nobody_is_let_in_by_another_browsers_journey(door: Served) -> None:
    mine, hers = door.client(), door.client()
    address = gone(mine)
    assert hers.get(address).status_code == 403  # she was made to open it; it is not her journey
    gone(hers)
    assert hers.get(address).status_code == 403
    assert mine.get(address).status_code == 303
    assert mine.get(address).status_code == 403  # once


def test_without_a_provider_there_is_no_such_way(engine: sa.Engine, tmp_path: Path) -> None:
    with served(engine, tmp_path) as door:
        client = door.client()
        assert client.get("/entra/oidc").status_code == 404
        assert "oidc" not in client.get("/entra").text


def test_a_provider_that_does_not_answer_is_said(engine: sa.Engine, tmp_path: Path) -> None:
    nobody = {"oidc_issuer": "http://127.0.0.1:1", "oidc_client_id": "a", "oidc_client_secret": "b"}
    with served(engine, tmp_path, **nobody) as door:
        assert door.client().get("/entra/oidc").status_code == 502
