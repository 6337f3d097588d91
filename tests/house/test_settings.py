from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polydesk_dagster import settings
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.settings import Settings, load, variable
from polydesk_dagster.told import teller

Given = Callable[..., None]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """Sets variables by field; nothing else of the installation is in the environment."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))

    def give(**values: str) -> None:
        for field, value in values.items():
            monkeypatch.setenv(variable(field), value)

    return give


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    """An empty ``.env`` of the home that its owner alone may read."""
    file = tmp_path / ".env"
    file.touch(mode=0o600)
    return file


def test_defaults_need_no_environment(given: Given, tmp_path: Path) -> None:
    found = load()
    assert found.embedded
    assert (found.web_host, found.web_port) == ("127.0.0.1", 3000)
    assert found.documents_folder == tmp_path / "documents"


def test_a_home_is_where_it_is_from_wherever_the_command_is_given(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given(home=" ")
    assert load().home == tmp_path / ".polydesk"
    given(home="~/clinics")
    assert load().home == Path.home() / "clinics"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"central_url": "http://127.0.0.1:1"},
            "con POLYDESK_CENTRAL_URL serve anche POLYDESK_CENTRAL_TOKEN: impostale tutte",
        ),
        (
            {"sms_token": "s3cret", "sms_sender": "  "},
            "con POLYDESK_SMS_TOKEN servono anche POLYDESK_SMS_URL e POLYDESK_SMS_SENDER: impostale",
        ),
        ({"alert_token": "s3cret"}, "con POLYDESK_ALERT_TOKEN serve anche POLYDESK_ALERT_URL"),
        ({"alert_url": "mailto:s3cret@x"}, "POLYDESK_ALERT_URL non è un indirizzo http"),
        ({"mail_from": "a@b.it"}, "con POLYDESK_MAIL_FROM serve anche POLYDESK_SMTP_URL"),
        (
            {"oidc_issuer": "https://login.example.it"},
            "con POLYDESK_OIDC_ISSUER servono anche POLYDESK_OIDC_CLIENT_ID e POLYDESK_OIDC_CLIENT_SECRET",
        ),
        (
            {"embeddings_key": "s3cret"},
            "con POLYDESK_EMBEDDINGS_KEY servono anche POLYDESK_EMBEDDINGS_MODEL e POLYDESK_EMBEDDINGS_URL",
        ),
        ({"embeddings_model": "/nowhere"}, "POLYDESK_EMBEDDINGS_MODEL: senza POLYDESK_EMBEDDINGS_URL serve"),
        ({"web_port": "70000"}, "POLYDESK_WEB_PORT è maggiore di 65535"),
        ({"web_port": "s3cret"}, "POLYDESK_WEB_PORT non è un numero intero"),
        ({"public_url": "polydesk.example.it"}, "POLYDESK_PUBLIC_URL non è un indirizzo http"),
        ({"smtp_url": "imap://s3cret@mail"}, "POLYDESK_SMTP_URL non è un indirizzo smtp://"),
    ],
)
def test_what_is_wrong_or_half_is_refused_by_name(given: Given, values: dict[str, str], complaint: str) -> None:
    given(**values)
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert complaint in teller().reason(refused.value.reason)
    assert "s3cret" not in str(refused.value)


def test_every_problem_is_named_and_no_secret_is_shown(given: Given) -> None:
    given(database_url="mysql://root:hunter2@db/x", sms_url="ftp://gateway", sms_token="s3cret", sms_sender="Polydesk")
    with pytest.raises(ConfigurationError) as caught:
        load()
    message = str(caught.value)
    assert "POLYDESK_DATABASE_URL" in message
    assert "POLYDESK_SMS_URL" in message
    assert "hunter2" not in message
    assert "s3cret" not in message


def test_dotenv_of_the_home_is_read_and_the_environment_wins(given: Given, dotenv: Path) -> None:
    dotenv.write_text("POLYDESK_WEB_PORT=4000\nPOLYDESK_WEB_HOST=0.0.0.0\nPOLYDESK_MAIL_FROM=\nPOLYDESK_HOME=/other\n")
    given(web_port="5000")
    found = load()
    assert (found.web_host, found.web_port, found.home) == ("0.0.0.0", 5000, dotenv.parent)


def test_what_is_said_anew_is_read_anew_and_only_then(
    given: Given, dotenv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load() is load()
    given(web_port="4000")
    assert load().web_port == 4000
    dotenv.write_text("POLYDESK_OPERATOR_MAIL=uno@example.org\n")
    assert load().operator_mail == "uno@example.org"
    dotenv.write_text("POLYDESK_OPERATOR_MAIL=due@example.org\n")  # as long as before
    assert load().operator_mail == "due@example.org"
    monkeypatch.setenv("polydesk_operator_mail", "tre@example.org")
    assert load().operator_mail == "tre@example.org"
    monkeypatch.chdir(tmp_path)
    given(documents="docs")
    assert load().documents == tmp_path / "docs"
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert load().documents == elsewhere / "docs"
    given(embeddings_model=str(elsewhere))
    assert load().embeddings_model == str(elsewhere)
    monkeypatch.chdir(tmp_path)
    elsewhere.rmdir()
    with pytest.raises(ConfigurationError):
        load()


def test_a_token_of_a_clinic_stands_in_the_dotenv_beside_the_settings(given: Given, dotenv: Path) -> None:
    dotenv.write_text("POLYDESK_STUDIOLAB_TOKEN_GE01=s3cret\nOTHER=1\n")
    assert load().embedded
    assert settings.secret("POLYDESK_STUDIOLAB_TOKEN_GE01") == "s3cret"
    assert settings.secret("POLYDESK_STUDIOLAB_TOKEN_GE02") is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_dotenv_that_others_may_read_is_refused(given: Given, dotenv: Path, mode: int) -> None:
    dotenv.write_text("POLYDESK_STUDIOLAB_TOKEN_GE01=s3cret\n")
    dotenv.chmod(mode)
    for read in (load, lambda: settings.secret("POLYDESK_STUDIOLAB_TOKEN_GE01")):
        with pytest.raises(ConfigurationError, match="dotenv_read_by_others"):
            read()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_any_postgresql_scheme_is_normalised(given: Given, scheme: str) -> None:
    given(database_url=f"{scheme}://u:p@db:5433/clinics")
    found = load()
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == "postgresql://u:p@db:5433/clinics"
    assert "p@db" not in repr(found)


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ({}, "http://127.0.0.1:3000"),
        ({"web_host": "::1", "web_port": "80"}, "http://[::1]:80"),
        ({"public_url": "https://polydesk.example.it/"}, "https://polydesk.example.it"),
    ],
)
def test_people_reach_it_at_the_public_address_or_where_it_listens(
    given: Given, values: dict[str, str], address: str
) -> None:
    given(**values)
    assert load().address == address
