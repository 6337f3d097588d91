from __future__ import annotations

from pathlib import Path

import pytest

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.settings import load


def test_defaults_need_no_environment(tmp_path: Path) -> None:
    settings = load({"POLYDESK_HOME": str(tmp_path)})
    assert settings.embedded
    assert (settings.web_host, settings.web_port) == ("127.0.0.1", 3000)
    assert settings.documents_folder == tmp_path / "documents"


def test_half_a_configuration_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="POLYDESK_CENTRAL_TOKEN: manca, ma POLYDESK_CENTRAL_URL"):
        load({"POLYDESK_HOME": str(tmp_path), "POLYDESK_CENTRAL_URL": "http://127.0.0.1:1"})


def test_every_problem_is_named_and_no_secret_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(
            {
                "POLYDESK_HOME": str(tmp_path),
                "POLYDESK_DATABASE_URL": "mysql://root:hunter2@db/x",
                "POLYDESK_SMS_URL": "ftp://gateway",
                "POLYDESK_SMS_TOKEN": "s3cret",
                "POLYDESK_SMS_SENDER": "Polydesk",
            }
        )
    message = str(caught.value)
    assert "POLYDESK_DATABASE_URL" in message
    assert "POLYDESK_SMS_URL" in message
    assert "hunter2" not in message
    assert "s3cret" not in message


def test_port_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="POLYDESK_WEB_PORT"):
        load({"POLYDESK_HOME": str(tmp_path), "POLYDESK_WEB_PORT": "70000"})


def test_dotenv_of_the_home_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POLYDESK_WEB_PORT=4000\nPOLYDESK_WEB_HOST=0.0.0.0\n")
    settings = load({"POLYDESK_HOME": str(tmp_path), "POLYDESK_WEB_PORT": "5000"})
    assert (settings.web_host, settings.web_port) == ("0.0.0.0", 5000)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_any_postgresql_scheme_is_normalised(tmp_path: Path, scheme: str) -> None:
    settings = load({"POLYDESK_HOME": str(tmp_path), "POLYDESK_DATABASE_URL": f"{scheme}://u:p@db:5433/clinics"})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:p@db:5433/clinics"
    assert "p@db" not in repr(settings)
