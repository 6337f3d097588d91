"""Texts through the SMS gateway's HTTP interface; a doubt can be settled, because it remembers idempotency keys."""

from __future__ import annotations

import json
from typing import Any, Self

import httpx

from polydesk_dagster import answers, network, remote
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.failure import failure as how

_SYSTEM = "gateway SMS"
_LONGEST_ANSWER = 64 * 1024
_SOFT = frozenset({"absent", "blocked", "full"})
"""Why a text cannot be delivered: of the number, but not for good."""
_REASONS = _SOFT | {"unknown_number", "expired", "network", "other"}


class SmsGateway:
    """The gateway at ``url``, writing as ``sender``. ``patience``: seconds to wait for an answer."""

    name = _SYSTEM
    channel: Channel = "sms"
    can_look_up = True

    def __init__(self, url: str, token: str, sender: str, *, at_once: int = 16, patience: float = 20.0) -> None:
        self._messages = f"{remote.base_url(url)}/messages"
        self._token, self._sender = token, sender
        self._at_once, self._patience = at_once, patience
        self._keys: dict[str, str] = {}  # of the gateway's own names, which key each was told for

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=self._at_once, max_keepalive_connections=self._at_once)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._token}", "User-Agent": "polydesk"},
            timeout=self._patience,
            transport=network.async_transport(limits=limits),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, outgoing: Outgoing) -> Answer:
        body = {"to": outgoing.address, "from": self._sender, "text": outgoing.body}
        answer, status = await self._ask("POST", outgoing.key, json=body, headers={"Idempotency-Key": outgoing.key})
        if status == 409:
            # Another text went out with this key; only a look-up can tell what the gateway did with it.
            return Answer(Fate.DOUBTFUL, code="409")
        if status in {400, 422}:
            # By the contract about this number or this text, not for good: what is wrong is not said.
            return Answer(Fate.REFUSED, code=str(status), strike=True)
        return answer

    async def look_up(self, key: str) -> Answer:
        answer, status = await self._ask("GET", key, params={"idempotency_key": key})
        return Answer(Fate.UNKNOWN_KEY) if status == 404 else answer

    async def _ask(self, method: str, key: str, **asked: Any) -> tuple[Answer, int | None]:
        """One request about the message with ``key``, and the status where an answer came.

        An answer may come twice on a connection that is kept, and be taken for the next one's. So only a message that
        was never told of before keeps its connection: any other answer is not read to its end, which closes it.
        """
        try:
            async with self._client.stream(method, self._messages, **asked) as response:
                if response.is_success:
                    return await self._accepted(key, response), response.status_code
                return _from_status(response), response.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return _from_error(answers.sort_error(_SYSTEM, error), error), None
        except PermanentError as refused:
            return Answer(Fate.CLOSED, code=refused.reason.code), None

    async def _accepted(self, key: str, response: httpx.Response) -> Answer:
        """A success says what became of the message; one that cannot be read says nothing."""
        body, answer = b"", Answer(Fate.DOUBTFUL, code=f"{response.status_code} unreadable")
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > _LONGEST_ANSWER:
                break
            told = _told(body)
            if told is None:
                continue
            if self._keys.setdefault(str(told.reference), key) != key:
                return Answer(Fate.DOUBTFUL, code=f"{response.status_code} of another message")
            answer = told
        return answer


def _told(body: bytes) -> Answer | None:
    """What a whole answer tells; None for a part of one, and for anything else."""
    try:
        message = json.loads(body)
        reference, status, reason = str(message["id"]), str(message["status"]), message.get("reason")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return became(reference, status, reason)


def became(reference: str, status: str, reason: str | None) -> Answer:
    """What the gateway says became of the text that it calls ``reference``."""
    if status == "undeliverable":
        code = f"undeliverable {reason}" if reason in _REASONS else "undeliverable"
        return Answer(Fate.REFUSED, reference, code, bad_address=reason == "unknown_number", strike=reason in _SOFT)
    return Answer(Fate.ACCEPTED, reference, delivered=status == "delivered")


def _from_status(response: httpx.Response) -> Answer:
    if response.status_code == 429:
        return Answer(Fate.SLOWER, code="429", retry_after=answers.retry_after(response))
    failure, code = answers.sort_response(_SYSTEM, response), str(response.status_code)
    if isinstance(failure, PermanentError):
        return Answer(Fate.CLOSED, code=code)
    fate = Fate.DOUBTFUL if isinstance(failure, answers.UncertainError) else Fate.LATER
    return Answer(fate, code=code, retry_after=failure.retry_after)


def _from_error(failure: TransientError | PermanentError, error: Exception) -> Answer:
    code = "address" if failure.reason.code == "remote_address" else how(error, "protocol").code
    if isinstance(failure, PermanentError):
        return Answer(Fate.CLOSED, code=code)
    return Answer(Fate.DOUBTFUL if isinstance(failure, answers.UncertainError) else Fate.UNREACHABLE, code=code)
