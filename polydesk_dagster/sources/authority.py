"""Where a list that belongs to the whole chain comes from: one source, whose word alone counts.

Two clinics' systems hold the municipalities of different years; were each believed in its turn, they would rewrite the
chain's list back and forth. The first source that gives such a list is its authority until a person names another: the
source of another clinic, or one of its own, such as a file.
"""

from __future__ import annotations

from datetime import datetime
from json import dumps

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.port import Link

LISTS = frozenset({"municipalities"})
"""The lists that belong to no clinic."""


def pinned(connection: sa.Connection, name: str) -> str | Link | None:
    """Where the list comes from: a clinic's code, whose source it is, or a link of its own (which names no clinic);
    None where nobody gave it yet."""
    row = connection.execute(
        sa.text("""
            SELECT c.code, s.vendor, s.settings FROM chain_source s LEFT JOIN clinic c ON c.id = s.clinic_id
            WHERE s.list = :list"""),
        {"list": name},
    ).one_or_none()
    if row is None:
        return None
    return str(row.code) if row.code is not None else Link("", row.vendor, row.settings)


def first(connection: sa.Connection, name: str, clinic: str, as_of: datetime) -> None:
    """Take the source of ``clinic``, which was the first to give the list, for its authority."""
    connection.execute(
        sa.text("""
            INSERT INTO chain_source (list, clinic_id, pinned_at, pinned_by)
            SELECT :list, id, :as_of, 'dagster' FROM clinic WHERE code = :clinic ON CONFLICT DO NOTHING"""),
        {"list": name, "clinic": clinic, "as_of": as_of},
    )


def choose(connection: sa.Connection, name: str, to: str | Link, *, actor: str, reason: str, as_of: datetime) -> None:
    """Make the source of a clinic (a code), or a link of its own, the authority of the list.

    Raises:
        PermanentError: there is no such clinic.
    """
    own = to if isinstance(to, Link) else None
    done = connection.execute(
        sa.text("""
            INSERT INTO chain_source (list, clinic_id, vendor, settings, pinned_at, pinned_by)
            SELECT :list, c.id, :vendor, CAST(:settings AS jsonb), :as_of, :actor
            FROM (SELECT 1) one LEFT JOIN clinic c ON c.code = :clinic
            WHERE CAST(:vendor AS text) IS NOT NULL OR c.id IS NOT NULL
            ON CONFLICT (list) DO UPDATE
            SET clinic_id = excluded.clinic_id, vendor = excluded.vendor, settings = excluded.settings,
                pinned_at = excluded.pinned_at, pinned_by = excluded.pinned_by"""),
        {
            "list": name,
            "clinic": None if own else to,
            "vendor": own and own.vendor,
            "settings": None if own is None else dumps(dict(own.settings)),
            "as_of": as_of,
            "actor": actor,
        },
    )
    if not done.rowcount:
        raise PermanentError("no_such_clinic", code=str(to))
    detail = {"list": name, "clinic": None if own else to, "vendor": own and own.vendor, "reason": reason}
    audit.append(connection, as_of=as_of, actor=actor, action="authority", service="integration", detail=detail)
