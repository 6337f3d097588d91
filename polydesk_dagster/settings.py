"""What this installation is: read from the environment once, checked whole, wrong or half values refused by name."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from polydesk_dagster.errors import ConfigurationError


def person(operator: str = "") -> str:
    """Who acts, as the audit trail names people: whoever's account this is, and ``operator`` if somebody says that it
    is another who does."""
    account = f"desk:{getpass.getuser()}"
    return f"{account} as {operator}" if operator else account


def _blank_is_absent(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _http_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("serve un indirizzo http:// o https://")
    return value.rstrip("/")


def _smtp_url(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
        raise ValueError("serve un indirizzo smtp://utente:password@host:porta")
    return value


def _postgres_url(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    url = value.get_secret_value()
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"}:
        raise ValueError("serve un indirizzo postgresql://utente:password@host:porta/database")
    return SecretStr(f"postgresql://{rest}")


Text = Annotated[str | None, BeforeValidator(_blank_is_absent)]
Secret = Annotated[SecretStr | None, BeforeValidator(_blank_is_absent)]


class Settings(BaseModel):
    """One installation. Field ``x`` is the environment variable ``POLYDESK_X``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    home: Path = Path(".polydesk")
    database_url: Secret = None
    central_url: Text = None
    central_token: Secret = None
    sms_url: Text = None
    sms_token: Secret = None
    sms_sender: Text = None
    smtp_url: Secret = None
    mail_from: Text = None
    documents: Path | None = None
    knowledge_uri: Text = None
    embeddings_url: Text = None
    embeddings_model: Text = None
    embeddings_key: Secret = None
    operator_mail: Text = None
    web_host: str = "127.0.0.1"
    web_port: int = Field(3000, ge=1, le=65535)

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems: list[str] = []
        values: dict[str, object] = {}
        checks = (
            ("central_url", _http_url),
            ("sms_url", _http_url),
            ("embeddings_url", _http_url),
            ("smtp_url", _smtp_url),
            ("database_url", _postgres_url),
        )
        for name, check in checks:
            try:
                values[name] = check(getattr(self, name))
            except ValueError as error:
                problems.append(f"{variable(name)}: {error}")
        for group in (
            ("central_url", "central_token"),
            ("sms_url", "sms_token", "sms_sender"),
            ("smtp_url", "mail_from"),
        ):
            missing = [variable(name) for name in group if getattr(self, name) is None]
            if missing and len(missing) < len(group):
                present = [variable(name) for name in group if variable(name) not in missing]
                problems.append(
                    f"{', '.join(missing)}: manca, ma {', '.join(present)} è impostata: impostale tutte o nessuna"
                )
        problems += self._embeddings_problems()
        if problems:
            raise ValueError("; ".join(problems))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "home", self.home.expanduser().absolute())
        return self

    def _embeddings_problems(self) -> list[str]:
        """A model alone is a folder with the model in it; an address needs a model's name."""
        if self.embeddings_model is None:
            stray = [variable(n) for n in ("embeddings_url", "embeddings_key") if getattr(self, n) is not None]
            missing = variable("embeddings_model")
            return [f"{missing}: manca, ma {', '.join(stray)} è impostata: impostale tutte o nessuna"] if stray else []
        if self.embeddings_url is None and not Path(self.embeddings_model).is_dir():
            return [
                f"{variable('embeddings_model')}: senza {variable('embeddings_url')} serve la cartella di un modello"
            ]
        return []

    @property
    def embedded(self) -> bool:
        """Whether the database is the one under the home."""
        return self.database_url is None

    @property
    def documents_folder(self) -> Path:
        return (self.documents or self.home / "documents").expanduser().absolute()


def variable(field: str) -> str:
    return f"POLYDESK_{field.upper()}"


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from ``environment`` (default: the process's) over the ``.env`` of the home.

    Raises:
        ConfigurationError: naming every variable that is wrong, unknown or half filled in; never its value.
    """
    given = dict(os.environ if environment is None else environment)
    home = Path(given.get("POLYDESK_HOME") or ".polydesk").expanduser()
    dotenv = {key: value for key, value in dotenv_values(home / ".env").items() if value is not None}
    merged = {**dotenv, **given, "POLYDESK_HOME": str(home)}
    known = {variable(name): name for name in Settings.model_fields}
    try:
        return Settings(**{name: merged[key] for key, name in known.items() if merged.get(key, "").strip()})
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def secret(name: str) -> str | None:
    """The value of the variable ``name`` that a clinic's integration names, from the environment or the home's
    ``.env``; None if it is not set."""
    return os.environ.get(name) or dotenv_values(load().home / ".env").get(name) or None


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        where = variable(str(problem["loc"][0])) + ": " if problem["loc"] else ""
        lines.append(where + problem["msg"].removeprefix("Value error, "))
    return "Configurazione non valida. " + "; ".join(lines)
