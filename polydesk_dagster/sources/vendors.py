"""Which vendors there are: ours, and those of packages that are installed beside us."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from polydesk_dagster.errors import ConfigurationError, PolydeskError
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources.port import Link, Secret, Source, Vendor
from polydesk_dagster.wrong import reason

GROUP = "polydesk_dagster.sources"

OURS = tuple(
    EntryPoint(name, f"polydesk_dagster.sources.{name}.vendor:VENDOR", GROUP) for name in ("studiolab", "files", "fhir")
)


def names() -> list[str]:
    """Every vendor that an integration may name."""
    return sorted({point.name for point in (*entry_points(group=GROUP), *OURS)})


@cache
def _installed(_where: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What is told by the packages of these folders, all of which are opened for that: 5 ms of processor time."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _point(name: str) -> EntryPoint | None:
    where = tuple(sys.path)
    if name not in _installed(where):
        _installed.cache_clear()  # it may have come since
    return _installed(where).get(name)


@cache
def _ours(name: str) -> Vendor[Any] | None:
    return next((point.load() for point in OURS if point.name == name), None)


def vendor(name: str, clinic: str | None = None) -> Vendor[Any]:
    """The vendor called ``name``. Raises ConfigurationError where no package brings it, or that package is broken."""
    if (ours := _ours(name)) is not None:
        return ours
    point = _point(name)
    if point is None:
        raise ConfigurationError("vendor_unknown", clinic=clinic, vendor=name)
    with _of_somebody_else(name, clinic):
        loaded: Vendor[Any] = point.load()
        _ = loaded.settings, loaded.news, loaded.epoch, loaded.open
    return loaded


@contextmanager
def _of_somebody_else(name: str, clinic: str | None, *but: type[Exception]) -> Iterator[None]:
    """Whatever a package raises that is not ours is its clinic's alone, as what is wrong with an integration."""
    try:
        yield
    except (PolydeskError, *but):
        raise
    except Exception as error:
        raise ConfigurationError("vendor_broken", clinic=clinic, vendor=name, error=type(error).__name__) from error


def settings(link: Link) -> BaseModel:
    """The link's settings as its vendor understands them. Raises ConfigurationError, naming what is wrong and never a
    value."""
    try:
        with _of_somebody_else(link.vendor, link.clinic, ValidationError):
            read: BaseModel = vendor(link.vendor, link.clinic).settings.model_validate(dict(link.settings))
    except ValidationError as error:
        raise ConfigurationError("source_settings", clinic=link.clinic, vendor=link.vendor, why=reason(error)) from None
    except ConfigurationError as error:
        raise ConfigurationError(error.reason.code, clinic=link.clinic, **error.reason.values) from None
    return read


def epoch(link: Link) -> str:
    """Which system the link leads to, without asking it. Raises ConfigurationError as ``settings`` does."""
    read = settings(link)
    with _of_somebody_else(link.vendor, link.clinic):
        return vendor(link.vendor, link.clinic).epoch(read)


def open_source(link: Link, secret: Callable[[str], str | None], policy: Policy | None = None) -> Source:
    """The source behind a link; close it. ``secret`` is asked for the variables that its settings name.

    Raises:
        ConfigurationError: for settings that are wrong, and a variable that is not set.
    """
    return vendor(link.vendor, link.clinic).open(link.clinic, settings(link), needed(link, secret), policy)


def needed(link: Link, secret: Callable[[str], str | None]) -> Secret:
    """``secret``, but what is not set is a ConfigurationError of the link's clinic."""

    def find(variable: str) -> str:
        value = secret(variable)
        if value is None:
            raise ConfigurationError("token_missing", clinic=link.clinic, variable=variable)
        return value

    return find
