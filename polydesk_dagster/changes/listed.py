"""The plans as people look through them: the newest first, without those that want nobody."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Plan

ROUTINE = """
    CASE WHEN plan.state = 'ready' THEN
        now() > plan.expires_at
        OR NOT EXISTS (SELECT FROM jsonb_each_text(plan.tally)
                       WHERE value <> '0'
                         AND key IN ('create', 'update', 'retire', 'delete', 'link', 'conflict', 'rejected'))
           AND NOT plan.guards @> '[{"passed": false}]'
    ELSE plan.state = 'applied' AND plan.undoes IS NULL AND plan.applied_by NOT LIKE '%:%' END
"""
"""Whether a plan wants nobody: a look that has expired or found nothing, and what a machine has applied."""


def latest(
    connection: sa.Connection, *, service: str | None = None, limit: int = 20, routine: bool = True
) -> list[Plan]:
    """The newest plans first; without ``routine`` only those that want somebody, or that somebody has decided."""
    found = connection.scalars(
        sa.text(f"""SELECT plan.id FROM plan
                    WHERE (:service IS NULL OR plan.service = :service) AND (:routine OR NOT ({ROUTINE}))
                    ORDER BY plan.id DESC LIMIT :limit""").bindparams(
            sa.bindparam("service", type_=sa.Text), sa.bindparam("routine", type_=sa.Boolean)
        ),
        {"service": service, "limit": limit, "routine": routine},
    ).all()
    return list(reversed(plans.several(connection, found)))
