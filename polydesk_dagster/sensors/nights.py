"""After a night's runs for many clinics: who was left out of them, and whose list failed for a reason that passes, is
asked for again."""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster import many
from polydesk_dagster.catalog import ROME, SERVICES, Daily, Service
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.errors import PASSING
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.schedules.standing import why_standing
from polydesk_dagster.told import teller
from polydesk_dagster.values import ServiceKey

LOOK_SECONDS = 600
AFTER = timedelta(minutes=15)
"""How long a night has had its own run before anybody is missed."""
AGAIN = (timedelta(minutes=15), timedelta(minutes=45))
"""How long after the first failure a clinic is tried again, and after the second."""
UNTIL = timedelta(hours=6)
"""How long after its tick a night is looked after; then the next one comes."""
_GOOD = frozenset({Outcome.OK, Outcome.NOTHING_TO_DO, Outcome.PARTIAL})

# What each clinic came to since the night's tick: its last word, and how often it failed.
_CAME_TO = """
    SELECT DISTINCT ON (r.clinic_id) c.code, r.outcome, r.reasons->0->>'code' AS why,
           r.started_at + r.seconds * interval '1 second' AS ended,
           count(*) FILTER (WHERE r.outcome = 'failed') OVER (PARTITION BY r.clinic_id) AS failures
    FROM service_run r JOIN clinic c ON c.id = r.clinic_id
    WHERE r.service = :service AND NOT r.preview AND r.started_at >= :since
    ORDER BY r.clinic_id, r.id DESC
"""


def left_behind(
    connection: sa.Connection, service: str, since: datetime, as_of: datetime
) -> tuple[set[str], set[str], dict[str, int]]:
    """Of the clinics with a studiolab those that have come to nothing since the night's tick ``since``, those that have
    come to something good, and those that may be tried again by ``as_of``, each with how often they have failed."""
    came_to = {
        row.code: row
        for row in connection.execute(sa.text(_CAME_TO), {"service": service, "since": since})
    }  # fmt: skip
    again = {
        code: int(row.failures)
        for code, row in came_to.items()
        if row.outcome == Outcome.FAILED
        and row.why in PASSING
        and row.failures <= len(AGAIN)
        and row.ended + AGAIN[row.failures - 1] <= as_of
    }
    active = set(connection.scalars(ACTIVE_CLINICS))
    well = {code for code, row in came_to.items() if row.outcome in _GOOD}
    again = {code: failures for code, failures in again.items() if code in active}
    return active - came_to.keys(), active & well, again


def cut_off(instance: dg.DagsterInstance, service: Service, well: set[str], since: datetime) -> set[str]:
    """Of the clinics that have come to something good those whose last list was not made since: a run that was ended
    had done only those before it. Nobody is whose ``service`` is of one list."""
    last = dg.AssetKey(service.assets[-1].split("/"))
    return well - {clinic for clinic, _ in many.made(instance, last, sorted(well), since)}


def _sensor(service: Service, cadence: Daily) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"again_{service.key}",
        job_name=service.key,
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=teller().text("sensor.again", service=ServiceKey(service.key)),
    )
    def sensor(
        context: dg.SensorEvaluationContext, polydesk: PolydeskResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        as_of = polydesk.now()
        since = cadence.next_after(as_of - UNTIL)
        if as_of < since + AFTER:
            yield dg.SkipReason(teller().text("reason.night_over"))
            return
        with polydesk.looking() as connection:
            standing = why_standing(connection, polydesk.settings(), service.key, as_of)
            missed, well, again = left_behind(connection, service.key, since, as_of)
            kept = set(paused(connection, service.key, as_of))
        if standing is None and len(service.lists) > 1:
            missed |= cut_off(context.instance, service, well, since)
        if standing is None and (missed or again):
            kept |= many.under_way(context.instance, service.key)
        missed -= kept
        again = {clinic: failures for clinic, failures in again.items() if clinic not in kept}
        if standing is not None or not (missed or again):
            yield dg.SkipReason(standing or teller().text("reason.nobody_behind"))
            return
        night = f"{service.key}:{since.astimezone(ROME).date().isoformat()}"
        who = hashlib.sha256("\n".join(sorted(missed)).encode()).hexdigest()[:16]
        yield from many.requests(context.instance, service, missed, f"{night}:missed:{who}")
        for clinic, failures in again.items():
            yield from many.requests(context.instance, service, {clinic}, f"{night}:again:{failures}")

    return sensor


SENSORS = tuple(
    _sensor(service, service.cadence)
    for service in SERVICES
    if service.per_clinic and service.sensor is None and isinstance(service.cadence, Daily)
)
