"""What each role may do on Dagster's own page.

A permission of Dagster's holds for a whole code location, so it cannot tell clinics apart: whoever acts for some
clinics only looks at Dagster's page, and acts on ours. History and cursors are changed there by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import HTTPConnection

from polydesk_dagster.catalog import Place
from polydesk_dagster.runtime.dagster_inside.web import Permission, Presser
from polydesk_dagster.web.door import person_of
from polydesk_dagster.web.roles import May

RUNS = frozenset(
    {
        Permission.LAUNCH_PIPELINE_EXECUTION,
        Permission.LAUNCH_PIPELINE_REEXECUTION,
        Permission.TERMINATE_PIPELINE_EXECUTION,
        Permission.LAUNCH_PARTITION_BACKFILL,
        Permission.CANCEL_PARTITION_BACKFILL,
    }
)
TIMES = frozenset(
    {
        Permission.START_SCHEDULE,
        Permission.STOP_RUNNING_SCHEDULE,
        Permission.SCHEDULE_DRY_RUN,
        Permission.EDIT_SENSOR,
        Permission.SENSOR_DRY_RUN,
        Permission.RELOAD_REPOSITORY_LOCATION,
    }
)
SYSTEM = frozenset({Permission.RELOAD_WORKSPACE, Permission.EDIT_CONCURRENCY_LIMIT})

_LOCATIONS: Mapping[May, Mapping[str, frozenset[Permission]]] = {
    May.RUN: {Place.ORDINARY.value: RUNS},
    May.EMERGENCY: {Place.ORDINARY.value: RUNS | TIMES, Place.EMERGENCY.value: RUNS | TIMES},
}


def presser_of(connection: HTTPConnection) -> Presser | None:
    """Who asks Dagster's page, with what her role grants there; None: nobody known."""
    person = person_of(connection)
    if person is None:
        return None
    granted: dict[str, frozenset[Permission]] = {}
    for permission, locations in _LOCATIONS.items():
        if person.may(permission) and person.clinics is None:
            granted |= locations
    return Presser(person.signature, granted, SYSTEM if person.may(May.EMERGENCY) else frozenset())
