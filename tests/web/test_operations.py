"""Which GraphQL documents come through, judged before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from dagster_graphql.schema import create_schema
from graphql import OperationType

from polydesk_dagster.runtime.dagster_inside.operations import MOST_TOKENS, MUTATIONS, RefusedOperationError, operation

BOTH = (OperationType.QUERY, OperationType.MUTATION)
LAUNCH = "launchRun(executionParams: $p) { __typename }"


def test_every_mutation_of_the_installed_schema_is_known() -> None:
    """A new Dagster that brings a mutation fails here, until somebody says what becomes of it."""
    assert set(create_schema().graphql_schema.mutation_type.fields) == set(MUTATIONS)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("query A { version }", "A"),
        ("query A { version ...F } fragment F on Query { __typename }", "A"),
        (f"mutation M($p: ExecutionParams!) {{ {LAUNCH} }}", "M"),
    ],
)
def test_one_named_operation_comes_through(query: str, name: str) -> None:
    assert operation({"query": query, "variables": {}, "operationName": name}, *BOTH) == name
    assert operation({"query": query}, *BOTH) == name


REFUSED: dict[str, Any] = {
    "no object": [],
    "many in one": [{"query": "query A { version }"}],
    "no query": {"operationName": "A"},
    "a query that is none": {"query": 1},
    "variables that are none": {"query": "query A { version }", "variables": "{}"},
    "no name": {"query": "{ version }"},
    "another name": {"query": "query A { version }", "operationName": "B"},
    "two operations": {"query": "query A { version } query B { version }", "operationName": "A"},
    "a mutation beside the query that is named": {
        "query": "query A { version } mutation B { setNuxSeen }",
        "operationName": "A",
    },
    "two mutations": {"query": "mutation M { setNuxSeen setNuxSeen }"},
    "aliases": {"query": "mutation M { a: setNuxSeen b: setNuxSeen }"},
    "an alias": {"query": "mutation M { wipeAssets: setNuxSeen }"},
    "a mutation in a fragment": {"query": "mutation M { ...F } fragment F on Mutation { setNuxSeen }"},
    "a mutation in an inline fragment": {"query": "mutation M { ... on Mutation { setNuxSeen } }"},
    "a mutation that nobody knows": {"query": "mutation M { dropEverything }"},
    "a subscription": {"query": "subscription S { pipelineRunLogs(runId: 1) { __typename } }"},
    "no document": {"query": "query A {"},
    "a document without end": {"query": "query A { " + "version " * (MOST_TOKENS + 1) + "}"},
    "a deep document": {"query": "query A " + "{ a " * 5_000 + "}" * 5_000},
    **{name: {"query": f"mutation M {{ {name} {{ __typename }} }}"} for name, comes in MUTATIONS.items() if not comes},
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_nothing_else_does(body: Any) -> None:
    with pytest.raises(RefusedOperationError):
        operation(body, *BOTH)


def test_a_websocket_carries_subscriptions_only() -> None:
    assert operation({"query": "subscription S { x }"}, OperationType.SUBSCRIPTION) == "S"
    for query in ("query A { version }", "mutation M { setNuxSeen }"):
        with pytest.raises(RefusedOperationError):
            operation({"query": query}, OperationType.SUBSCRIPTION)
