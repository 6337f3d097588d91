"""Settings as the lines of a ``.env``: written without their secrets, read, and put into a home's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values, set_key, unset_key
from pydantic import SecretStr

from polydesk_dagster.settings import Settings, variable

OF_THE_PLACE = {"home", "database_url", "instance"}
"""What belongs to a machine and not to the installation: a copy that is restored has its own."""


def write(settings: Settings, tokens: Iterable[str], target: Path) -> tuple[str, ...]:
    """Write what is set, leaving the value of each secret empty; returns the secrets' names. ``tokens`` are variables
    that the clinics' integrations name."""
    secrets: list[str] = []
    target.touch(mode=0o600)
    for field in Settings.model_fields:
        value = getattr(settings, field)
        if field in OF_THE_PLACE or field not in settings.model_fields_set or value is None:
            continue
        if isinstance(value, SecretStr):
            secrets.append(variable(field))
        else:
            set_key(target, variable(field), str(value))
    secrets += tokens
    with target.open("a") as file:
        file.writelines(f"{name}=\n" for name in secrets)
    return tuple(secrets)


def read(file: Path) -> dict[str, str]:
    """The variables of a ``.env``, those without a value left out."""
    return {name: value for name, value in dotenv_values(file, interpolate=False).items() if value}


def put(home: Path, values: Mapping[str, str | None]) -> Path:
    """Set variables in the home's ``.env``, which its owner alone may read; with None one is taken out."""
    target = home / ".env"
    target.touch(mode=0o600)
    target.chmod(0o600)
    for name, value in values.items():
        if value is None:
            unset_key(target, name)
        else:
            set_key(target, name, value)
    target.chmod(0o600)
    return target
