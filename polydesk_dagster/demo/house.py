"""Who works in the demonstration chain: one person of each role, so that each can be tried at the door.

Nobody has a password that is written anywhere: each start draws one and shows it once.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.web import users
from polydesk_dagster.web.roles import Role

OWNER = "sistemi@example.org"
LINK_LIFE = timedelta(hours=1)
_MADE = (
    ("medico@example.org", "Dott.ssa Medico di prova", Role.SPECIALIST, True),
    ("direzione@example.org", "Direzione della catena", Role.MANAGER, False),
)


def welcome(connection: sa.Connection, as_of: datetime) -> str:
    """Make a link that lets the demo's owner in, once; returns its token. The caller commits.

    Raises:
        sqlalchemy.exc.NoResultFound: if these are not the demo's records.
    """
    owner = connection.scalars(sa.text("SELECT id FROM app_user WHERE email = :email"), {"email": OWNER}).one()
    return users.link(connection, owner, "enter", as_of, LINK_LIFE)


def others(connection: sa.Connection, as_of: datetime) -> tuple[list[tuple[Role, str]], str]:
    """Give one person of each role but the owner's a new password; returns their roles and addresses, and it."""
    first = connection.scalars(sa.text("SELECT code FROM clinic ORDER BY id LIMIT 1")).one()
    domain = f"{first.lower()}@example.org"
    for email, name, role, in_clinic in _MADE:
        if connection.scalar(sa.text("SELECT 1 FROM app_user WHERE email = :email"), {"email": email}) is None:
            users.add(connection, email, name, role, [first] if in_clinic else [], as_of)
    people = [
        (Role.DESK, f"accettazione1.{domain}"),
        (Role.SPECIALIST, "medico@example.org"),
        (Role.MANAGER, f"direzione.{domain}"),
        (Role.MANAGER, "direzione@example.org"),
    ]
    password = secrets.token_urlsafe(12)
    for _, email in people:
        user = connection.scalars(
            sa.text("""UPDATE app_user SET state = 'active', activated_at = coalesce(activated_at, :as_of)
                       WHERE email = :email RETURNING id"""),
            {"email": email, "as_of": as_of},
        ).one()
        users.set_password(connection, user, password, as_of)
    return people, password
