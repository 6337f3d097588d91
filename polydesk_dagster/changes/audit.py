"""The audit trail: append-only, each line's hash holding the one before it, so that a changed line shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

LEAST_REASON = 10
"""Characters of a reason, where a person has to give one."""


def is_reason(given: str | None) -> bool:
    """Whether ``given`` says enough to be a reason; blanks around it say nothing."""
    return len((given or "").strip()) >= LEAST_REASON


def is_person(actor: str) -> bool:
    """Whether ``actor`` is somebody: people are ``role:name``, a machine is one word."""
    return ":" in actor


APPEND = sa.text("""
    INSERT INTO audit (as_of, actor, action, service, clinic, plan_id, detail)
    VALUES (:as_of, :actor, :action, :service, :clinic, :plan_id, CAST(:detail AS jsonb))
    RETURNING id
""")

BROKEN = sa.text("""
    SELECT id, CASE WHEN hash <> audit_hash(line) THEN 'altered' ELSE 'unlinked' END AS fault
    FROM (SELECT audit AS line, id, hash, previous_hash,
                 lag(hash, 1, '\\x') OVER (ORDER BY id) AS expected, lag(id, 1, 0::bigint) OVER (ORDER BY id) AS before
          FROM audit) chain
    WHERE hash <> audit_hash(line) OR previous_hash <> expected OR id <> before + 1
    UNION ALL
    SELECT coalesce(head.id, last.id, 0), 'cut off'
    FROM (VALUES (1)) one LEFT JOIN audit_head head ON true
    LEFT JOIN (SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1) last ON true
    WHERE (head.id, head.hash) IS DISTINCT FROM (coalesce(last.id, 0), coalesce(last.hash, '\\x'))
    ORDER BY 1
""")


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is not what was written: ``altered``, ``unlinked`` (its predecessor is missing) or ``cut off``."""

    line: int
    fault: str


def append(
    connection: sa.Connection,
    *,
    as_of: datetime,
    actor: str,
    action: str,
    service: str,
    clinic: str | None = None,
    plan_id: int | None = None,
    detail: Mapping[str, object] | None = None,
) -> int:
    """Write one line in the caller's transaction and return its number. ``actor`` tells people from machines
    (``desk:anna``, ``dagster``). Append late: from here to the commit nobody else can append."""
    values = {
        "as_of": as_of,
        "actor": actor,
        "action": action,
        "service": service,
        "clinic": clinic,
        "plan_id": plan_id,
        "detail": json.dumps(detail or {}, default=str, ensure_ascii=False),
    }
    return int(connection.execute(APPEND, values).scalar_one())


def verify(connection: sa.Connection) -> list[Fault]:
    """Every line whose hash or place in the chain is wrong; empty when the trail is whole."""
    return [Fault(row.id, row.fault) for row in connection.execute(BROKEN)]
