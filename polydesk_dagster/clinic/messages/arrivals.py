"""What the gateway told by itself, from being put by to being done: by whoever comes first, one at a time."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import receipts, replies
from polydesk_dagster.clinic.messages.replies import Settled
from polydesk_dagster.database.locks import exclusive

_WAITING = sa.text("""
    SELECT EXISTS (SELECT FROM message_receipt WHERE settled_at IS NULL AND tried_at IS NULL)
        OR EXISTS (SELECT FROM message_reply WHERE settled_at IS NULL)""")


_UNSETTLED = sa.text("""
    SELECT EXISTS (SELECT FROM message_receipt WHERE settled_at IS NULL)
        OR EXISTS (SELECT FROM message_reply WHERE settled_at IS NULL)""")


_ALL_BELOW = 500
"""Fewer than so many were all that there was."""


def waiting(connection: sa.Connection) -> bool:
    """Whether something is put by that nobody has looked at."""
    return bool(connection.scalar(_WAITING))


def settle(engine: sa.Engine, as_of: datetime, *, again: bool = False) -> Settled:
    """Do all that is put by; with ``again`` also look once more for the texts of receipts that came before them.

    Commits in steps; may be killed at any instant and called again. Who comes while another is at it leaves it to him:
    he looks once more when he is done.
    """
    total = Settled()
    with engine.connect() as connection:
        more = connection.scalar(_UNSETTLED if again else _WAITING)
    while more:
        done, more = settle_some(engine, as_of, again=again)
        total.add(done)
    return total


def settle_some(engine: sa.Engine, as_of: datetime, *, again: bool = False) -> tuple[Settled, bool]:
    """Do what is put by at this moment, and leave to the caller when to look again: in a burst each look finds a few.
    Returns what it came to, and whether more has come meanwhile."""
    done = Settled()
    with exclusive(engine, "message arrivals") as mine:
        if not mine:
            return done, False
        looked_at = _ALL_BELOW
        while looked_at >= _ALL_BELOW:
            with engine.begin() as connection:
                looked_at = receipts.settle(connection, as_of, again=again)
                looked_at += done.add(replies.settle(connection, as_of, limit=_ALL_BELOW))
    with engine.connect() as connection:
        return done, waiting(connection)
