"""Which GraphQL operations of Dagster's page come through, judged on the parsed document before anything runs.

Dagster itself takes mutations by GET, by any content type, many in one request. ``MUTATIONS`` names every mutation of
the schema with what becomes of it; a test compares it with the installed one, so that an upgrade adds none unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphql import FieldNode, GraphQLError, OperationDefinitionNode, OperationType, parse
from graphql.language import DocumentNode

MOST_TOKENS = 20_000
"""Of a document; the largest of Dagster's own page has a tenth of it."""

MUTATIONS: Mapping[str, bool] = {
    # Runs: Dagster's permissions say who may, the run coordinator writes who did.
    "launchPipelineExecution": True,
    "launchRun": True,
    "launchMultipleRuns": True,
    "launchPipelineReexecution": True,
    "launchRunReexecution": True,
    "terminatePipelineExecution": True,
    "terminateRun": True,
    "terminateRuns": True,
    "launchPartitionBackfill": True,
    "cancelPartitionBackfill": True,
    # These two go on under the name of whoever began the backfill, not of whoever presses now.
    "resumePartitionBackfill": False,
    "reexecutePartitionBackfill": False,
    # Schedules, sensors and code locations: the superuser's.
    "startSchedule": True,
    "stopRunningSchedule": True,
    "resetSchedule": True,
    "scheduleDryRun": True,
    "startSensor": True,
    "stopSensor": True,
    "resetSensor": True,
    "sensorDryRun": True,
    "reloadRepositoryLocation": True,
    "reloadWorkspace": True,
    "setConcurrencyLimit": True,
    "deleteConcurrencyLimit": True,
    "freeConcurrencySlots": True,
    "freeConcurrencySlotsForRun": True,
    # What makes the history lie, moves a cursor past events, or takes a process of ours away.
    "deletePipelineRun": False,
    "deleteRun": False,
    "wipeAssets": False,
    "reportRunlessAssetEvents": False,
    "reportAssetCheckEvaluations": False,
    "setSensorCursor": False,
    "addDynamicPartition": False,
    "deleteDynamicPartitions": False,
    "shutdownRepositoryLocation": False,
    # What this project does not use.
    "setAutoMaterializePaused": False,
    "setAppManagedComponent": False,
    "deleteAppManagedComponent": False,
    "refreshComponentState": False,
    # The page's own small talk; it changes nothing of anybody's.
    "logTelemetry": True,
    "setNuxSeen": True,
}
"""Every mutation of the schema, and whether it comes through at all."""


class RefusedOperationError(Exception):
    """Why a request is not an operation that comes through; ``status`` is HTTP's."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


def operation(body: Any, *kinds: OperationType) -> str:
    """The name of the one operation, of one of ``kinds``, that the JSON ``body`` of a request holds.

    Raises:
        RefusedOperationError: if it is something else, or a mutation that does not come through.
    """
    if not isinstance(body, dict) or not isinstance(body.get("query"), str):
        raise RefusedOperationError("serve un oggetto JSON con un'operazione")
    if not (body.get("variables") is None or isinstance(body["variables"], dict)):
        raise RefusedOperationError("variables non è un oggetto")
    found = _only(_parsed(body["query"]))
    if found.name is None or body.get("operationName") not in {None, found.name.value}:
        raise RefusedOperationError("serve un'operazione con il suo nome")
    if found.operation not in kinds:
        raise RefusedOperationError(f"qui non passa una {found.operation.value}", 403)
    if found.operation is OperationType.MUTATION:
        _check_mutation(found)
    return found.name.value


def _parsed(query: str) -> DocumentNode:
    try:
        return parse(query, no_location=True, max_tokens=MOST_TOKENS)
    except (GraphQLError, RecursionError):
        raise RefusedOperationError("il documento non si legge") from None


def _only(document: DocumentNode) -> OperationDefinitionNode:
    operations = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    if len(operations) != 1:
        raise RefusedOperationError("serve una sola operazione")
    return operations[0]


def _check_mutation(found: OperationDefinitionNode) -> None:
    """One mutation, under its own name: an alias or a fragment could repeat it a thousand times in one request."""
    fields = found.selection_set.selections
    if len(fields) != 1 or not isinstance(fields[0], FieldNode) or fields[0].alias is not None:
        raise RefusedOperationError("serve una sola modifica, senza alias", 403)
    if not MUTATIONS.get(fields[0].name.value, False):
        raise RefusedOperationError(f"{fields[0].name.value}: qui non si fa", 403)
