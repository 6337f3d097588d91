"""Tells the owner by e-mail of runs that failed. No ``from __future__ import annotations``: Dagster reads them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import codes
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime import alerts
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason

_TICK_SECONDS = 60
_MOST_RUNS = 500
_SENT = {Fate.ACCEPTED, Fate.DOUBTFUL}
_PATIENCE_SECONDS = 20.0


@dg.sensor(
    name="tell_operator",
    minimum_interval_seconds=_TICK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=teller().text("sensor.tell_operator"),
)
def tell_operator(context: dg.SensorEvaluationContext, polydesk: PolydeskResource) -> dg.SkipReason:
    settings = polydesk.settings()
    now = datetime.now(UTC)
    state = alerts.State.load(context.cursor, now)
    if context.cursor is None:
        context.update_cursor(state.dump())
    if settings.operator_mail is None or settings.smtp_url is None or settings.mail_from is None:
        return dg.SkipReason(teller().text("sensor.tell_operator.nobody"))
    failures = alerts.in_turn(_failures(context.instance, polydesk, state), _stopped(polydesk, state), _MOST_RUNS)
    if not failures:
        return dg.SkipReason(teller().text("sensor.tell_operator.nothing"))
    quiet_until = state.quiet_until()
    if quiet_until is not None and now < quiet_until:
        return dg.SkipReason(teller().text("sensor.tell_operator.later", count=len(failures)))
    mail = alerts.compose(failures, settings.address)
    answer = asyncio.run(_send(settings, mail))
    if answer.fate not in _SENT:
        said = codes.answered("email", answer.fate, answer.code)
        raise dg.Failure(teller().text("sensor.tell_operator.not_sent", count=len(failures), answer=said))
    context.update_cursor(state.after_mail(failures, now).dump())
    return dg.SkipReason(teller().text("sensor.tell_operator.told", count=len(failures)))


def _failures(
    instance: dg.DagsterInstance, polydesk: PolydeskResource, state: alerts.State
) -> Sequence[alerts.Failure]:
    """The oldest that have not been told, as many as one message takes at least where there are more; of a moment at
    which many failed, all. Runs that are tried again are read over, however many stand between."""
    found: list[alerts.Failure] = []
    since, most = state.since(), _MOST_RUNS + 1
    while True:
        records = instance.get_run_records(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since),
            limit=most,
            order_by="update_timestamp",
            ascending=True,
        )
        more = len(records) == most
        whole = [each for each in records if not more or each.update_timestamp < records[-1].update_timestamp]
        if more and not whole:
            most *= 2
            continue
        reasons = _reasons(polydesk, [record.dagster_run.run_id for record in whole]) if whole else {}
        told = (
            alerts.failure(
                record.dagster_run.run_id,
                record.dagster_run.job_name,
                record.dagster_run.tags,
                record.update_timestamp,
                reason,
            )
            for record in whole
            for reason in reasons.get(record.dagster_run.run_id, {None: None}).values()
        )
        found += [failure for failure in told if failure is not None]
        if not more or len(found) >= _MOST_RUNS:
            return found
        since = whole[-1].update_timestamp


def _stopped(polydesk: PolydeskResource, state: alerts.State) -> Sequence[alerts.Failure]:
    """Runs that a guard stopped in part, which Dagster counts as successes; none where the clinics' database cannot
    say."""
    try:
        with polydesk.engine().connect() as connection:
            rows = connection.execute(
                sa.text("""
                    SELECT r.service, r.dagster_run, r.ended, g.reason
                    FROM (SELECT *, started_at + seconds * interval '1 second' AS ended FROM service_run) r
                    CROSS JOIN LATERAL (SELECT reason FROM jsonb_array_elements(r.reasons) reason
                                        WHERE reason ->> 'code' = 'guard' LIMIT 1) g
                    WHERE r.outcome = 'partial' AND NOT r.preview AND r.reasons @> '[{"code": "guard"}]'
                      AND r.started_at > :since - interval '1 day' AND r.ended > :since
                    ORDER BY r.ended FETCH FIRST :most ROWS WITH TIES"""),
                {"since": state.since(), "most": _MOST_RUNS},
            ).all()
    except (sa.exc.SQLAlchemyError, PolydeskError):
        return []
    reasons = [Reason.from_dict(row.reason) for row in rows]
    return [
        alerts.Failure(row.dagster_run, row.service, reason.clinic, row.ended, reason)
        for row, reason in zip(rows, reasons, strict=True)
    ]


def _reasons(polydesk: PolydeskResource, run_ids: Sequence[str]) -> dict[str, dict[str | None, Reason | None]]:
    """What each run's service said last of each clinic (a code; None for the chain) that it failed for; empty where the
    clinics' database cannot say, for the mail must go all the same."""
    found: dict[str, dict[str | None, Reason | None]] = {}
    try:
        with polydesk.engine().connect() as connection:
            rows = connection.execute(
                sa.text("""
                    SELECT r.dagster_run, c.code, r.reasons -> 0
                    FROM service_run r LEFT JOIN clinic c ON c.id = r.clinic_id
                    WHERE dagster_run = ANY(:runs) AND outcome IN ('failed', 'refused') AND reasons <> '[]'
                    ORDER BY r.id"""),
                {"runs": list(run_ids)},
            )
            for run, clinic, reason in rows:
                found.setdefault(run, {})[clinic] = replace(Reason.from_dict(reason), clinic=clinic)
    except (sa.exc.SQLAlchemyError, PolydeskError):
        return {}
    return found


async def _send(settings: Settings, mail: alerts.Mail) -> Answer:
    from polydesk_dagster.providers.smtp import MailRelay

    assert settings.smtp_url is not None
    assert settings.mail_from is not None
    assert settings.operator_mail is not None
    url = settings.smtp_url.get_secret_value()
    async with MailRelay(url, settings.mail_from, patience=_PATIENCE_SECONDS) as relay:
        return await relay.send(Outgoing(mail.key, settings.operator_mail, mail.subject, mail.body))


SENSORS = (tell_operator,)
