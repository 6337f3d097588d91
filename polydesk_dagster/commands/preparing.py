"""What ``polydesk up`` does once before its processes start: schema, demo, simulators, Dagster's instance."""

from __future__ import annotations

from polydesk_dagster.commands import demo, simulators
from polydesk_dagster.commands.installation import Installation, is_demo, migrated
from polydesk_dagster.commands.prepared import Playing, Prepared
from polydesk_dagster.commands.show import say
from polydesk_dagster.database.engine import business_url
from polydesk_dagster.database.migrate import serving
from polydesk_dagster.runtime import instance
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Term


def prepared(settings: Settings, size: str, *, empty: bool) -> Prepared:
    """Leaves an installation whose processes may be started; the database must be up."""
    migrated(settings)
    engine = serving(business_url(settings))
    fresh = settings.embedded and not empty and demo.load_if_empty(Installation(settings, engine), size, quiet=False)
    # Nobody's real patients are ever served by a simulator: it plays only beside the embedded database.
    played, environment = simulators.unconfigured(settings) if settings.embedded else ([], {})
    if is_demo(engine):
        simulators.point_studiolab(engine, played)
    engine.dispose()
    instance.prepare(settings)
    return Prepared(
        instance.environment(settings, environment),
        [Playing(each.name, each.command, each.port) for each in played],
        [say("command.up.simulated", what=Term("played", each.name), where=each.where) for each in played],
        fresh=fresh,
    )
