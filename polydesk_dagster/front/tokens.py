"""The tokens of programs that book for visitors or ask for an assistant: issued and revoked by a person with a reason,
kept as hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.errors import PermanentError

LIFE = timedelta(days=365)
LONGEST = timedelta(days=730)
PREFIX = "pdf_"
"""So that a token that lies about is known for what it is."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Scope(StrEnum):
    """What a front end may do."""

    FIND = "find"
    HOLD = "hold"
    BOOK = "book"
    CHANGE = "change"
    VOUCH = "vouch"
    """Say who its visitor is, without our asking for a proof."""
    ASK = "ask"
    """Ask the documents, for one clinic and in one role."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A front end whose token is good."""

    token_id: int
    name: str
    scopes: frozenset[Scope]
    clinics: tuple[int, ...] | None
    """Ids of those it reaches; None: the whole chain."""
    reader: Reader | None
    """As whom it asks the documents, where it may."""


@dataclass(frozen=True, slots=True)
class Reader:
    """For whom an assistant asks: a clinic, by its code, and a role."""

    clinic: str
    role: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A token as an operator sees it; the token itself nobody sees again."""

    id: int
    name: str
    scopes: tuple[str, ...]
    clinics: tuple[str, ...]
    """Codes; none: the whole chain."""
    role: str | None
    issued_at: datetime
    issued_by: str
    reason: str
    expires_at: datetime
    revoked_at: datetime | None


def hashed(token: str) -> bytes:
    """What is kept of a token. No salt: nobody guesses 256 bits."""
    return hashlib.sha256(token.encode()).digest()


def issue(
    connection: sa.Connection,
    *,
    name: str,
    scopes: Collection[Scope],
    clinics: Sequence[str],
    role: str | None = None,
    who: str,
    why: str,
    as_of: datetime,
    life: timedelta = LIFE,
) -> str:
    """Make a token for the program ``name`` and return it, this once; without ``clinics`` (codes) it reaches all. One
    that asks the documents does so for one clinic and in one ``role``.

    Raises:
        PermanentError: for a name that is none, no scope, an unknown clinic, a life that is too long, no real reason,
            or an assistant that is not of one clinic and one role.
    """
    if not _NAME.fullmatch(name):
        raise PermanentError("front_name_wrong", name=name)
    if not scopes:
        raise PermanentError("front_scope_missing")
    if (Scope.ASK in scopes) != (role is not None) or (role is not None and len(set(clinics)) != 1):
        raise PermanentError("front_reader_wrong")
    if not timedelta(0) < life <= LONGEST:
        raise PermanentError("front_life_wrong", longest=LONGEST.days)
    _reasoned(who, why)
    known: dict[str, int] = {row.code: row.id for row in connection.execute(sa.text("SELECT code, id FROM clinic"))}
    for code in clinics:
        if code not in known:
            raise PermanentError("no_such_clinic", code=code)
    token = PREFIX + secrets.token_urlsafe(32)
    number = connection.scalar(
        sa.text("""
            INSERT INTO front_token (name, token_hash, scopes, clinic_ids, role, issued_at, issued_by, reason,
                                     expires_at)
            VALUES (:name, :hash, :scopes, :clinics, :role, :as_of, :who, :why, :expires) RETURNING id"""),
        {
            "name": name,
            "hash": hashed(token),
            "scopes": sorted(str(each) for each in scopes),
            "clinics": sorted({known[code] for code in clinics}) or None,
            "role": role,
            "as_of": as_of,
            "who": who,
            "why": why,
            "expires": as_of + life,
        },
    )
    detail = {
        "token": number,
        "name": name,
        "scopes": sorted(scopes),
        "clinics": sorted(clinics),
        "role": role,
        "reason": why,
    }
    audit.append(connection, as_of=as_of, actor=who, action="issue", service="front_token", detail=detail)
    return token


def revoke(connection: sa.Connection, number: int, *, who: str, why: str, as_of: datetime) -> None:
    """Let a token in no more, from this transaction's end on.

    Raises:
        PermanentError: if there is none with this number, or it is revoked, or without a real reason.
    """
    _reasoned(who, why)
    name = connection.scalar(
        sa.text("""UPDATE front_token SET revoked_at = :as_of, revoked_by = :who, revoke_reason = :why
                   WHERE id = :id AND revoked_at IS NULL RETURNING name"""),
        {"id": number, "as_of": as_of, "who": who, "why": why},
    )
    if name is None:
        raise PermanentError("front_token_missing", number=number)
    detail = {"token": number, "name": name, "reason": why}
    audit.append(connection, as_of=as_of, actor=who, action="revoke", service="front_token", detail=detail)


def _reasoned(who: str, why: str) -> None:
    if not who.strip():
        raise PermanentError("front_who_missing")
    if not audit.is_reason(why):
        raise PermanentError("front_why_missing", least=audit.LEAST_REASON)


def listed(connection: sa.Connection) -> list[Listed]:
    """All that were ever issued, the newest first."""
    rows = connection.execute(
        sa.text("""
            SELECT t.id, t.name, t.scopes, (SELECT coalesce(array_agg(c.code ORDER BY c.code), '{}') FROM clinic c
                                            WHERE c.id = ANY(t.clinic_ids)),
                   t.role, t.issued_at, t.issued_by, t.reason, t.expires_at, t.revoked_at
            FROM front_token t ORDER BY t.id DESC""")
    )
    return [Listed(row[0], row[1], tuple(row[2]), tuple(row[3]), *row[4:]) for row in rows]


_LOOK = sa.text("""
    SELECT id, name, scopes, clinic_ids, role, (SELECT code FROM clinic c WHERE c.id = t.clinic_ids[1]) AS clinic
    FROM front_token t WHERE token_hash = :hash AND revoked_at IS NULL AND expires_at > :as_of""")


def look(connection: sa.Connection, token: str, as_of: datetime) -> Caller | None:
    """Whose token it is, while it is good."""
    row = connection.execute(_LOOK, {"hash": hashed(token), "as_of": as_of}).one_or_none()
    if row is None:
        return None
    clinics = None if row.clinic_ids is None else tuple(row.clinic_ids)
    reader = None if row.role is None else Reader(row.clinic, row.role)
    return Caller(row.id, row.name, frozenset(Scope(each) for each in row.scopes), clinics, reader)
