"""The gate before a dangerous button: a plan that was looked at, a reason, a phrase with its count, and a pause.

A service behind the gate is pressed twice. First for a preview: it stores a plan and says the phrase to type. Then
with the reason and the phrase: exactly that plan is applied, if it still stands, and the audit trail keeps who, when,
why and what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind, Plan, Scope
from polydesk_dagster.outcome import Report

REASON_LENGTH = 10
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


def phrase(verb: str, plan: Plan) -> str:
    """What must be typed to apply ``plan``, e.g. ``LIBERA 37``."""
    return f"{verb} {plan.writes}"


def press(
    connection: sa.Connection,
    given: Press,
    *,
    verb: str,
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
        return _show(connection, propose(), kind, verb)
    plan = _standing(connection, scope, given.plan_id)
    problem = _problem(connection, plan, given, verb, scope, as_of)
    if problem is not None or plan is None:
        return Report.refused(*(problem or ("no_plan", "Serve un'anteprima.")), scope.clinic)
    return changes.apply(connection, plan.id, as_of=as_of, actor=given.actor, reason=given.reason.strip())


def _show(connection: sa.Connection, plan: Plan, kind: Kind, verb: str) -> Report:
    report = changes.preview(connection, plan, kind)
    if not plan.writes:
        return report
    minutes = int(kind.expires.total_seconds() // 60)
    todo = f"Entro {minutes} minuti: indica il motivo e come conferma scrivi «{phrase(verb, plan)}»."
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


def _problem(
    connection: sa.Connection, plan: Plan | None, given: Press, verb: str, scope: Scope, as_of: datetime
) -> tuple[str, str] | None:
    if len(given.reason.strip()) < REASON_LENGTH:
        return "reason_missing", f"Serve il motivo, di almeno {REASON_LENGTH} caratteri: resta nel registro."
    if plan is None:
        return "no_plan", "Non c'è un'anteprima valida: rifalla, guardala e poi conferma con la frase che indica."
    if " ".join(given.confirm.split()) != phrase(verb, plan):
        return "wrong_phrase", (
            f"La conferma «{given.confirm}» non è quella del piano {plan.id}: per applicarlo scrivi "
            f"«{phrase(verb, plan)}»."
        )
    last = connection.scalar(
        sa.text("""
            SELECT max(as_of) FROM audit
            WHERE service = :service AND action = 'apply' AND clinic IS NOT DISTINCT FROM CAST(:clinic AS text)
              AND as_of > :as_of - CAST(:pause AS interval)"""),
        {"service": scope.service, "clinic": scope.clinic, "as_of": as_of, "pause": PAUSE},
    )
    if last is not None:
        minutes = int(PAUSE.total_seconds() // 60)
        return "too_soon", (
            f"Lo stesso comando è stato eseguito alle {last:%H:%M} UTC: aspetta {minutes} minuti e guarda "
            "prima che cosa ha fatto."
        )
    return None
