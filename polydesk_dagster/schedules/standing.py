"""Whether a service may start by itself now: what its schedule and its sensors ask before they look."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.runtime.state.activity import activity, starts_live
from polydesk_dagster.runtime.state.model import Mode
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import teller
from polydesk_dagster.told.state import stands_still


def why_standing(connection: sa.Connection, settings: Settings, service: str, as_of: datetime) -> str | None:
    """Why the service starts nothing at ``as_of`` whatever is due, whether or not Dagster's own switch is on; None if
    it may. A restored database that is noticed here is written down."""
    if BY_KEY[service].reaches_out:
        held = restored.noticed_restore(connection, settings.home, as_of)
        connection.commit()
        if held is not None:
            return teller().reason(held)
    said = activity(connection, service, as_of, live=starts_live(settings))
    return None if said.mode in {Mode.ON, Mode.ON_DEMAND} else stands_still(teller(), service, said)
