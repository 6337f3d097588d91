"""A clinic's integration with its source, as a person switches it on and off."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.port import Link, Numbers

SETTINGS = "i.settings || jsonb_strip_nulls(jsonb_build_object('url', i.base_url, 'token', i.token_env))"
"""SQL over an integration ``i``: all that its vendor is to be given."""


_LINK = f"SELECT i.vendor, {SETTINGS} AS settings, c.active AND i.active AS on FROM clinic c JOIN integration i"


def configured(connection: sa.Connection, clinic: str, *, on: bool = False) -> Link:
    """A clinic's integration; with ``on`` only one that is. Raises ConfigurationError where there is none."""
    found = connection.execute(
        sa.text(f"{_LINK} ON i.clinic_id = c.id WHERE c.code = :clinic"), {"clinic": clinic}
    ).one_or_none()
    if found is None or (on and not found.on):
        raise ConfigurationError("integration_off" if on else "integration_absent", clinic=clinic)
    return Link(clinic, found.vendor, found.settings)


def at_the_same(connection: sa.Connection, clinic: str) -> list[str]:
    """Other clinics (codes) whose integration is on and leads to the same source of news: each would read the
    other's, unless the source tells them apart by their tokens. Raises ConfigurationError as ``vendors.epoch`` does."""
    link = configured(connection, clinic)
    if vendors.vendor(link.vendor, clinic).news is Numbers.NONE:
        return []
    epoch, found = vendors.epoch(link), []
    rows = connection.execute(
        sa.text(f"""
            SELECT c.code, i.vendor, {SETTINGS} AS settings FROM clinic c JOIN integration i ON i.clinic_id = c.id
            WHERE c.active AND i.active AND c.code <> :clinic AND i.vendor = :vendor ORDER BY c.code"""),
        {"clinic": clinic, "vendor": link.vendor},
    )
    for row in rows:
        with suppress(ConfigurationError):  # what is wrong with another's is told there
            if vendors.epoch(Link(*row)) == epoch:
                found.append(row.code)
    return found


def switch(connection: sa.Connection, clinic: str, *, on: bool, actor: str, as_of: datetime) -> bool:
    """Switch a clinic's integration; returns whether there is one. What it is already is left, without a line in the
    audit trail."""
    known = connection.scalar(
        sa.text("""
            SELECT i.active FROM integration i JOIN clinic c ON c.id = i.clinic_id
            WHERE c.code = :clinic FOR UPDATE OF i"""),
        {"clinic": clinic},
    )
    if known is None or known == on:
        return known is not None
    connection.execute(
        sa.text("""
            UPDATE integration SET active = :on, updated_at = :as_of
            WHERE clinic_id = (SELECT id FROM clinic WHERE code = :clinic)"""),
        {"on": on, "clinic": clinic, "as_of": as_of},
    )
    action = "integration_on" if on else "integration_off"
    audit.append(connection, as_of=as_of, actor=actor, action=action, service="integration", clinic=clinic)
    return True
