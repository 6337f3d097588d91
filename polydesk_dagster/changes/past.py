"""Going past guards: which there are, which still stop a plan, and which a row that was set aside needs together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa

from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.outcome import Reason
from polydesk_dagster.values import Several, Value


def no_such_guard(given: Collection[str], known: Collection[str], clinic: str | None = None) -> Reason | None:
    """Why nobody goes past the guards ``given``, where some are none of the ``known``."""
    strange = set(given).difference(known)
    names: dict[str, Value] = {"given": Several(tuple(sorted(strange))), "known": Several(tuple(sorted(known)))}
    return Reason("guard_unknown", names, clinic) if strange else None


def unknown_guards(made: Sequence[Plan], past_guards: Collection[str]) -> Reason | None:
    """Why nobody goes past ``past_guards``: some are none of the plans ``made``. Passed over unsaid, a mistyped name
    would leave whoever gave it in the belief that she has decided."""
    asked = {guard.name for plan in made for guard in plan.guards}
    stopping = {guard.name for plan in made for guard in plan.speaking_guards}
    strange = set(past_guards) - asked
    return no_such_guard(strange, stopping or asked, made[0].clinic if len(made) == 1 else None)


def stopped(plan: Plan, past_guards: Collection[str]) -> Reason | None:
    """Why the plan is not applied past ``past_guards``: other guards stop it."""
    return stopped_by(plan, [guard for guard in plan.failed_guards if guard.name not in past_guards])


def stopped_by(plan: Plan, guards: Sequence[Verdict]) -> Reason | None:
    """That ``guards`` stop the plan, unless there are none."""
    said = Several(tuple(guard.reason for guard in guards))
    return Reason("guard", {"plan": plan.id, "guards": said}, plan.clinic, len(guards)) if guards else None


def needed(plan: Plan) -> tuple[Verdict, ...]:
    """The guards past which the plan must go to write anything at all."""
    return plan.failed_guards if plan.writes else plan.speaking_guards


def together(connection: sa.Connection, plan: Plan) -> Mapping[str, frozenset[str]]:
    """By each guard that has set rows aside, all that the plan must go past for these rows to be written."""
    always = frozenset(guard.name for guard in plan.failed_guards)
    found = {guard.name: always | {guard.name} for guard in plan.holding_guards}
    if len(found) > 1:
        rows = connection.execute(
            sa.text("SELECT DISTINCT guards FROM plan_hold WHERE plan_id = :plan_id AND guards <> '{}'"),
            {"plan_id": plan.id},
        )
        for (guards,) in rows.all():
            found |= {name: found[name] | frozenset(guards) for name in guards if name in found}
    return found


def missing(connection: sa.Connection, plan: Plan, passed: Collection[str]) -> list[Verdict]:
    """The guards that nobody has passed and that rows need which those ``passed`` have set aside too: such a row goes
    past all of its guards or stays."""
    needed = together(connection, plan)
    also = frozenset[str]().union(*(needed.get(name, ()) for name in passed)) - set(passed)
    return [guard for guard in plan.holding_guards if guard.name in also]


def options(guards: Collection[str]) -> str:
    """``guards`` as the command is given them."""
    return " ".join(f"--past-guard {name}" for name in guards)
