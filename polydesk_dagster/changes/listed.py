"""The plans as people look through them: the newest first, without those that want nobody."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Plan

_STOPPED = """plan.guards @> '[{"passed": false}]'"""
_COUNTS = """EXISTS (
    SELECT FROM jsonb_each_text(plan.tally)
    WHERE value <> '0' AND key IN ('create', 'update', 'retire', 'delete', 'link', 'conflict'{more}))"""

ROUTINE = f"""
    CASE WHEN plan.state = 'ready' THEN
        now() > plan.expires_at
        OR NOT {_COUNTS.format(more=", 'rejected'")} AND NOT {_STOPPED}
    ELSE plan.state = 'applied' AND plan.undoes IS NULL AND plan.applied_by NOT LIKE '%:%' END
"""
"""Whether a plan wants nobody: a look that has expired or found nothing, and what a machine has applied."""

TELLING = f"{_STOPPED} OR {_COUNTS.format(more='')}"
"""Whether a plan has anything to say, whoever has applied it."""


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


@dataclass(frozen=True, slots=True)
class Page:
    """Plans, the newest first, and where those before them begin: None where there are none."""

    plans: list[Plan]
    before: int | None


def page(
    connection: sa.Connection,
    *,
    clinics: Collection[str] | None,
    limit: int,
    first: int = 1,
    last: int | None = None,
    silent: bool = False,
) -> Page:
    """The newest ``limit`` of the plans numbered ``first`` to ``last`` that are of the whole chain or of ``clinics``
    (None: of any); without ``silent`` only those that have something to say."""
    given: dict[str, object] = {"first": first, "last": last, "silent": silent, "most": limit + 1}
    hers, bound = "true", []
    if clinics is not None:
        known = sa.text("SELECT id FROM clinic WHERE code = ANY(:clinics)")
        given["hers"] = connection.scalars(known, {"clinics": sorted(clinics)}).all()
        hers = "(plan.clinic_id IS NULL OR plan.clinic_id IN :hers)"
        # Whether few plans are hers or most are the planner must see: it is another way to them.
        bound = [sa.bindparam("hers", type_=sa.BigInteger, expanding=True, literal_execute=True)]
    found = connection.scalars(
        sa.text(f"""SELECT plan.id FROM plan
                    WHERE plan.id >= :first AND (CAST(:last AS bigint) IS NULL OR plan.id <= :last)
                      AND {hers} AND (:silent OR {TELLING})
                    ORDER BY plan.id DESC LIMIT :most""").bindparams(*bound),
        given,
    ).all()
    return Page(list(reversed(plans.several(connection, found[:limit]))), found[limit] if found[limit:] else None)


def stopped(connection: sa.Connection, kind: str) -> list[Plan]:
    """The newest plan of each active clinic's list of a kind, and of the chain's, where a guard stops it and nobody has
    decided yet; whether it is still good or over: the list it compared is no other for that."""
    newest = connection.scalars(
        sa.text("""
            SELECT DISTINCT ON (plan.clinic_id, plan.scope) plan.id
            FROM plan LEFT JOIN clinic ON clinic.id = plan.clinic_id
            WHERE plan.kind = :kind AND plan.undoes IS NULL AND jsonb_exists(plan.tally, 'seen')
              AND clinic.active IS NOT FALSE
            ORDER BY plan.clinic_id, plan.scope, plan.id DESC"""),
        {"kind": kind},
    ).all()
    return [plan for plan in plans.several(connection, newest) if plan.state == "ready" and plan.failed_guards]
