"""Where alerts and signs of life go, outside of this machine: a webhook, whatever Apprise can reach, a dead-man's
switch. Their addresses are secrets, and are told to nobody."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import httpx
import stamina

from polydesk_dagster import network
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.settings import Settings

ATTEMPTS = 3
PATIENCE = 10.0
"""Seconds for one attempt to connect, and for each silence in it."""
WEBHOOK, APPRISE, PING = "alert_url", "alert_apprise", "ping_url"
"""The ways, by the settings that name them."""

log = logging.getLogger(__name__)


class _NotTakenError(Exception):
    """How a request ended, without the address: that may be a secret."""


class Outside:
    """Connections to whoever is told. Close it (or use ``with``)."""

    def __init__(self, settings: Settings, *, wait: float = 1.0) -> None:
        self._settings, self._wait = settings, wait
        self._client = httpx.Client(
            transport=network.transport(network.trust(environment=True)),
            headers={"User-Agent": "polydesk"},
            timeout=PATIENCE,
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    @property
    def ways(self) -> tuple[str, ...]:
        """By which an alert leaves."""
        return tuple(way for way in (WEBHOOK, APPRISE) if getattr(self._settings, way) is not None)

    def tell(self, way: str, body: Mapping[str, object], key: str) -> bool:
        """Whether an alert was taken, tried again a few times where it was not. The same ``key`` says the same."""
        if way == APPRISE:
            return self._apprised(bool(body["ok"]), str(body["text"]))
        token = self._settings.alert_token
        given = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        return self._asked("POST", WEBHOOK, {"Idempotency-Key": key, **given}, body)

    def ping(self) -> bool:
        """Whether the sign of life was taken."""
        return self._asked("GET", PING, {})

    def _asked(self, method: str, way: str, headers: Mapping[str, str], body: object = None) -> bool:
        url = getattr(self._settings, way).get_secret_value()
        try:
            for attempt in stamina.retry_context(
                on=_NotTakenError, attempts=ATTEMPTS, wait_initial=self._wait, wait_max=5 * self._wait
            ):
                with attempt:
                    self._once(method, url, headers, body)
        except _NotTakenError as error:
            log.warning("%s was not taken: %s", "the ping" if way == PING else "the alert", error)
            return False
        return True

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: object) -> None:
        try:
            with self._client.stream(method, url, headers=headers, json=body) as response:
                if not response.is_success:
                    raise _NotTakenError(response.status_code)
        except (httpx.HTTPError, httpx.InvalidURL, PermanentError) as error:
            raise _NotTakenError(type(error).__name__) from None

    def _apprised(self, well: bool, text: str) -> bool:
        """One attempt with each of Apprise's addresses: it says only whether all of them took it."""
        import apprise

        logging.getLogger("apprise").disabled = True  # it quotes addresses
        assert self._settings.alert_apprise is not None
        told = apprise.Apprise()
        understood = [told.add(address) for address in self._settings.alert_apprise.get_secret_value().split()]
        kind = apprise.NotifyType.SUCCESS if well else apprise.NotifyType.FAILURE
        if all(understood) and told.notify(body=text, title="Polydesk", notify_type=kind):
            return True
        log.warning("the alert was not taken: Apprise")
        return False
