"""A job to run now, and how it is carried out in this process: recorded, executed, and told of as it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydesk_dagster.runtime import instance as instances
from polydesk_dagster.values import Reason

if TYPE_CHECKING:
    from dagster import DagsterEvent, DagsterInstance

Message = Mapping[str, Any]
"""What is told while a run goes on, by its ``kind``: ``run`` (``run_id``, ``pid``), ``event`` (``type``, ``step``,
``message``), ``progress`` (``done``, ``total``, ``what``), ``unrecorded`` (``reasons``, why a step has no record),
``refused`` (``message``), ``end`` (``status``)."""

_PARTITION_TAG = "dagster/partition"


@dataclass(frozen=True, slots=True)
class Order:
    """A job to run; ``partition`` is a key of its partitions."""

    job: str
    run_config: Mapping[str, object] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    partition: str | None = None


def carry_out(
    instance: DagsterInstance,
    order: Order,
    tell: Callable[[Message], object],
    *,
    code: Any,
    location: str,
    run_id: str | None = None,
) -> bool:
    """Record a run and execute it in this process, telling what happens. Returns whether it succeeded.

    ``code`` is the ``ReconstructableRepository`` of the location.
    """
    from dagster import DagsterInvalidConfigError, DagsterInvariantViolationError

    from polydesk_dagster.runtime.dagster_inside import runs
    from polydesk_dagster.runtime.following import Follower, followed

    tags = dict(order.tags)
    if order.partition is not None:
        tags[_PARTITION_TAG] = order.partition
        _know_partition(instance, code, order)
    try:
        run = runs.create(
            instance,
            code=code,
            job_name=order.job,
            run_config=order.run_config,
            tags=tags,
            location=runs.origin(instances.code_socket(Path(instance.root_directory).parent, location), location),
            run_id=run_id,
        )
    except (DagsterInvalidConfigError, DagsterInvariantViolationError) as error:
        tell({"kind": "refused", "message": str(error)})
        return True
    tell({"kind": "run", "run_id": run.run_id, "pid": os.getpid()})

    def on_event(event: DagsterEvent) -> None:
        tell({"kind": "event", "type": event.event_type_value, "step": event.step_key, "message": event.message})

    def on_progress(done: int, total: int, what: str) -> None:
        tell({"kind": "progress", "done": done, "total": total, "what": what})

    def on_unrecorded(reasons: Sequence[Reason]) -> None:
        tell({"kind": "unrecorded", "reasons": [reason.as_dict() for reason in reasons]})

    with followed(Follower(on_progress, on_unrecorded)):
        succeeded = runs.execute(instance, run.run_id, on_event)
    recorded = instance.get_run_by_id(run.run_id)
    tell({"kind": "end", "status": recorded.status.value if recorded else "FAILURE"})
    return succeeded


def _know_partition(instance: DagsterInstance, code: Any, order: Order) -> None:
    """A key of dynamic partitions exists once somebody has named it."""
    from dagster import DynamicPartitionsDefinition

    partitions = code.get_definition().get_job(order.job).partitions_def
    if isinstance(partitions, DynamicPartitionsDefinition) and partitions.name and order.partition:
        instance.add_dynamic_partitions(partitions.name, [order.partition])
