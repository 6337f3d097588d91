"""What nearly every run needs besides its definitions, made once by the process that runs are forked from."""

from __future__ import annotations

from importlib import import_module

from polydesk_dagster.runtime.dagster_inside.names import NEEDED_BY_RUNS

_MODULES = (
    *NEEDED_BY_RUNS,
    "anyio._backends._asyncio",
    "phonenumbers",
    "polydesk_dagster.providers.smtp",
    "polydesk_dagster.runtime.dagster_inside.compute_logs",
    "polydesk_dagster.runtime.dagster_inside.coordinator",
    "polydesk_dagster.runtime.dagster_inside.launcher",
    "polydesk_dagster.runtime.dagster_inside.runs",
    "polydesk_dagster.runtime.dagster_inside.storage",
    "polydesk_dagster.runtime.orders",
    "polydesk_dagster.sources.studiolab.vendor",
    "psycopg",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql",
)


def make() -> None:
    """Import it, and read the certificates that are believed: whoever asks others for something would for each run."""
    for module in _MODULES:
        import_module(module)
    from polydesk_dagster import network

    network.trust()
