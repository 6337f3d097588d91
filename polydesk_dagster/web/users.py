"""The people who come through the door: added, given a role, let choose a password, disabled; and who they prove to be.

Functions take a Connection and ``as_of`` and return plain values; the caller commits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Reason
from polydesk_dagster.web import sessions, tokens
from polydesk_dagster.web.roles import Role

SHORTEST = 12
LONGEST = 200
LINK_LIFE = timedelta(days=3)

_HELD = """SELECT id, email, display_name, role, state FROM app_user
           WHERE lower(email) = lower(:email) AND role <> 'patient'"""

# What a wrong address costs as much time as a wrong password against; nobody knows its password.
_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$d3JvbmdhZGRyZXNz$PUQVHZKqLRBmPLQWlIGHzKBCJSNhYQWQqpDMdCLoQ/4"


@dataclass(frozen=True, slots=True)
class User:
    """One account as ``polydesk users list`` shows it; ``clinics`` are codes, empty for the whole chain."""

    id: int
    email: str
    name: str
    role: Role
    state: str
    clinics: tuple[str, ...]
    ways: tuple[str, ...]
    """How she can come in: ``password``, ``oidc``."""
    seen_at: datetime | None


def listed(connection: sa.Connection) -> list[User]:
    """Everybody but the patients, by role and address."""
    rows = connection.execute(
        sa.text("""
            SELECT u.id, u.email, u.display_name, u.role, u.state,
                   CASE WHEN u.whole_chain OR u.role = 'superuser' THEN '{}'
                        ELSE array(SELECT c.code FROM clinic c WHERE c.id = u.clinic_id OR c.id IN
                                       (SELECT clinic_id FROM app_user_clinic WHERE user_id = u.id)
                                   ORDER BY 1) END AS clinics,
                   p.user_id IS NOT NULL AS password,
                   EXISTS (SELECT FROM user_identity i WHERE i.user_id = u.id) AS oidc,
                   (SELECT max(seen_at) FROM web_session s WHERE s.user_id = u.id) AS seen_at
            FROM app_user u LEFT JOIN user_password p ON p.user_id = u.id
            WHERE u.role <> 'patient'
            ORDER BY array_position(ARRAY['superuser', 'manager', 'desk', 'specialist'], u.role), lower(u.email)""")
    )
    return [
        User(
            row.id,
            row.email,
            row.display_name,
            Role(row.role),
            row.state,
            tuple(row.clinics),
            tuple(way for way in ("password", "oidc") if getattr(row, way)),
            row.seen_at,
        )
        for row in rows
    ]


def add(
    connection: sa.Connection,
    email: str,
    name: str,
    role: Role,
    clinics: Collection[str],
    as_of: datetime,
) -> int:
    """Add a person who has never been here; without clinics she acts for the whole chain.

    Raises:
        PermanentError: if the address is taken, a clinic is unknown, or the role needs a clinic.
    """
    if connection.scalar(sa.text("SELECT 1 FROM app_user WHERE lower(email) = lower(:email)"), {"email": email}):
        raise PermanentError("user_exists", email=email)
    ids = _clinics(connection, role, clinics)
    first = ids[0] if ids else connection.scalar(sa.text("SELECT id FROM clinic ORDER BY code LIMIT 1"))
    if first is None:
        raise PermanentError("no_clinic_yet")
    user = connection.scalar(
        sa.text("""INSERT INTO app_user (clinic_id, email, display_name, role, state, whole_chain, created_at)
                   VALUES (:clinic, :email, :name, :role, 'never_invited', :chain, :as_of) RETURNING id"""),
        {"clinic": first, "email": email, "name": name, "role": role, "chain": not ids, "as_of": as_of},
    )
    assert isinstance(user, int)
    _act_for(connection, user, ids[1:])
    return user


def change_role(connection: sa.Connection, email: str, role: Role, clinics: Collection[str], as_of: datetime) -> None:
    """Give a person another role and other clinics; her sessions end, so that nothing of the old role goes on.

    Raises:
        PermanentError: if there is no such person, a clinic is unknown, or the role needs a clinic.
    """
    user = _known(connection, email)
    ids = _clinics(connection, role, clinics)
    connection.execute(
        sa.text("""UPDATE app_user SET role = :role, whole_chain = :chain, clinic_id = coalesce(:clinic, clinic_id)
                   WHERE id = :user"""),
        {"role": role, "chain": not ids, "clinic": ids[0] if ids else None, "user": user.id},
    )
    _act_for(connection, user.id, ids[1:])
    sessions.end_all(connection, user.id, as_of)


def disable(connection: sa.Connection, email: str, as_of: datetime) -> None:
    """Let a person in no more: sessions end, links are void.

    Raises:
        PermanentError: if there is no such person.
    """
    user = _known(connection, email)
    connection.execute(sa.text("UPDATE app_user SET state = 'disabled' WHERE id = :user"), {"user": user.id})
    _void_links(connection, user.id, as_of)
    sessions.end_all(connection, user.id, as_of)


def reset(connection: sa.Connection, email: str, as_of: datetime) -> str:
    """Take a person's password and sessions away, whatever her state, and return the token of a link that lets her
    choose a new password, once.

    Raises:
        PermanentError: if there is no such person.
    """
    user = _known(connection, email)
    connection.execute(sa.text("DELETE FROM user_password WHERE user_id = :user"), {"user": user.id})
    sessions.end_all(connection, user.id, as_of)
    return link(connection, user.id, "password", as_of, LINK_LIFE)


def link(
    connection: sa.Connection, user: int, purpose: Literal["enter", "password"], as_of: datetime, life: timedelta
) -> str:
    """Make a link that works once; an older one of the same purpose is void. Returns its token."""
    connection.execute(
        sa.text("""UPDATE login_link SET voided_at = :as_of
                   WHERE user_id = :user AND purpose = :purpose AND used_at IS NULL AND voided_at IS NULL"""),
        {"user": user, "purpose": purpose, "as_of": as_of},
    )
    token = tokens.draw()
    connection.execute(
        sa.text("""INSERT INTO login_link (token_hash, user_id, purpose, created_at, expires_at)
                   VALUES (:token, :user, :purpose, :as_of, :expires)"""),
        {"token": tokens.hashed(token), "user": user, "purpose": purpose, "as_of": as_of, "expires": as_of + life},
    )
    return token


def use_link(
    connection: sa.Connection, token: str, purpose: Literal["enter", "password"], as_of: datetime
) -> int | None:
    """Use a link, once; returns its user, or None where it is unknown, used, void or old, or its user is disabled."""
    user: int | None = connection.scalar(
        sa.text("""
            UPDATE login_link l SET used_at = :as_of FROM app_user u
            WHERE l.token_hash = :token AND l.purpose = :purpose AND l.used_at IS NULL AND l.voided_at IS NULL
              AND l.expires_at > :as_of AND u.id = l.user_id AND u.role <> 'patient'
              AND (u.state = 'active' OR l.purpose = 'password')
            RETURNING l.user_id"""),
        {"token": tokens.hashed(token), "purpose": purpose, "as_of": as_of},
    )
    return user


def weak(password: str, email: str = "") -> Reason | None:
    """Why a password is not taken, or None."""
    if len(password) < SHORTEST:
        return Reason("password_short", {"shortest": SHORTEST})
    if len(password) > LONGEST:
        return Reason("password_long", {"longest": LONGEST})
    if len(set(password)) < 5 or (email and password.lower() in {email.lower(), email.lower().partition("@")[0]}):
        return Reason("password_guessed")
    return None


def choose_password(connection: sa.Connection, token: str, password: str, as_of: datetime) -> int | None:
    """Use an activation e-mail's link, or one of ``reset``, to choose a password. Returns the user, active now and with
    no other session; None where the link is good for nothing, and then nothing is changed."""
    user = use_link(connection, token, "password", as_of)
    if user is None:
        from polydesk_dagster.clinic.messages import activation  # all that sends messages comes with it

        with connection.begin_nested() as undone:
            user = activation.redeem(connection, token, as_of)
            if user is None or connection.scalar(
                sa.text("SELECT role = 'patient' FROM app_user WHERE id = :user"), {"user": user}
            ):
                undone.rollback()  # a patient's link is good at the portal, and stays so
                return None
    connection.execute(
        sa.text("""UPDATE app_user SET state = 'active', activated_at = coalesce(activated_at, :as_of)
                   WHERE id = :user AND state <> 'active'"""),
        {"user": user, "as_of": as_of},
    )
    set_password(connection, user, password, as_of)
    sessions.end_all(connection, user, as_of)
    return user


def set_password(connection: sa.Connection, user: int, password: str, as_of: datetime) -> None:
    """Keep the hash of a user's password."""
    connection.execute(
        sa.text("""INSERT INTO user_password (user_id, hash, set_at) VALUES (:user, :hash, :as_of)
                   ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, set_at = excluded.set_at"""),
        {"user": user, "hash": _hasher().hash(password), "as_of": as_of},
    )


def proved(connection: sa.Connection, email: str, password: str, as_of: datetime) -> int | None:
    """Whose address and password these are, or None; a wrong address takes as long as a wrong password."""
    from argon2.exceptions import InvalidHashError, VerificationError

    found = connection.execute(
        sa.text("""SELECT u.id, p.hash FROM app_user u JOIN user_password p ON p.user_id = u.id
                   WHERE lower(u.email) = lower(:email) AND u.state = 'active' AND u.role <> 'patient'"""),
        {"email": email.strip()},
    ).one_or_none()
    hasher = _hasher()
    try:
        hasher.verify(found.hash if found else _NOBODY, password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return None
    if found is None:
        return None
    if hasher.check_needs_rehash(found.hash):
        set_password(connection, found.id, password, as_of)
    return int(found.id)


def identified(
    connection: sa.Connection, issuer: str, subject: str, verified_email: str | None, as_of: datetime
) -> int | None:
    """Who somebody is whom the identity provider vouches for. The first time she is found by the address that the
    provider has verified, and bound to it; nobody is ever added here. None: nobody here, or disabled."""
    bound = connection.execute(
        sa.text("""SELECT u.id, u.state FROM user_identity i JOIN app_user u ON u.id = i.user_id
                   WHERE i.issuer = :issuer AND i.subject = :subject AND u.role <> 'patient'"""),
        {"issuer": issuer, "subject": subject},
    ).one_or_none()
    if bound is not None:
        return int(bound.id) if bound.state == "active" else None
    if verified_email is None:
        return None
    user: int | None = connection.scalar(
        sa.text("""SELECT id FROM app_user u WHERE lower(email) = lower(:email) AND role <> 'patient'
                     AND state <> 'disabled'
                     AND NOT EXISTS (SELECT FROM user_identity i WHERE i.user_id = u.id AND i.issuer = :issuer)
                   FOR UPDATE"""),
        {"email": verified_email, "issuer": issuer},
    )
    if user is not None:
        bind(connection, user, issuer, subject, as_of)
        connection.execute(
            sa.text("""UPDATE app_user SET state = 'active', activated_at = coalesce(activated_at, :as_of)
                       WHERE id = :user AND state <> 'active'"""),
            {"user": user, "as_of": as_of},
        )
    return user


def bind(connection: sa.Connection, user: int, issuer: str, subject: str, as_of: datetime) -> None:
    """Say who a person is at the identity provider."""
    connection.execute(
        sa.text("""INSERT INTO user_identity (issuer, subject, user_id, bound_at)
                   VALUES (:issuer, :subject, :user, :as_of)"""),
        {"issuer": issuer, "subject": subject, "user": user, "as_of": as_of},
    )


def _hasher() -> Any:
    from argon2 import PasswordHasher

    return PasswordHasher()


def _known(connection: sa.Connection, email: str) -> sa.Row[Any]:
    found = connection.execute(sa.text(_HELD), {"email": email}).one_or_none()
    if found is None:
        raise PermanentError("user_unknown", email=email)
    return found


def _clinics(connection: sa.Connection, role: Role, codes: Collection[str]) -> list[int]:
    if not codes and role in {Role.DESK, Role.SPECIALIST}:
        raise PermanentError("role_needs_clinic", role=role.value)
    if codes and role is Role.SUPERUSER:
        raise PermanentError("superuser_everywhere")
    rows = connection.execute(sa.text("SELECT code, id FROM clinic WHERE code = ANY(:codes)"), {"codes": list(codes)})
    found = {row.code: row.id for row in rows}
    unknown = [code for code in codes if code not in found]
    if unknown:
        raise PermanentError("clinics_unknown", codes=", ".join(unknown))
    return [found[code] for code in codes]


def _act_for(connection: sa.Connection, user: int, clinics: Collection[int]) -> None:
    connection.execute(sa.text("DELETE FROM app_user_clinic WHERE user_id = :user"), {"user": user})
    connection.execute(
        sa.text("INSERT INTO app_user_clinic (user_id, clinic_id) SELECT :user, unnest(CAST(:clinics AS bigint[]))"),
        {"user": user, "clinics": list(clinics)},
    )


def _void_links(connection: sa.Connection, user: int, as_of: datetime) -> None:
    for table in ("login_link", "activation_token"):
        connection.execute(
            sa.text(f"""UPDATE {table} SET voided_at = :as_of
                        WHERE user_id = :user AND used_at IS NULL AND voided_at IS NULL"""),
            {"user": user, "as_of": as_of},
        )
