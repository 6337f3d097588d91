"""Names and texts of Dagster's that we write ourselves, where importing Dagster would cost more than the work."""

from __future__ import annotations

import json

HIDDEN_TAG_PREFIX = ".dagster/"
"""Tags that Dagster's page does not show; the prefix is documented nowhere and has no public name."""

NEEDED_BY_RUNS = (
    "dagster._cli.api",
    "dagster._core.execution.api",
    "dagster._core.execution.plan.execute_plan",
    "dagster._core.executor.in_process",
    "dagster._core.execution.plan.active",
    "dagster._core.instance.factory",
    "dagster._core.storage.root",
    "dagster._core.system_config.composite_descent",
    "upath.implementations.local",
)
"""What opening an instance and executing a run imports besides ``dagster``: a fork server has it ready. Nothing public
loads it."""


def pointer(module: str) -> str:
    """The serialized code pointer to ``defs`` of a module, letter by letter as a code server has it.

    A run names the code that it comes from so, and the page finds a run's location by it; ``dagster`` exports neither
    the class nor its serialisation.
    """
    values = {"__class__": "ModuleCodePointer", "fn_name": "defs", "module": module, "working_directory": None}
    return json.dumps(values)


def module_of(pointer: str) -> str:
    """The module that a serialized code pointer names; empty if it points to a file."""
    return str(json.loads(pointer).get("module") or "")
