"""What the SMS gateway tells by itself: people's answers and what became of texts, signed, taken once they are kept.

The gateway repeats what is not answered 2xx; so nothing is answered before it is committed. What it asks for is done
afterwards, and by the next run where this process ends before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.clinic.messages import arrivals, receipts, replies, service
from polydesk_dagster.providers import configured, news, reach
from polydesk_dagster.web.addresses import RECEIPTS, REPLIES
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.routes import ANYBODY, Pages

pages = Pages()

_AT_ONCE = 200
_BREATH = 0.1
"""Seconds between two rounds: of what comes in a burst much is then done in one."""


@pages.post(REPLIES, ANYBODY)
async def replied(request: Request) -> Response:
    return await _take(request, _reply, replies.keep)


@pages.post(RECEIPTS, ANYBODY)
async def became(request: Request) -> Response:
    return await _take(request, _receipt, receipts.keep)


def _reply(body: bytes) -> replies.Texted:
    told = news.reply(body)
    return replies.Texted(told.id, told.sender, told.text, told.received_at)


def _receipt(body: bytes) -> receipts.Told:
    told = news.receipt(body)
    return receipts.Told(told.id, news.became(told), told.at)


async def _take(
    request: Request, read: Callable[[bytes], Any], keep: Callable[[sa.Connection, Sequence[Any], datetime], int]
) -> Response:
    door: Door = request.state.door
    secret = door.settings.sms_webhook_secret
    if secret is None:
        raise HTTPException(404)
    body = await request.body()
    try:
        news.check(secret.get_secret_value(), body, request.headers.get("x-signature", ""), door.now())
        told = read(body)
    except news.UnsignedError:
        raise HTTPException(401, "door.unsigned") from None
    except news.UnreadableError:
        raise HTTPException(400, "door.unreadable") from None
    together: Together = door.kept.setdefault(f"gateway {request.url.path}", Together(door, keep))
    settling: _Settling = door.kept.setdefault("gateway", _Settling(door))
    await together.kept(told)
    return Response(status_code=204, background=BackgroundTask(settling.soon))


@dataclass
class Together:
    """Keeps what comes while the database is busy in one transaction."""

    door: Door
    keep: Callable[[sa.Connection, Sequence[Any], datetime], int]
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: list[tuple[Any, asyncio.Future[None]]] = field(default_factory=list)

    async def kept(self, told: object) -> None:
        """Returns once ``told`` is committed; raises what the database raises."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((told, mine))
        async with self.busy:
            if not mine.done():  # else another has kept it, and what has come meanwhile is for whoever waits behind
                batch, self.waiting = self.waiting[:_AT_ONCE], self.waiting[_AT_ONCE:]
                await self._write(batch)
        await mine

    async def _write(self, batch: list[tuple[Any, asyncio.Future[None]]]) -> None:
        def write() -> None:
            with self.door.engine.begin() as connection:
                self.keep(connection, [told for told, _ in batch], self.door.now())

        try:
            await run_in_threadpool(write)
        except sa.exc.SQLAlchemyError as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for _, future in batch:
                if not future.done():
                    future.set_result(None)


@dataclass
class _Settling:
    """Does what was told, one round at a time; who comes meanwhile is part of the next."""

    door: Door
    running: bool = False
    again: bool = False

    async def soon(self) -> None:
        self.again = True
        if self.running:
            return
        self.running = True
        try:
            while self.again:
                self.again = False
                await run_in_threadpool(self._round)
                await asyncio.sleep(_BREATH)
        finally:
            self.running = False

    def _round(self) -> None:
        done, more = arrivals.settle_some(self.door.engine, self.door.now())
        self.again |= more
        if done.to_send:
            send(self.door)


def send(door: Door) -> None:
    """Send at once what somebody waits for who has just said something."""
    service.answer(door.engine, door.now(), configured(door.settings), reach=reach(door.settings))
