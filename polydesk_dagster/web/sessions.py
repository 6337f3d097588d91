"""Sessions are the server's: a cookie holds a token, the database holds its hash and until when it is good.

Functions take a Connection and ``as_of`` and return plain values; the caller commits.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.web import tokens
from polydesk_dagster.web.roles import Person, Role

ABSOLUTE = timedelta(hours=12)
"""A session ends so long after it began: a shift."""
IDLE = timedelta(hours=2)
"""Who does nothing for so long logs in again."""
SEEN_EVERY = timedelta(minutes=1)
"""How exactly it is known when somebody was last here; a write for every request would be many."""

Way = Literal["password", "link", "activation", "oidc"]

_LIVE = """s.ended_at IS NULL AND s.expires_at > :as_of AND s.seen_at > CAST(:as_of AS timestamptz) - :idle
    AND u.state = 'active' AND u.role <> 'patient'"""

_LOOK = f"""
    SELECT u.id, u.email, u.display_name, u.role, u.whole_chain OR u.role = 'superuser' AS everywhere, s.seen_at,
           array(SELECT c.code FROM clinic c
                 WHERE c.id = u.clinic_id
                    OR c.id IN (SELECT o.clinic_id FROM app_user_clinic o WHERE o.user_id = u.id)) AS clinics,
           (SELECT held_since FROM installation) AS held_since
    FROM web_session s JOIN app_user u ON u.id = s.user_id
    WHERE s.token_hash = :token AND {_LIVE}"""


def begin(connection: sa.Connection, user: int, way: Way, as_of: datetime) -> str:
    """Begin a session of a user; returns its token, which is nowhere else."""
    token = tokens.draw()
    connection.execute(
        sa.text("""INSERT INTO web_session (token_hash, user_id, way, opened_at, seen_at, expires_at)
                   VALUES (:token, :user, :way, :as_of, :as_of, :expires)"""),
        {"token": tokens.hashed(token), "user": user, "way": way, "as_of": as_of, "expires": as_of + ABSOLUTE},
    )
    return token


def look(connection: sa.Connection, token: str, as_of: datetime, *, touch: bool = True) -> Person | None:
    """Whose session this is, or None where it is none, over, idle for too long, or its user is not active any more.
    ``touch`` says that somebody is here; looking whether a session still holds does not."""
    given = {"token": tokens.hashed(token), "as_of": as_of, "idle": IDLE}
    found = connection.execute(sa.text(_LOOK), given).one_or_none()
    if found is None:
        return None
    if touch and as_of - found.seen_at >= SEEN_EVERY:
        connection.execute(
            sa.text("UPDATE web_session SET seen_at = greatest(seen_at, :as_of) WHERE token_hash = :token"), given
        )
    clinics = None if found.everywhere else frozenset(found.clinics)
    return Person(found.id, found.email, found.display_name, Role(found.role), clinics, found.held_since)


def end(connection: sa.Connection, token: str, as_of: datetime) -> None:
    """End one session."""
    connection.execute(
        sa.text("UPDATE web_session SET ended_at = :as_of WHERE token_hash = :token AND ended_at IS NULL"),
        {"token": tokens.hashed(token), "as_of": as_of},
    )


def end_all(connection: sa.Connection, user: int, as_of: datetime) -> int:
    """End every session of a user; returns how many."""
    return connection.execute(
        sa.text("UPDATE web_session SET ended_at = :as_of WHERE user_id = :user AND ended_at IS NULL"),
        {"user": user, "as_of": as_of},
    ).rowcount


def tidy(connection: sa.Connection, as_of: datetime) -> None:
    """Forget what can do nothing any more."""
    for table, column in (("web_session", "expires_at"), ("login_link", "expires_at"), ("login_attempt", "at")):
        connection.execute(
            sa.text(f"DELETE FROM {table} WHERE {column} < CAST(:as_of AS timestamptz) - :kept"),
            {"as_of": as_of, "kept": timedelta(days=30)},
        )
    connection.execute(sa.text("DELETE FROM oidc_journey WHERE expires_at < :as_of"), {"as_of": as_of})
