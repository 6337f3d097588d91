"""The cheap look of each frequent service: is anything due? A tick with nothing due skips, and no run starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

import sqlalchemy as sa

from polydesk_dagster.catalog import HEARTBEAT
from polydesk_dagster.clinic.bookings import sweeping
from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.clinic.messages.due import nothing_due as messages_due
from polydesk_dagster.clinic.messages.kinds import PASSING, PREPARATION, REMINDER
from polydesk_dagster.clinic.statistics import refresh
from polydesk_dagster.resources.knowledge import why_no_indexing
from polydesk_dagster.values import Reason

Due = Callable[[sa.Connection, datetime], Reason | None]
"""Takes a connection and the instant; returns None if something is due, else why nothing is."""

DUE: Mapping[str, Due] = {
    "refresh_statistics": refresh.due,
    "refresh_caches": caches.due,
    "send_reminders": partial(messages_due, [REMINDER.key, *PASSING]),
    "release_expired_holds": sweeping.nothing_expired,
    "delete_unverified_appointments": bookings.nothing_unverified,
    "index_knowledge": why_no_indexing,
    "send_preparation_notices": partial(messages_due, [PREPARATION.key, *PASSING]),
}
"""By service key; a service without an entry always runs."""


def why_not(connection: sa.Connection, service: str, as_of: datetime) -> Reason | None:
    """Why the service need not run now, or None if it should."""
    look = DUE.get(service)
    if look is None:
        return None
    last = connection.scalar(
        sa.text("SELECT max(started_at) FROM service_run WHERE service = :service AND NOT preview"),
        {"service": service},
    )
    if last is None or last <= as_of - HEARTBEAT:
        return None
    return look(connection, as_of)
