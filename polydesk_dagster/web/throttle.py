"""How often a password may be tried, counted in the database, for one account and for one address."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

import sqlalchemy as sa

WINDOW = timedelta(minutes=15)
PER_ACCOUNT = 10
"""Failures of one account within the window, from wherever; since its last success."""
PER_ADDRESS = 50
"""Failures from one address within the window: a whole clinic may sit behind one."""


def attempt(engine: sa.Engine, email: str, address: str, as_of: datetime) -> int | None:
    """Note an attempt and return its number, or None where there were too many.

    It is committed before it is judged: of any number of attempts side by side no more than the limit get through.
    """
    account = hashlib.sha256(email.strip().lower().encode()).digest()
    given = {"account": account, "address": address, "as_of": as_of, "since": as_of - WINDOW}
    with engine.begin() as connection:
        number = connection.scalar(
            sa.text("""INSERT INTO login_attempt (account, address, at) VALUES (:account, :address, :as_of)
                       RETURNING id"""),
            given,
        )
    with engine.begin() as connection:
        of_account, of_address = connection.execute(
            sa.text("""
                SELECT (SELECT count(*) FROM login_attempt
                        WHERE account = :account AND at > :since AND NOT succeeded AND id > coalesce(
                            (SELECT max(id) FROM login_attempt WHERE account = :account AND succeeded), 0)),
                       (SELECT count(*) FROM login_attempt WHERE address = :address AND at > :since AND NOT succeeded)
                """),
            given,
        ).one()
    return None if of_account > PER_ACCOUNT or of_address > PER_ADDRESS else number


def succeeded(connection: sa.Connection, number: int) -> None:
    """The attempt was good: the account's failures before it count no more."""
    connection.execute(sa.text("UPDATE login_attempt SET succeeded = true WHERE id = :id"), {"id": number})
