"""The same over MCP: two tools at one address, each request on its own, let in by the same token."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from typing import Any

import mcp_types as types
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from polydesk_dagster.front.assistant.access import Shelf
from polydesk_dagster.front.assistant.asking import answered, judged
from polydesk_dagster.front.assistant.schema import NOTICE, Judgement, Passage, Question, Told
from polydesk_dagster.front.refusals import RefusedError, refuse, teller_of
from polydesk_dagster.front.tokens import Reader

INSTRUCTIONS = f"""What a clinic's documents say: preparations, opening hours, prices, rules. Answer from the passages
alone, cite their documents, and say so where they do not treat the question or are stale. {NOTICE}"""

TOOLS: tuple[tuple[str, str, type[BaseModel], type[BaseModel] | None], ...] = (
    ("ask", "Passages of the clinic's documents that answer a question, with where they stand.", Question, Told),
    (
        "judge",
        "Tell what came of an answer; questions that it did not help are shown to a person.",
        Judgement,
        None,
    ),
)


class McpServer:
    """An ASGI application; answers while it is ``running``."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        server: Server[Any] = Server(
            "polydesk", instructions=INSTRUCTIONS, on_list_tools=self._listed, on_call_tool=self._called
        )
        self._manager = StreamableHTTPSessionManager(
            server,
            json_response=True,
            stateless=True,
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the door looks itself
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._manager.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in by its token, and leave for whom it asks with it."""
        request = Request(scope)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            whose = await run_in_threadpool(self._shelf.reader, token.strip() if scheme.lower() == "bearer" else None)
        except RefusedError as refused:
            await refuse(request, refused)(scope, receive, send)
            return
        scope.setdefault("state", {})["whose"] = whose
        await self._manager.handle_request(scope, receive, send)

    async def _listed(self, _context: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=name,
                    description=description,
                    input_schema=given.model_json_schema(),
                    output_schema=None if answer is None else answer.model_json_schema(),
                )
                for name, description, given, answer in TOOLS
            ]
        )

    async def _called(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        do = {"ask": self._ask, "judge": self._judge}.get(params.name)
        if do is None:
            return _failed(f"There is no tool {params.name!r}")
        try:
            return await run_in_threadpool(do, context.request, params.arguments or {})
        except ValidationError as error:  # where and how, never the value, which may be a patient's
            faults = [f"{'.'.join(map(str, each['loc']))}: {each['type']}" for each in error.errors()]
            return _failed("; ".join(faults))

    def _ask(self, request: Request, arguments: dict[str, Any]) -> types.CallToolResult:
        whose: Reader = request.state.whose
        told = answered(self._shelf, Question.model_validate(arguments), whose, teller_of(request))
        return types.CallToolResult(
            content=[types.TextContent(text=_as_text(told))], structured_content=told.model_dump(mode="json")
        )

    def _judge(self, request: Request, arguments: dict[str, Any]) -> types.CallToolResult:
        judged(self._shelf, Judgement.model_validate(arguments), request.state.whose)
        return types.CallToolResult(content=[])


def _failed(why: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=why)], is_error=True)


def _as_text(told: Told) -> str:
    """The answer for who reads text: passages between marks that no document can know."""
    mark = f"passage-{secrets.token_hex(4)}"
    notes = [note.text for note in told.notes]
    return "\n\n".join([NOTICE, f"as_of: {told.as_of.isoformat()}", *notes, *(_fenced(mark, p) for p in told.passages)])


def _fenced(mark: str, passage: Passage) -> str:
    cited = passage.citations[0]
    place = {
        "document": cited.document,
        "title": cited.title,
        "headings": " › ".join(cited.headings),
        "page": cited.page,
        "link": cited.link,
        "stale_since": cited.stale_since and cited.stale_since.isoformat(),
    }
    told = " ".join(f'{name}="{escape(str(value))}"' for name, value in place.items() if value)
    return f"<{mark} {told}>\n{passage.text}\n</{mark}>"
