"""The SMS gateway: takes a text once for each Idempotency-Key, and tells what became of it.

Numbers decide how a message ends, as with a real operator's test numbers: one that ends in ``0000`` is refused with
400, one that ends in ``0001`` is accepted and never delivered; of one that ends in ``0002`` that turns out only later.

- ``GET /admin/messages``   every text that really went out, oldest first; ``DELETE`` forgets all messages and keys;
- ``POST /admin/replies``   ``{"from": …, "text": …}``: somebody texts back; told to the webhook, as receipts are;
- fault ``timeout``         accepts the message, then says nothing: the caller cannot know;
- fault ``deaf``            says nothing and accepts nothing: the caller cannot know either.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydesk_dagster.demo.simulators.faults import Reply, problem
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, Handler, Simulator, main

DEMO_SECRET = "demo-webhook-secret"  # noqa: S105
_AT_ONCE = 8
_PAUSES = (0.2, 0.5, 1, 2, 5, 15, 60, 300)
"""Seconds between two attempts to tell a webhook something; then it is given up."""
REFUSED, UNDELIVERABLE, LOST = "0000", "0001", "0002"
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


@dataclass(slots=True)
class Message:
    """One accepted text; ``times`` counts how often it was asked for with its key."""

    id: str
    key: str
    to: str
    sender: str
    text: str
    status: str
    at: float
    reason: str | None = None
    times: int = 1

    def answer(self) -> dict[str, Any]:
        return {"id": self.id, "status": self.status, "reason": self.reason}

    def end(self) -> None:
        """It arrives, or turns out never to."""
        if self.status == "accepted":
            lost = self.to.endswith(LOST)
            self.status, self.reason = ("undeliverable", "unknown_number") if lost else ("delivered", None)

    def receipt(self) -> dict[str, Any]:
        """What the webhook is told of it as it stands."""
        told = {"status": self.status, "reason": self.reason, "at": datetime.now(UTC).isoformat()}
        return {"id": uuid.uuid4().hex, "message_id": self.id, **told}


class Webhook:
    """Where the gateway tells by itself what it learns: signed anew at each attempt, repeated until it is taken."""

    def __init__(self, replies: str, receipts: str, secret: str = DEMO_SECRET) -> None:
        self.addresses = {"reply": replies, "receipt": receipts}
        self.secret = secret
        self._telling: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def tell(self, kind: str, said: dict[str, Any]) -> None:
        task = asyncio.get_running_loop().create_task(self._tell(self.addresses[kind], json.dumps(said).encode()))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, address: str, body: bytes) -> None:
        for pause in _PAUSES:
            async with self._turns, httpx.AsyncClient(timeout=10, trust_env=False, verify=False) as client:  # noqa: S501
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.post(address, content=body, headers=self.headers(body))).is_success:
                        return
            await asyncio.sleep(pause)

    def headers(self, body: bytes, at: float | None = None) -> dict[str, str]:
        """What makes ``body`` the gateway's word, said at the Unix time ``at``."""
        moment = str(int(time.time() if at is None else at))
        mac = hmac.new(self.secret.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()
        return {"X-Signature": f"t={moment},v1={mac}", "Content-Type": "application/json"}


class SmsSimulator(Simulator):
    """``state`` is a folder that keeps keys and messages across restarts; with a ``webhook`` it tells by itself what
    became of texts, and what people answer."""

    name = "sms"

    def __init__(self, token: str = DEMO_TOKEN, state: Path | None = None, webhook: Webhook | None = None) -> None:
        super().__init__(token)
        self.webhook = webhook
        self.messages: dict[str, Message] = {}
        self._journal = state / "messages.jsonl" if state else None
        if self._journal and self._journal.exists():
            for line in self._journal.read_text().splitlines():
                message = Message(**json.loads(line))
                self.messages[message.key] = message

    @property
    def sent(self) -> list[Message]:
        """The texts that went out, oldest first: one for each key."""
        return list(self.messages.values())

    def handlers(self) -> dict[tuple[str, str], Handler]:
        return {("POST", "/messages"): self._send, ("GET", "/messages"): self._look_up}

    def admin(self) -> list[Route]:
        return [
            Route("/admin/messages", self._messages, methods=["GET", "DELETE"]),
            Route("/admin/replies", self._replies, methods=["POST"]),
        ]

    async def _send(self, request: Request) -> Reply:
        key = request.headers.get("Idempotency-Key", "").strip()
        if not key:
            return problem(400, "Idempotency-Key is required")
        try:
            body = json.loads(await request.body())
            to, sender, text = (body[name] for name in ("to", "from", "text"))
        except (ValueError, KeyError, TypeError):
            return problem(400, "to, from and text are required")
        if not all(isinstance(value, str) for value in (to, sender, text)):
            return problem(400, "to, from and text are texts")
        known = self.messages.get(key)
        if known is not None:
            if (known.to, known.sender, known.text) != (to, sender, text):
                return problem(409, "the key was used with another body")
            known.times += 1
            return Reply(known.answer(), 202)
        if not _E164.fullmatch(to) or to.endswith(REFUSED):
            return problem(400, "bad number", reason="numero non valido")
        if not text.strip() or not sender.strip():
            return problem(400, "empty text", reason="testo o mittente vuoto")
        message = Message(uuid.uuid4().hex, key, to, sender, text, "accepted", time.time())
        if to.endswith(UNDELIVERABLE):
            message.status, message.reason = "undeliverable", "unknown_number"
        self.messages[key] = message
        if self._journal:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a") as journal:
                journal.write(json.dumps(asdict(message)) + "\n")
        answered = Reply(message.answer(), 202)
        if self.webhook is not None:
            message.end()
            self.webhook.tell("receipt", message.receipt())
        return answered

    async def _look_up(self, request: Request) -> Reply:
        message = self.messages.get(request.query_params.get("idempotency_key", ""))
        if message is None:
            return problem(404, "the gateway never accepted that key")
        message.end()
        return Reply(message.answer())

    async def _replies(self, request: Request) -> Response:
        if self.webhook is None:
            return JSONResponse({"title": "no webhook is registered"}, 409)
        said = await request.json()
        self.webhook.tell(
            "reply",
            {
                "id": uuid.uuid4().hex,
                "from": said["from"],
                "to": said.get("to", ""),
                "text": said["text"],
                "received_at": datetime.now(UTC).isoformat(),
            },
        )
        return JSONResponse({}, 202)

    async def _messages(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.messages.clear()
            if self._journal:
                self._journal.unlink(missing_ok=True)
        return JSONResponse([asdict(message) for message in self.messages.values()])


def _build(arguments: argparse.Namespace) -> Simulator:
    webhook = Webhook(*arguments.webhook) if arguments.webhook else None
    return SmsSimulator(arguments.token, arguments.state, webhook)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--webhook", nargs=2, metavar="URL", help="dove raccontare le risposte e gli esiti, nell'ordine"
    )


if __name__ == "__main__":
    main("Simulatore del gateway SMS", _build, 8083, _options)
