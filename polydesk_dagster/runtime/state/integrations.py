"""The state of every clinic's integration with studiolab, as its last looks and its settings leave it.

Whether a studiolab answers right now only a request can tell: ``probing`` asks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.changes.why import read
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.runtime.state.model import IntegrationState, Link
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.events.intervals import interval
from polydesk_dagster.sources.integrations import SETTINGS
from polydesk_dagster.sources.port import Link as SourceLink
from polydesk_dagster.sources.port import Numbers

LISTS = tuple(each.key for each in SERVICES if each.group == "studiolab" and each.reaches_out and each.sensor is None)
"""Services that read lists."""

CLINICS = f"""
    SELECT c.code AS clinic, c.name, c.time_zone, c.language, c.active,
           (SELECT count(*) FROM agenda a WHERE a.clinic_id = c.id AND a.active) AS agendas,
           coalesce(i.base_url, i.vendor) AS base_url, i.token_env, i.active AS on, i.vendor, i.source,
           {SETTINGS} AS settings, e.stopped_at, e.stopped_reason, coalesce(e.failures, 0) AS failures,
           e.down_since, e.down_reason, e.quiet_until, e.read_at, e.answered_at,
           coalesce(e.read_at, i.updated_at) AS quiet_since, coalesce(e.slowed, 1) AS slowed,
           EXISTS (SELECT FROM service_run r WHERE r.clinic_id = c.id AND r.service = 'sync_events') AS asked,
           (SELECT max(r.started_at) FROM service_run r
            WHERE r.clinic_id = c.id AND r.service = ANY(:lists) AND NOT r.preview
              AND r.outcome IN ('ok', 'nothing_to_do', 'partial')) AS listed_at
    FROM clinic c LEFT JOIN integration i ON i.clinic_id = c.id LEFT JOIN event_cursor e ON e.clinic_id = c.id
    WHERE CAST(:clinic AS text) IS NULL OR c.code = :clinic ORDER BY c.code"""


def integration_states(
    connection: sa.Connection, has_token: Callable[[str], bool], clinic: str | None = None
) -> tuple[IntegrationState, ...]:
    """Every clinic, by code, or only one; ``has_token`` says whether a variable that an integration names is set."""
    rows = connection.execute(sa.text(CLINICS), {"clinic": clinic, "lists": list(LISTS)})
    return tuple(_state(row, has_token) for row in rows)


def integration_state(
    connection: sa.Connection, clinic: str, has_token: Callable[[str], bool]
) -> IntegrationState | None:
    """The same of one clinic; None where there is none with that code."""
    return next(iter(integration_states(connection, has_token, clinic)), None)


def asked_every(state: IntegrationState, as_of: datetime) -> int | None:
    """Minutes between two looks at a clinic whose studiolab is well; None where it is asked otherwise or not."""
    if state.link not in {Link.WELL, Link.NOT_ASKED} or not state.tells:
        return None
    return interval(state.quiet_since, state.slowed, as_of)


def _state(row: sa.Row[tuple[object, ...]], has_token: Callable[[str], bool]) -> IntegrationState:
    link = _link(row, has_token)
    return IntegrationState(
        row.clinic,
        row.name,
        row.time_zone,
        row.language,
        row.active,
        row.agendas,
        link,
        row.base_url,
        row.token_env,
        {Link.STOPPED: row.stopped_at, Link.UNREACHABLE: row.down_since}.get(link),
        row.quiet_until,
        row.failures,
        read(row.stopped_reason if link is Link.STOPPED else row.down_reason),
        row.read_at,
        row.quiet_since,
        row.slowed,
        row.listed_at,
        _tells(row),
    )


def _link(row: sa.Row[tuple[object, ...]], has_token: Callable[[str], bool]) -> Link:
    if row.base_url is None:
        return Link.ABSENT
    if not row.on:
        return Link.OFF
    if not row.active:
        return Link.CLINIC_OFF
    if row.source is not None and leads_to(row) != row.source:
        return Link.CHANGED
    if row.token_env is not None and not has_token(row.token_env):
        return Link.TOKEN_MISSING
    if row.stopped_at is not None:
        return Link.STOPPED
    if row.failures:
        return Link.UNREACHABLE
    seen = row.read_at is not None or row.asked or row.listed_at is not None
    seen = seen or (row.answered_at is not None and _tells(row))
    return Link.WELL if seen else Link.NOT_ASKED


def _tells(row: sa.Row[tuple[object, ...]]) -> bool:
    """Whether the source tells news, as far as its vendor is known."""
    try:
        return row.vendor is None or vendors.vendor(row.vendor).news is not Numbers.NONE
    except ConfigurationError:
        return True


def leads_to(row: sa.Row[tuple[object, ...]]) -> str:
    """Which source the integration names now; the known one where its settings are wrong, which is told elsewhere."""
    try:
        return vendors.epoch(SourceLink(row.clinic, row.vendor, row.settings))
    except ConfigurationError:
        return str(row.source)
