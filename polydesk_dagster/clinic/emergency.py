"""The gate before a dangerous button: a plan that was looked at, a reason, a phrase with its count, and a pause.

A service behind the gate is pressed twice. First for a preview: it stores a plan and says the phrase to type. Then
with the reason and the phrase: exactly that plan is applied, if it still stands, and the audit trail keeps who, when,
why and what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind, Plan, Scope
from polydesk_dagster.changes.audit import LEAST_REASON
from polydesk_dagster.outcome import Report

VERBS: Mapping[str, str] = {
    "release_all_holds": "LIBERA",
    "reset_message_templates": "RIPRISTINA",
    "recover_deleted_services": "RECUPERA",
}
"""The services behind the gate, and the verb of each one's phrase."""

PAUSE = timedelta(minutes=10)
"""Between two uses of the same button: long enough to see what the first one did."""


@dataclass(frozen=True, slots=True)
class Press:
    """What was typed. Without a reason and a phrase nothing is done: the plan is only shown."""

    reason: str = ""
    confirm: str = ""
    actor: str = "desk"
    plan_id: int | None = None
    """The plan that was looked at; default the newest that still stands."""

    @property
    def looks_only(self) -> bool:
        return not self.reason.strip() and not self.confirm.strip()


def phrase(plan: Plan) -> str:
    """What must be typed to apply ``plan``, e.g. ``LIBERA 37``."""
    return f"{VERBS[plan.service]} {plan.writes}"


def press(
    connection: sa.Connection,
    given: Press,
    *,
    scope: Scope,
    kind: Kind,
    propose: Callable[[], Plan],
    as_of: datetime,
    preview: bool = False,
) -> Report:
    """Show what the button would do, or do it, in the caller's transaction.

    Refused, with nothing written, when the reason is too short, no plan stands, the phrase is not the plan's, or the
    button was pressed a moment ago; and for the reasons of :func:`changes.apply`.
    """
    if preview or given.looks_only:
        return _show(connection, propose(), kind)
    plan = _standing(connection, scope, given.plan_id)
    refusal = check(connection, plan, given, as_of)
    if refusal is not None or plan is None:
        return refusal or _NO_PLAN
    return changes.apply(connection, plan.id, as_of=as_of, actor=given.actor, reason=given.reason.strip())


def _show(connection: sa.Connection, plan: Plan, kind: Kind) -> Report:
    report = changes.preview(connection, plan, kind)
    if not plan.writes:
        return report
    minutes = int(kind.expires.total_seconds() // 60)
    todo = f"Entro {minutes} minuti: indica il motivo e come conferma scrivi «{phrase(plan)}»."
    return replace(report, figures={**report.figures, "Che cosa fare": todo})


def _standing(connection: sa.Connection, scope: Scope, plan_id: int | None) -> Plan | None:
    """The newest plan of the button that nobody has applied, for the same clinic or for the same whole chain."""
    found = [
        plan
        for plan in changes.latest(connection, service=scope.service)
        if plan.state == "ready" and not plan.expired and plan.undoes is None and plan.clinic == scope.clinic
    ]
    if plan_id is not None:
        found = [plan for plan in found if plan.id == plan_id]
    return found[0] if found else None


_NO_PLAN = Report.refused(
    "no_plan", "Non c'è un'anteprima valida: rifalla, guardala e poi conferma con la frase che indica."
)


def check(connection: sa.Connection, plan: Plan | None, given: Press, as_of: datetime) -> Report | None:
    """Why ``plan`` must not be applied on what was typed, or None if it may; for whoever applies a plan by its id."""
    clinic = plan.clinic if plan is not None else None
    if len(given.reason.strip()) < LEAST_REASON:
        message = f"Serve il motivo, di almeno {LEAST_REASON} caratteri: resta nel registro."
        return Report.refused("reason_missing", message, clinic)
    if plan is None:
        return _NO_PLAN
    if " ".join(given.confirm.split()) != phrase(plan):
        message = (
            f"La conferma «{given.confirm}» non è quella del piano {plan.id}: per applicarlo scrivi «{phrase(plan)}»."
        )
        return Report.refused("wrong_phrase", message, clinic)
    last = connection.scalar(
        sa.text("""
            SELECT max(as_of) FROM audit
            WHERE service = :service AND action = 'apply' AND clinic IS NOT DISTINCT FROM CAST(:clinic AS text)
              AND as_of > :as_of - CAST(:pause AS interval)"""),
        {"service": plan.service, "clinic": clinic, "as_of": as_of, "pause": PAUSE},
    )
    if last is None:
        return None
    minutes = int(PAUSE.total_seconds() // 60)
    message = (
        f"Lo stesso comando è stato eseguito alle {last:%H:%M} UTC: aspetta {minutes} minuti e guarda prima che cosa "
        "ha fatto."
    )
    return Report.refused("too_soon", message, clinic)
