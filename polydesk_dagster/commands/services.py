"""``polydesk services``: the catalogue as the page shows it, with what really happens next and what happened last."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from polydesk_dagster.commands import show
from polydesk_dagster.commands.installation import opened
from polydesk_dagster.commands.show import say
from polydesk_dagster.runtime.state.model import Condition, Mode, ServiceState, full_queue
from polydesk_dagster.runtime.state.services import service_states
from polydesk_dagster.told.state import queue_full, queued, standing
from polydesk_dagster.values import Instant

if TYPE_CHECKING:
    from polydesk_dagster.runtime.state.model import Activity, LastRun


def services(
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elenca i servizi: cadenza, prossima esecuzione vera, ultima esecuzione e suo esito."""
    now = datetime.now(UTC)
    with opened() as installation, installation.dagster() as dagster, installation.engine.connect() as connection:
        states = service_states(connection, dagster, now, live=installation.live)
    if json:
        show.as_json([as_object(state) for state in states])
        return
    columns = tuple(say(f"column.{name}") for name in ("service", "key", "cadence", "next", "last_run", "last_outcome"))
    show.table(None, columns, [_cells(state, now) for state in states])
    if (queue := full_queue(states, now)) is not None:
        show.out().print(queue_full(show.told(), queue, now), style="yellow")


def as_object(state: ServiceState) -> dict[str, Any]:
    """Stable English keys; sentences only where a person would read them in the page."""
    told, last, said = show.told(), state.last, state.activity
    return {
        "key": state.service.key,
        "name": told.service(state.service.key),
        "summary": told.summary_of(state.service.key),
        "cadence": told.cadence(state.service.cadence),
        "next_run": _iso(state.next_run),
        "last_outcome": last.outcome if last else None,
        "last_run_at": _iso(state.last_at),
        "location": state.service.place,
        "per_clinic": state.service.per_clinic,
        "condition": state.condition,
        "activity": _activity(said) | {"paused": {code: _activity(each) for code, each in said.paused.items()}},
        "running": len(state.running),
        "queued": len(state.queued),
        "runs": [_run(run) for run in state.runs],
        "waiting": [
            {"code": each.code, "clinic": each.clinic, "count": each.count, "since": _iso(each.since)}
            for each in state.waiting
        ],
    }


def _activity(said: Activity) -> dict[str, Any]:
    return {
        "mode": said.mode,
        "since": _iso(said.since),
        "until": _iso(said.until),
        "actor": said.actor,
        "reason": said.reason,
    }


def _run(run: LastRun) -> dict[str, Any]:
    return {
        "clinic": run.clinic,
        "outcome": run.outcome,
        "stopped": run.stopped,
        "started_at": _iso(run.at),
        "counts": dict(run.counts),
    }


def _iso(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None


def _cells(state: ServiceState, now: datetime) -> tuple[object, ...]:
    told, last = show.told(), state.last
    name = Text(told.service(state.service.key), "red") if state.service.dangerous else told.service(state.service.key)
    coming: object = told.value(Instant(state.next_run)) if state.next_run else "—"
    if state.activity.mode not in {Mode.ON, Mode.ON_DEMAND}:
        coming = Text(standing(told, state.activity), "yellow")
    elif state.activity.paused:
        clinics = ", ".join(sorted(state.activity.paused))
        coming = Text(say("state.but_for", coming=str(coming), clinics=clinics), "yellow")
    elif state.queued_since is not None:
        coming = Text(queued(show.told(), state.queued_since, now), "yellow")
    elif state.condition in {Condition.OVERDUE, Condition.IDLE}:
        coming = Text(told.term("condition", state.condition), "red")
    outcome: object = show.outcome(last.outcome) if last else say("command.services.never")
    if last and last.clinic:
        others = sum(run.outcome == last.outcome for run in state.runs if run.clinic) - 1
        whose = say("command.services.worst_of", clinic=last.clinic, count=others) if others else last.clinic
        outcome = Text.assemble(f"{whose}: ", show.outcome(last.outcome))
    return (
        name,
        state.service.key,
        told.cadence(state.service.cadence),
        coming,
        told.value(Instant(state.last_at)) if state.last_at else "—",
        outcome,
    )
