"""Dagster's own page with people in it: who asks, what she may do in which code location, and which requests pass.

``dagster_webserver`` has no login; its hooks for one are its request context and its endpoints, which have no public
name. Who somebody is and what her role may do is given from outside, as a ``Presser``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._core.workspace.permissions import LOCATION_SCOPED_PERMISSIONS, PermissionResult, Permissions
from dagster_webserver.webserver import DagsterWebserver
from graphql import OperationType
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.websockets import WebSocket

from polydesk_dagster.runtime.dagster_inside import quiet
from polydesk_dagster.runtime.dagster_inside.operations import RefusedOperationError, operation
from polydesk_dagster.runtime.names import PERSON_TAG

if TYPE_CHECKING:
    from starlette.applications import Starlette

Permission = Permissions
"""What Dagster's page asks before it does something."""
VERSION = "polydesk"
LOOK_AGAIN = 10.0
"""Seconds after which a websocket's session is looked at again."""
_SESSION_OVER = 4401
_NOT_OURS = ("/report_asset", "/notebook", "/dagit")
"""Routes of Dagster's that are left out: reports from outside past every permission, and names of long ago."""
_LOGS = ("out", "err")
"""What a step wrote, by the ending of its name."""
_STATEMENT_MILLISECONDS, _RECYCLE_SECONDS, _OVERFLOW = 15_000, 3_600, 20
"""As Dagster's own command sets them for its page."""


@dataclass(frozen=True, slots=True)
class Presser:
    """Somebody known: the name that runs bear, and what she may do."""

    name: str
    in_location: Mapping[str, frozenset[Permissions]]
    """By code location. Whatever Dagster knows by location is granted here only: granted everywhere, it would override
    what a location denies."""
    everywhere: frozenset[Permissions] = frozenset()
    """What Dagster knows for the whole installation only."""

    def __post_init__(self) -> None:
        too_wide = self.everywhere & LOCATION_SCOPED_PERMISSIONS
        if too_wide:
            raise ValueError(f"granted by location only: {sorted(too_wide)}")


PresserOf = Callable[[HTTPConnection], Presser | None]


def _results(granted: frozenset[Permissions], among: Any) -> Mapping[str, PermissionResult]:
    why = "Il tuo ruolo non lo permette"
    return {each: PermissionResult(each in granted, None if each in granted else why) for each in among}


class DoorRequestContext(WorkspaceRequestContext):
    """One request of one person; of nobody known, it may do nothing."""

    def __init__(self, *, presser: Presser | None, **given: Any) -> None:
        super().__init__(read_only=presser is None, **given)
        self.presser = presser

    @property
    def permissions(self) -> Mapping[str, PermissionResult]:
        return _results(self.presser.everywhere if self.presser else frozenset(), Permissions)

    def permissions_for_location(self, *, location_name: str) -> Mapping[str, PermissionResult]:
        granted = self.presser.in_location.get(location_name, frozenset()) if self.presser else frozenset()
        return _results(granted, LOCATION_SCOPED_PERMISSIONS)

    def get_viewer_tags(self) -> dict[str, str]:
        """On a backfill, whose runs the daemon submits."""
        return {PERSON_TAG: self.presser.name} if self.presser else {}

    def reload_code_location(self, name: str) -> WorkspaceRequestContext:
        super().reload_code_location(name)
        return self._again()

    def reload_workspace(self) -> WorkspaceRequestContext:
        super().reload_workspace()
        return self._again()

    def _again(self) -> WorkspaceRequestContext:
        """Of the same person: Dagster would go on with nobody known."""
        context: WorkspaceRequestContext = self.process_context.create_request_context(self.source)
        return context


class DoorProcessContext(WorkspaceProcessContext):
    """The workspace, asked by people."""

    def __init__(self, instance: DagsterInstance, workspace: str, presser_of: PresserOf) -> None:
        self._presser_of = presser_of
        super().__init__(instance, WorkspaceFileTarget([workspace]), version=VERSION, code_server_log_level="warning")

    def create_request_context(self, source: object | None = None) -> DoorRequestContext:
        return DoorRequestContext(
            presser=self._presser_of(source) if isinstance(source, HTTPConnection) else None,
            instance=self._instance,
            current_workspace=self.get_current_workspace(),
            process_context=self,
            version=self.version,
            source=source,
        )


class DoorWebserver(DagsterWebserver[DoorProcessContext, DoorRequestContext]):
    """Dagster's page under a prefix; every request context is a person's."""

    def __init__(
        self,
        process_context: DoorProcessContext,
        prefix: str,
        still_here: Callable[[HTTPConnection], Awaitable[bool]],
        look_again: float = LOOK_AGAIN,
    ) -> None:
        self._still_here = still_here
        self._look_again = look_again
        super().__init__(process_context, prefix)

    def build_routes(self) -> list[BaseRoute]:
        """Without the prefix, under which the caller mounts them."""
        mounted = super().build_routes()[0]
        assert isinstance(mounted, Mount)
        return [each for each in mounted.routes if not _left_out(each)]

    def make_security_headers(self) -> dict[str, str]:
        """None of its own: the guard sets them for every answer."""
        return {}

    def make_csp_header(self, nonce: str) -> str:
        """Dagster's own, which knows neither frames nor pictures from elsewhere."""
        own = super().make_csp_header(nonce).rstrip("; \n")
        return f"{own}; img-src 'self' data: blob:; form-action 'self'; frame-ancestors 'none'"

    async def graphql_http_endpoint(self, request: Request) -> Response:
        try:
            body = await _json(request)
            named = operation(body, OperationType.QUERY, OperationType.MUTATION)
        except RefusedOperationError as refused:
            return JSONResponse({"data": None, "errors": [{"message": str(refused)}]}, refused.status)
        return await self.execute_graphql_request(
            request=request, query=body["query"], variables=body.get("variables"), operation_name=named
        )

    async def download_debug_file_endpoint(self, request: Request) -> Response:
        """Dagster's, of a run that there is."""
        with self.request_context(request) as context:
            run = request.path_params["run_id"]
            if "\0" in run or context.instance.get_run_by_id(run) is None:
                raise HTTPException(404)
        answer: Response = await super().download_debug_file_endpoint(request)
        return answer

    async def download_captured_logs_endpoint(self, request: Request) -> Response:
        """Dagster's, of what can be the name of a log."""
        *steps, extension = request.path_params["path"].split("/")
        if extension not in _LOGS or not steps or {"", ".", ".."} & set(steps) or any("\0" in step for step in steps):
            raise HTTPException(404)
        answer: Response = await super().download_captured_logs_endpoint(request)
        return answer

    async def execute_graphql_subscription(
        self, websocket: WebSocket, operation_id: str, query: str, variables: Any, operation_name: str | None
    ) -> Any:
        try:
            operation({"query": query, "variables": variables}, OperationType.SUBSCRIPTION)
        except RefusedOperationError as refused:
            return None, {"message": str(refused)}
        return await super().execute_graphql_subscription(websocket, operation_id, query, variables, operation_name)

    async def graphql_ws_endpoint(self, websocket: WebSocket) -> None:
        """Dagster's, which ends when the session does."""
        if not await self._still_here(websocket):
            await websocket.close(_SESSION_OVER)
            return
        looking = asyncio.create_task(self._close_when_over(websocket))
        try:
            await super().graphql_ws_endpoint(websocket)
        finally:
            looking.cancel()

    async def _close_when_over(self, websocket: WebSocket) -> None:
        while True:
            await asyncio.sleep(self._look_again)
            if not await self._still_here(websocket):
                break
        with contextlib.suppress(RuntimeError):  # it was closed already
            await websocket.close(_SESSION_OVER)


async def _json(request: Request) -> Any:
    """The body of a GraphQL request, or why it is none: what any page of the web may send is no JSON."""
    if request.method != "POST":
        raise RefusedOperationError("solo POST", 405)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedOperationError("solo application/json", 415)
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RefusedOperationError("il corpo non è JSON") from None


def _left_out(route: BaseRoute) -> bool:
    return isinstance(route, Route) and route.path.startswith(_NOT_OURS)


@contextlib.contextmanager
def opened(
    instance: DagsterInstance,
    workspace: str,
    prefix: str,
    presser_of: PresserOf,
    still_here: Callable[[HTTPConnection], Awaitable[bool]],
    look_again: float = LOOK_AGAIN,
) -> Any:
    """Dagster's page as an ASGI application to mount at ``prefix``, over the code locations of a workspace file."""
    quiet.watchers()
    instance.optimize_for_webserver(_STATEMENT_MILLISECONDS, _RECYCLE_SECONDS, _OVERFLOW)
    with DoorProcessContext(instance, workspace, presser_of) as context:
        app: Starlette = DoorWebserver(context, prefix, still_here, look_again).create_asgi_app()
        yield app
