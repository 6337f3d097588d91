"""What a plan comes to once rows were taken out of it or put back: counts, guards and fingerprint anew."""

from __future__ import annotations

import json
from dataclasses import replace

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows, plans, undone
from polydesk_dagster.changes.kind import ACTIONS, FINDINGS, Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.propose import ask
from polydesk_dagster.changes.verdict import Verdict

CHANGE_GUARDS = {"too_many_retired": "missing_there", "too_many_changed": "differs"}
"""Guards over how much of ours changes, each with the finding that it counts."""


def recount(connection: sa.Connection, plan: Plan, kind: Kind, set_aside: int) -> Plan:
    """Count the rows of ``plan`` anew, of which ``set_aside`` more (or fewer) wait now, and ask its guards again;
    returns it as it is stored then."""
    kept = {name: number for name, number in plan.tally.items() if name not in {*ACTIONS, *FINDINGS}}
    counted = {
        **kept,
        **plan_rows.tally(connection, plan.id),
        "set_aside": max(0, kept.get("set_aside", 0) + set_aside),
    }
    if rejected := kept.get("rejected"):
        counted["invalid"] = counted.get("invalid", 0) + rejected
    guards = _asked_again(connection, replace(plan, tally=counted), kind)
    connection.execute(
        sa.text("""UPDATE plan SET tally = CAST(:tally AS jsonb), guards = CAST(:guards AS jsonb),
                                   fingerprint = :fingerprint WHERE id = :id"""),
        {
            "id": plan.id,
            "tally": json.dumps(counted),
            "guards": json.dumps([guard.as_dict() for guard in guards]),
            "fingerprint": plans.fingerprint(connection, plan.id, plan.kind, plan.within, plan.snapshot),
        },
    )
    return plans.load(connection, plan.id)


def _asked_again(connection: sa.Connection, plan: Plan, kind: Kind) -> list[Verdict]:
    """The plan's verdicts, those that count its rows anew."""
    values = plans.parameters(plan.within, plan.as_of, plan.id)
    anew = {verdict.name: verdict for verdict in ask(connection, kind, plan.id, values)}
    if kind.source is not None:
        again = undone.repeating(connection, kind, plan.within, plan.id)
        anew[undone.GUARD] = undone.verdict(connection, plan.id, again)
    verdicts = []
    for verdict in plan.guards:
        if verdict.name in CHANGE_GUARDS:
            number = plan.tally.get(CHANGE_GUARDS[verdict.name], 0)
            told = {**verdict.values, "value": number}
            anew[verdict.name] = replace(verdict, passed=number <= verdict.limit, value=number, values=told)
        verdicts.append(anew.get(verdict.name, verdict))
    return verdicts
