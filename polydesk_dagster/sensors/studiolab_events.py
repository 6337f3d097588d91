"""Every minute a look at each clinic's studiolab, and one run for all with news."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import dagster as dg

from polydesk_dagster import many, settings
from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import named
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.schedules.standing import why_standing
from polydesk_dagster.sources.events import looking
from polydesk_dagster.sources.events.looking import Seen
from polydesk_dagster.told import teller
from polydesk_dagster.values import Count, Reason

SERVICE = "sync_events"
STEP = "studiolab__events"
Attempts = Mapping[str, tuple[int, int]]
"""By clinic: the newest number that a run was asked for, and how often."""


def request(
    seen: Iterable[Seen], busy: Collection[str], attempts: Attempts
) -> tuple[dg.RunRequest | None, dict[str, tuple[int, int]]]:
    """One run for all clinics with news that no run is still to read, and the attempts to remember.

    A run's key stands for the newest number seen of each and the attempt: the same news again with no run under way
    means that the run before failed or left some, and a key that was used would block this one.
    """
    wanted: dict[str, tuple[int, int]] = {}
    remembered: dict[str, tuple[int, int]] = {}
    for look in seen:
        code = look.clinic.code
        known = attempts.get(code)
        if look.news is None or code in busy:
            remembered |= {} if known is None else {code: known}
            continue
        newest, attempt = known or (-1, 0)
        wanted[code] = remembered[code] = (look.news, attempt + 1 if newest == look.news else 1)
    if not wanted:
        return None, remembered
    config = {"ops": {STEP: {"config": {"clinics": sorted(wanted)}}}}
    return dg.RunRequest(f"{SERVICE}:{many.stamp(wanted)}", config, {"polydesk/service": SERVICE}), remembered


def why_nothing(seen: Sequence[Seen], busy: Collection[str]) -> str:
    """One sentence for a tick without a run: who is unwell by name, the rest by number."""
    t = teller()
    ordinary: Counter[Reason] = Counter()
    unwell = []
    for look in seen:
        if look.news is not None and look.clinic.code in busy:
            ordinary[Reason("already_reading")] += 1
        elif look.why in {looking.NOTHING, looking.NOT_DUE}:
            ordinary[look.why] += 1
        else:
            unwell.append(f"{look.clinic.code}: {t.reason(look.why)}")
    counted = [f"{t.value(Count('clinics', number))}: {t.reason(why)}" for why, number in ordinary.items()]
    return "; ".join([*unwell, *counted]) + "."


def _partitions(
    instance: dg.DagsterInstance, active: set[str]
) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] | None:
    """What makes the clinics that Dagster shows those with a studiolab: its history stays with who goes.

    A clinic with a run under way stays until it has ended: the run could not say what it has made any more.
    """
    shown = set(instance.get_dynamic_partitions("clinic"))
    wanted: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if coming := sorted(active - shown):
        wanted.append(CLINICS.build_add_request(coming))
    if (gone := shown - active) and (idle := sorted(gone - many.under_way(instance))):
        wanted.append(CLINICS.build_delete_request(idle))
    return wanted or None


@dg.sensor(
    name=BY_KEY[SERVICE].sensor,
    job_name=SERVICE,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"{named(BY_KEY[SERVICE])} {teller().text('sensor.studiolab_events')}",
)
def studiolab_events(context: dg.SensorEvaluationContext, polydesk: PolydeskResource) -> dg.SensorResult:
    as_of = polydesk.now()
    with polydesk.looking() as connection:
        known = looking.clinics(connection, as_of)
        standing = why_standing(connection, polydesk.settings(), SERVICE, as_of)
        waiting = paused(connection, SERVICE, as_of)
    partitions = _partitions(context.instance, {clinic.code for clinic in known})
    if standing is not None:
        return dg.SensorResult(skip_reason=standing, dynamic_partitions_requests=partitions)
    if not known:
        reason = teller().text("reason.no_integration")
        return dg.SensorResult(skip_reason=reason, dynamic_partitions_requests=partitions)
    kept = [teller().reason(waiting[clinic.code]) for clinic in known if clinic.code in waiting]
    before = _remembered(context.cursor)
    attempts = before.attempts
    asked = [clinic for clinic in known if clinic.code not in waiting]
    seen = looking.look(asked, as_of, cache(settings.secret), since=before.looked_at, first=before.first)
    if looking.changed(seen):
        with polydesk.engine().begin() as connection:
            looking.remember(connection, seen, as_of)
    busy = set[str]()
    if any(look.news is not None for look in seen):
        with polydesk.looking() as connection:  # whoever is slow in a run keeps none of the others in it
            busy = many.under_way(context.instance, SERVICE, done_with=connection)
    wanted, remembered = request(seen, busy, attempts)
    remembered |= {code: attempts[code] for code in waiting if code in attempts}
    return dg.SensorResult(
        run_requests=None if wanted is None else [wanted],
        skip_reason=None if wanted else " ".join([*([why_nothing(seen, busy)] if seen else []), *kept]),
        cursor=_Remembered(as_of, looking.not_reached(seen, before.first), remembered).written(),
        dynamic_partitions_requests=partitions,
    )


@dataclass(frozen=True)
class _Remembered:
    """What one tick leaves to the next, as Dagster keeps it for a sensor."""

    looked_at: datetime | None
    first: str | None
    """Whom the look did not reach."""
    attempts: Attempts

    def written(self) -> str:
        looked = self.looked_at and self.looked_at.isoformat()
        return json.dumps({"looked_at": looked, "first": self.first, "attempts": self.attempts})


def _remembered(cursor: str | None) -> _Remembered:
    """What the tick before has left; an older program's left the attempts alone."""
    kept = json.loads(cursor or "{}")
    if "looked_at" not in kept:
        kept = {"looked_at": None, "first": None, "attempts": kept}
    looked = kept["looked_at"] and datetime.fromisoformat(kept["looked_at"])
    attempts = {code: (newest, attempt) for code, (newest, attempt) in kept["attempts"].items()}
    return _Remembered(looked, kept["first"], attempts)


SENSORS = (studiolab_events,)
