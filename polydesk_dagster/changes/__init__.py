"""Seen before done: changes to the clinic's records as plans that are shown, applied exactly, and undone.

Here belongs what holds for every kind of record. Which kinds there are, what they own and what guards them is declared
where they are about (``sources.kinds``, the rooms of ``clinic``); how a plan is told to people is ``told``.

A rule that knows by itself what has to change declares the record kind and hands over a query::

    RELEASED_HOLD = Kind(
        name="expired_hold", table="hold", key="r.id",
        owned=("state", "ended_at"),                    # compared, written, restored by undo
        volatile=True, expires=timedelta(minutes=2),    # rows that changed meanwhile are skipped, one by one
        still="t.expires_at <= :as_of",                 # tested again, under a lock, when applied
        after=("DELETE FROM seat WHERE hold_id IN (SELECT id FROM {rows} r WHERE action = 'update')",),
    )

    plan = changes.propose(connection, RELEASED_HOLD, Scope("release_expired_holds"), '''
        SELECT 'update' AS action, NULL AS finding, 'scaduto' AS reason, id,
               'expired' AS state, CAST(:as_of AS timestamptz) AS ended_at
        FROM hold WHERE state = 'live' AND expires_at <= :as_of''', as_of=as_of)
    report = changes.apply(connection, plan.id, as_of=as_of, actor="dagster")

(``propose`` stores the plan and joins what the target holds now as the precondition; ``preview(connection, plan,
kind)`` is its report for people; the caller owns the transaction.) Names of kinds are listed in ``registry.WHERE``,
because a plan may be applied or undone from the command line days later. ``actor`` is ``dagster`` for a scheduled
run and ``desk:<user>`` for a person. A rule that writes without a plan still leaves its line with ``audit.append``.

To ``delete``, list all columns that undo must bring back in ``owned`` (the query may give nulls for them).

Kinds that come from an outside source declare a :class:`Source` and go through ``synchronise``.
"""

from polydesk_dagster.changes import audit
from polydesk_dagster.changes.apply import apply
from polydesk_dagster.changes.kind import Guard, Kind, Limits, Reject, Source
from polydesk_dagster.changes.listed import latest
from polydesk_dagster.changes.past import no_such_guard, unknown_guards
from polydesk_dagster.changes.plans import Plan, Scope, load
from polydesk_dagster.changes.propose import propose
from polydesk_dagster.changes.reverse import undo
from polydesk_dagster.changes.show import preview

__all__ = [
    "Guard",
    "Kind",
    "Limits",
    "Plan",
    "Reject",
    "Scope",
    "Source",
    "apply",
    "audit",
    "latest",
    "load",
    "no_such_guard",
    "preview",
    "propose",
    "undo",
    "unknown_guards",
]
