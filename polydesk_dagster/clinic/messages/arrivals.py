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
        if not connection.scalar(_UNSETTLED if again else _WAITING):
            return total
    while True:
        with exclusive(engine, "message arrivals") as mine:
            if not mine:
                return total
            while True:
                with engine.begin() as connection:
                    looked_at = receipts.settle(connection, as_of, again=again)
                    looked_at += total.add(replies.settle(connection, as_of))
                if not looked_at:
                    break
        with engine.connect() as connection:
            if not waiting(connection):
                return total
