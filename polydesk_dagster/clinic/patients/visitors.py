"""Who books online, as a patient of ours: found where there is no doubt, else added.

Nothing of a patient whom we know is changed. Somebody who is merely alike (another spelling, a variant of the code) is
added as another, for the desk to see: booking cannot wait for a verdict, and two are never made one by guessing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.patients.cleaning import e164
from polydesk_dagster.clinic.patients.fiscal_codes import examine
from polydesk_dagster.clinic.patients.identity import CERTAIN


@dataclass(frozen=True, slots=True)
class Visitor:
    """What somebody who books says of herself."""

    last_name: str
    first_name: str
    birth_date: date
    fiscal_code: str | None = None
    email: str | None = None
    phone: str | None = None


def wrong(visitor: Visitor, as_of: datetime) -> str | None:
    """What of it cannot be: ``birth_date`` or ``fiscal_code``; None if it can."""
    if not date(1900, 1, 2) <= visitor.birth_date <= as_of.date():
        return "birth_date"
    if visitor.fiscal_code is not None and _code(visitor) is None:
        return "fiscal_code"
    return None


def _code(visitor: Visitor) -> tuple[str, str] | None:
    """Kind and canonical form of the code, if it can be hers."""
    assert visitor.fiscal_code is not None
    try:
        kind, canonical, reason = examine(
            visitor.fiscal_code,
            last_name=visitor.last_name,
            first_name=visitor.first_name,
            sex=None,
            birth_date=visitor.birth_date.isoformat(),
            birth_place=None,
        )
    except ValueError:
        return None
    return None if reason else (kind, canonical)


# Somebody who books twice at once is added once.
_IN_TURN = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('visitor' || :code, 0))")

_KNOWN = sa.text(f"""
    SELECT min(p.id) FROM patient p
    CROSS JOIN (SELECT CAST(:fiscal_code AS text) AS fiscal_code, CAST(:birth_date AS date) AS birth_date,
                       CAST(:last_name AS text) AS last_name, CAST(:first_name AS text) AS first_name) s
    WHERE p.fiscal_code_canonical = :canonical AND {CERTAIN.format(p="p", s="s")}""")

_ADD = sa.text("""
    INSERT INTO patient (fiscal_code, fiscal_code_canonical, fiscal_code_kind, last_name, first_name, birth_date, email,
                         mobile, created_at, updated_at)
    VALUES (:fiscal_code, :canonical, :kind, :last_name, :first_name, :birth_date, :email, :phone, :as_of, :as_of)
    RETURNING id""")


@dataclass(frozen=True, slots=True)
class Known:
    """A patient, and whether she was added just now."""

    id: int
    added: bool


_WITHDRAW = sa.text("""
    DELETE FROM patient p WHERE p.id = :id
    AND NOT EXISTS (SELECT FROM appointment a WHERE a.patient_id = p.id)
    AND NOT EXISTS (SELECT FROM payment_case k WHERE k.patient_id = p.id)""")


def settle(connection: sa.Connection, known: Known) -> None:
    """At the end of what she was named for: whoever was added and then came to nothing is nobody's patient."""
    if known.added:
        connection.execute(_WITHDRAW, {"id": known.id})


def found_or_added(connection: sa.Connection, visitor: Visitor, as_of: datetime) -> Known:
    """Who it is. One without a fiscal code is always another: a name and a date are no proof.

    ``visitor`` must be one in which nothing is :func:`wrong`.
    """
    code = visitor.fiscal_code.upper().replace(" ", "") if visitor.fiscal_code else None
    kind, canonical = (_code(visitor) if code else None) or (None, None)
    given = {
        "fiscal_code": code,
        "canonical": canonical,
        "kind": kind,
        "last_name": visitor.last_name,
        "first_name": visitor.first_name,
        "birth_date": visitor.birth_date,
        "email": visitor.email,
        "phone": e164(visitor.phone) if visitor.phone else None,
        "as_of": as_of,
    }
    if canonical is not None:
        connection.execute(_IN_TURN, {"code": canonical})
        known = connection.scalar(_KNOWN, given)
        if known is not None:
            return Known(int(known), added=False)
    return Known(int(connection.execute(_ADD, given).scalar_one()), added=True)
