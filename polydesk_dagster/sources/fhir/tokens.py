"""SMART Backend Services: a token got with a signed assertion, and got anew when the server no longer takes it.

https://hl7.org/fhir/smart-app-launch/backend-services.html
"""

from __future__ import annotations

from collections.abc import Generator

import httpx

from polydesk_dagster import network
from polydesk_dagster.answers import TRANSIENT_STATUSES, sort_error
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Policy
from polydesk_dagster.values import Value

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class SmartTokens(httpx.Auth):
    """Authorises requests of one client; close it."""

    def __init__(
        self,
        system: Value,
        endpoint: str,
        client_id: str,
        private_key: str,
        scope: str,
        key_id: str | None,
        policy: Policy,
    ) -> None:
        self.system, self.endpoint, self.client_id = system, endpoint, client_id
        self.private_key, self.scope, self.key_id = private_key, scope, key_id
        self.token: str | None = None
        self._client = httpx.Client(
            timeout=httpx.Timeout(policy.read, connect=policy.connect),
            transport=network.transport(),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The request with a token; with another one where it had expired meanwhile, which may be mid-list."""
        fresh = self.token is None
        token = self.token or self._renew()
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401 and not fresh:
            request.headers["Authorization"] = f"Bearer {self._renew()}"
            yield request

    def _renew(self) -> str:
        self.token = None
        form = {
            "grant_type": "client_credentials",
            "scope": self.scope,
            "client_assertion_type": ASSERTION,
            "client_assertion": self._assertion(),
        }
        try:
            response = self._client.post(self.endpoint, data=form)
        except httpx.HTTPError as error:
            raise sort_error(self.system, error) from error
        if response.status_code in TRANSIENT_STATUSES:
            raise TransientError("token_later", system=self.system, status=response.status_code)
        self.token = _token(response)
        if self.token is None:
            raise PermanentError("token_refused", system=self.system, status=response.status_code)
        return self.token

    def _assertion(self) -> str:
        from authlib.oauth2.rfc7523 import private_key_jwt_sign

        try:
            header = {"alg": _algorithm(self.private_key)}
            if self.key_id is not None:
                header["kid"] = self.key_id
            signed = private_key_jwt_sign(
                self.private_key, self.client_id, self.endpoint, alg=header["alg"], header=header
            )
        except (ValueError, TypeError) as error:
            raise PermanentError("private_key_wrong", system=self.system) from error
        return signed.decode() if isinstance(signed, bytes) else str(signed)


def _algorithm(private_key: str) -> str:
    """Of the two that SMART's servers know the one that is for this kind of key, in whatever envelope it comes.

    Raises:
        ValueError, TypeError: it is no key, or one with a password.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(private_key.encode(), None)
    return "ES384" if isinstance(key, EllipticCurvePrivateKey) else "RS384"


def _token(response: httpx.Response) -> str | None:
    if not response.is_success:
        return None
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None
    token = body.get("access_token") if isinstance(body, dict) else None
    return token if isinstance(token, str) and token else None
