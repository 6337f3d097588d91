"""Texts through the SMS gateway's HTTP interface; a doubt can be settled, because it remembers idempotency keys."""

from __future__ import annotations

import json
from typing import Self

import httpx

from polydesk_dagster import remote
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.errors import PermanentError, TransientError

_SYSTEM = "gateway SMS"


class SmsGateway:
    """The gateway at ``url``, writing as ``sender``. ``patience``: seconds to wait for an answer."""

    name = _SYSTEM
    channel: Channel = "sms"
    can_look_up = True

    def __init__(self, url: str, token: str, sender: str, *, at_once: int = 16, patience: float = 20.0) -> None:
        self._messages = f"{remote.base_url(url)}/messages"
        self._token, self._sender = token, sender
        self._at_once, self._patience = at_once, patience

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._token}", "User-Agent": "polydesk"},
            timeout=httpx.Timeout(self._patience, connect=5.0),
            limits=httpx.Limits(max_connections=self._at_once, max_keepalive_connections=self._at_once),
            verify=httpx.create_ssl_context(trust_env=False),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, outgoing: Outgoing) -> Answer:
        body = {"to": outgoing.address, "from": self._sender, "text": outgoing.body}
        try:
            response = await self._client.post(self._messages, json=body, headers={"Idempotency-Key": outgoing.key})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return _from_error(remote.sort_error(_SYSTEM, error), error)
        if response.is_success:
            return _accepted(response)
        if response.status_code == 409:
            # Another text went out with this key; only a look-up can tell what the gateway did with it.
            return Answer(Fate.DOUBTFUL, code="409")
        if response.status_code == 429:
            return Answer(Fate.SLOWER, code="429", retry_after=remote.retry_after(response))
        if response.status_code in {400, 422}:
            return Answer(Fate.REFUSED, code=str(response.status_code))
        return _from_status(response)

    async def look_up(self, key: str) -> Answer:
        try:
            response = await self._client.get(self._messages, params={"idempotency_key": key})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return _from_error(remote.sort_error(_SYSTEM, error), error)
        if response.is_success:
            return _accepted(response)
        if response.status_code == 404:
            return Answer(Fate.UNKNOWN_KEY)
        return _from_status(response)


def _accepted(response: httpx.Response) -> Answer:
    """A success says what became of the message; one that cannot be read says nothing."""
    try:
        message = json.loads(response.content)
        reference, status = str(message["id"]), str(message["status"])
    except (ValueError, KeyError, TypeError):
        return Answer(Fate.DOUBTFUL, code=f"{response.status_code} illeggibile")
    if status == "undeliverable":
        return Answer(Fate.REFUSED, reference, "undeliverable", bad_address=True)
    return Answer(Fate.ACCEPTED, reference)


def _from_status(response: httpx.Response) -> Answer:
    failure, code = remote.sort_response(_SYSTEM, response), str(response.status_code)
    if isinstance(failure, PermanentError):
        return Answer(Fate.CLOSED, code=code)
    fate = Fate.DOUBTFUL if isinstance(failure, remote.UncertainError) else Fate.LATER
    return Answer(fate, code=code, retry_after=failure.retry_after)


def _from_error(failure: TransientError | PermanentError, error: Exception) -> Answer:
    code = type(error).__name__
    if isinstance(failure, PermanentError):
        return Answer(Fate.CLOSED, code=code)
    return Answer(Fate.DOUBTFUL if isinstance(failure, remote.UncertainError) else Fate.UNREACHABLE, code=code)
