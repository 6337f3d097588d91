"""OpenID Connect by configuration: the provider proves who somebody is, second factors included; we say what she may.

Authorization code with PKCE, state and nonce, all Authlib's. What must be remembered meanwhile is kept in the database
under a cookie of the browser that went there, so that nobody can be logged in by another's journey.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.errors import in_brief
from polydesk_dagster.web import sessions, tokens, users
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.login import inside, local, login_page
from polydesk_dagster.web.routes import ANYBODY, Pages

log = logging.getLogger("polydesk.door")
pages = Pages()

JOURNEY = timedelta(minutes=10)
RETURN = "/entra/oidc/ritorno"
FAILED, NOBODY = "door.oidc_failed", "door.oidc_nobody"


def _client(door: Door) -> Any:
    """Authlib's client of the provider; it reads the provider's metadata and keys itself, and keeps them.

    Raises:
        HTTPException: 404 if none is configured.
    """
    from authlib.integrations.starlette_client import OAuth

    from polydesk_dagster.web.oidc_client import App

    settings = door.settings
    if settings.oidc_issuer is None or settings.oidc_client_secret is None:
        raise HTTPException(404)
    if "oidc" not in door.kept:
        door.kept["oidc"] = OAuth().register(
            "oidc",
            client_cls=App,
            server_metadata_url=f"{settings.oidc_issuer}/.well-known/openid-configuration",
            client_id=settings.oidc_client_id,
            client_secret=settings.oidc_client_secret.get_secret_value(),
            client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256", "timeout": 10.0},
        )
    return door.kept["oidc"]


def _cookie(door: Door) -> str:
    return f"{door.cookie}-oidc"


@pages.get("/entra/oidc", ANYBODY)
async def go(request: Request) -> Response:
    """To the provider."""
    door: Door = request.state.door
    client = _client(door)
    remembered: dict[str, Any] = {}
    request.scope["session"] = remembered
    try:
        response: Response = await client.authorize_redirect(request, f"{door.address.public}{RETURN}")
    except Exception as error:  # noqa: BLE001 - whatever the provider's metadata are, or that there are none
        return login_page(request, 502, problem=_told(error))
    remembered["da"] = local(request.query_params.get("da"))
    token = tokens.draw()
    await run_in_threadpool(_keep, door, token, remembered)
    door.remember(response, _cookie(door), token, int(JOURNEY.total_seconds()))
    return response


def _keep(door: Door, token: str, remembered: dict[str, Any]) -> None:
    with door.engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO oidc_journey (token_hash, state, expires_at) VALUES (:token, :state, :expires)"),
            {"token": tokens.hashed(token), "state": json.dumps(remembered), "expires": door.now() + JOURNEY},
        )


@pages.get(RETURN, ANYBODY)
async def come_back(request: Request) -> Response:
    """From the provider, with a code; the journey is over whatever comes of it."""
    door: Door = request.state.door
    client = _client(door)
    remembered = await run_in_threadpool(_journey, door, request.cookies.get(_cookie(door), ""))
    if remembered is None:
        return login_page(request, 403, problem=FAILED)
    where = local(remembered.pop("da", "/"))
    request.scope["session"] = remembered
    try:
        claims = (await client.authorize_access_token(request, claims_options=_claims(door)))["userinfo"]
    except Exception as error:  # noqa: BLE001 - a code, a key, a claim or a network that is wrong all end here
        return login_page(request, 403, problem=_told(error))
    token = await run_in_threadpool(_known, door, claims)
    if token is None:
        return login_page(request, 403, problem=NOBODY)
    response = await run_in_threadpool(inside, request, token, where)
    door.forget(response, _cookie(door))
    return response


def _claims(door: Door) -> dict[str, Any]:
    """What an ID token must say: from our provider, for us."""
    issuer = str(door.settings.oidc_issuer)
    return {
        "iss": {"essential": True, "values": [issuer, f"{issuer}/"]},
        "aud": {"essential": True, "values": [door.settings.oidc_client_id]},
    }


def _journey(door: Door, token: str) -> dict[str, Any] | None:
    """What was remembered for a browser; forgotten now."""
    with door.engine.begin() as connection:
        state: dict[str, Any] | None = connection.scalar(
            sa.text("DELETE FROM oidc_journey WHERE token_hash = :token AND expires_at > :now RETURNING state"),
            {"token": tokens.hashed(token), "now": door.now()},
        )
    return state


def _known(door: Door, claims: Any) -> str | None:
    """A session of whoever the verified claims name, or None where she is nobody here."""
    verified = claims.get("email") if claims.get("email_verified") is True else None
    with door.engine.begin() as connection:
        user = users.identified(connection, claims["iss"], claims["sub"], verified, door.now())
        return None if user is None else sessions.begin(connection, user, "oidc", door.now())


def _told(error: Exception) -> str:
    """For the page; the log has the kind of error, never what it quotes."""
    log.warning("OpenID Connect: %s", in_brief(error))
    return FAILED
