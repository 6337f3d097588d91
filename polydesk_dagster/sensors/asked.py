"""What events ask for: one run of each service for all clinics that wait for it, until their lists were really read.

No ``from __future__ import annotations``: Dagster reads the annotations.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg

from polydesk_dagster import many
from polydesk_dagster.catalog import BY_KEY, SERVICES
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.schedules.standing import why_standing
from polydesk_dagster.sources.events import asked
from polydesk_dagster.sources.events.asked import Question, Reading
from polydesk_dagster.sources.events.effects import IMPORT_PATIENTS, PREVIEW_PRICES
from polydesk_dagster.told import teller
from polydesk_dagster.values import Count, ServiceKey

AGAIN = (timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1), timedelta(hours=6))
"""How long after a clinic was asked for the first time it is asked for again, the second, and so on; after what does
not pass by itself, and in the end, only as often as the last of them."""


@dataclass(frozen=True)
class Attempt:
    """When a run was last asked for a clinic, and how many have been since it was last answered."""

    number: int
    at: datetime

    def is_over(self, now: datetime, hopeless: bool) -> bool:
        """Whether the next may come; a clock that was set back makes nobody wait for the time that it had."""
        pause = AGAIN[-1] if hopeless else AGAIN[min(self.number, len(AGAIN)) - 1]
        return not self.at <= now < self.at + pause


Attempts = Mapping[str, Attempt]


def due(questions: Iterable[Question], attempts: Attempts, now: datetime) -> set[str]:
    """The clinics for which a run may be asked for, of those with these ``questions``."""
    asking: dict[str, bool] = {}
    for question in questions:
        asking[question.clinic] = asking.get(question.clinic, False) or question.hopeless
    return {
        clinic
        for clinic, hopeless in asking.items()
        if (last := attempts.get(clinic)) is None or last.is_over(now, hopeless)
    }


def key(service: str, questions: Iterable[Question], attempts: Attempts) -> str:
    """Of runs for these ``questions``: the newest of each clinic and its attempt, for one that failed blocks its own
    key, and a tick that was cut short must come to the same."""
    wanted = {each.clinic: (each.id, attempts[each.clinic].number) for each in sorted(questions, key=lambda q: q.id)}
    return f"asked:{service}:{many.stamp(wanted)}"


def readings(service: str) -> list[Reading]:
    """How what is asked of ``service`` may be read: by itself, or by any other that reads the same lists."""
    return [
        Reading(each.key, each.only_looks, len(each.lists))
        for each in SERVICES
        if each.per_clinic and each.lists >= BY_KEY[service].lists
    ]


def _remembered(cursor: str | None) -> dict[str, Attempt]:
    kept = json.loads(cursor or "{}")
    return {clinic: Attempt(number, datetime.fromisoformat(at)) for clinic, (number, at) in kept.items()}


def _written(attempts: Attempts) -> str:
    return json.dumps({clinic: (each.number, each.at.isoformat()) for clinic, each in attempts.items()})


def _why_nothing(questions: Collection[Question], kept: Mapping[str, str]) -> str:
    """Why none of these ``questions`` leads to a run now; ``kept`` says it of the clinics that are paused."""
    if not questions:
        return teller().text("reason.nobody_asks")
    clinics = {question.clinic for question in questions}
    said = [kept[clinic] for clinic in sorted(clinics & kept.keys())]
    if others := len(clinics - kept.keys()):
        said.append(teller().text("reason.asked_waits", clinics=Count("clinics", others)))
    return " ".join(said)


def _sensor(service: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"asked_{service}",
        job_name=service,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=teller().text("sensor.asked_for", service=ServiceKey(service)),
    )
    def sensor(context: dg.SensorEvaluationContext, polydesk: PolydeskResource) -> dg.SensorResult | dg.SkipReason:
        now = polydesk.now()
        with polydesk.looking() as connection:
            if (standing := why_standing(connection, polydesk.settings(), service, now)) is not None:
                return dg.SkipReason(standing)
            unanswered = asked.unanswered(connection, service, readings(service))
            kept = {clinic: teller().reason(why) for clinic, why in paused(connection, service, now).items()}
        answered = [question for question in unanswered if question.answered]
        open_ = [question for question in unanswered if not question.answered]
        asking = {question.clinic for question in open_}
        attempts = _remembered(context.cursor)
        for clinic in {question.clinic for question in answered} | (attempts.keys() - asking):
            attempts.pop(clinic, None)
        waiting = [question for question in open_ if question.active]
        clinics = due((each for each in waiting if each.clinic not in kept), attempts, now)
        if clinics:
            clinics -= many.under_way(context.instance, service)
        wanted = [question for question in waiting if question.clinic in clinics]
        attempts |= {
            clinic: Attempt(attempts[clinic].number + 1 if clinic in attempts else 1, now) for clinic in clinics
        }
        if answered or wanted:
            with polydesk.engine().begin() as connection:
                asked.answer(connection, [question.id for question in answered], now)
                asked.take(connection, [question.id for question in wanted], now)
        runs = many.requests(context.instance, BY_KEY[service], clinics, key(service, wanted, attempts))
        return dg.SensorResult(
            run_requests=list(runs) if clinics else None,
            skip_reason=None if clinics else _why_nothing(waiting, kept),
            cursor=_written(attempts),
        )

    return sensor


SENSORS = tuple(_sensor(service) for service in (IMPORT_PATIENTS, PREVIEW_PRICES))
