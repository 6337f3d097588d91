"""The services that write to patients: plan what is due, send it, and say what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import arrivals, calls, due, health, hours, judging, planning, receipts, volume
from polydesk_dagster.clinic.messages.dispatch import dispatch
from polydesk_dagster.clinic.messages.facts import facts
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import Ready, Withheld
from polydesk_dagster.clinic.messages.kinds import ANSWERING, CHANNELS, PASSING, REMINDER, TO_CALL, Channel
from polydesk_dagster.clinic.messages.links import NOWHERE, Reach
from polydesk_dagster.clinic.messages.pace import Limits, Tally
from polydesk_dagster.clinic.messages.planning import Planned
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.clinic.messages.receipts import Receipts
from polydesk_dagster.clinic.messages.reporting import Came, reason_of, report_of
from polydesk_dagster.clinic.messages.writing import Job, Writer
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, done
from polydesk_dagster.values import Money, Term, Value

Progress = Callable[[int, int, str], None]


def _silent(_done: int, _total: int, _what: str) -> None:
    pass


def send(
    engine: sa.Engine,
    as_of: datetime,
    kind: str,
    providers: Mapping[Channel, Provider],
    *,
    clinic: str | None = None,
    preview: bool = False,
    reach: Reach = NOWHERE,
    progress: Progress = _silent,
) -> Report:
    """Plan and send the reminders or the preparation notices, and whatever other parts have put in the ledger.

    ``reach``: how who is
    written to reaches back.
    """
    if not preview:
        arrivals.settle(engine, as_of, again=True)
    with engine.connect() as connection:
        clinics = hours.load(connection, as_of, clinic)
        if not clinics:
            return unknown_clinic(clinic)
        planned = planning.plan(connection, kind, as_of, clinics)
        more = planning.nudge(connection, as_of, clinics) + planning.confirm(connection, as_of, clinics)
        planned = replace(planned, messages=planned.messages + more, appointments=planned.appointments + more)
        if preview:
            report = _preview(connection, as_of, kind, clinics, planned, reach)
            connection.rollback()
            return report
        connection.commit()
    arrived: Receipts | None = None
    if kind == REMINDER.key:
        arrived = receipts.collect(engine, as_of, providers.get("sms"), clinics)
    with engine.connect() as connection:
        kinds = [kind, *PASSING]
        idle = not planned.messages and due.nothing_to_send(connection, kinds, as_of, clinics)
        held = None if idle else volume.hold(connection, kind, as_of)
        limits = None if idle else Limits.load(connection)
        connection.commit()
    if held is not None:
        return held
    tally = Tally()
    if limits is not None:
        tally = dispatch(
            engine,
            as_of,
            providers=providers,
            clinics=clinics,
            kinds=kinds,
            limits=limits,
            reach=reach,
            progress=progress,
        )
    with engine.begin() as connection:
        calls.refresh(connection, kind, as_of)
        open_calls = calls.waiting(connection, kind, [clinic.clinic_id for clinic in clinics])
        doubts = health.doubts(connection, [clinic.clinic_id for clinic in clinics])
        if arrived is not None:
            arrived.at_fault = receipts.at_fault(connection, as_of)
    return report_of(Came(planned, tally, arrived, open_calls, doubts, limits))


def answer(
    engine: sa.Engine, as_of: datetime, providers: Mapping[Channel, Provider], *, reach: Reach = NOWHERE
) -> Tally:
    """Send at once what somebody waits for who has just answered a text; everything else waits for its service."""
    with engine.connect() as connection:
        clinics, limits = hours.load(connection, as_of), Limits.load(connection)
    return dispatch(
        engine,
        as_of,
        providers=providers,
        clinics=clinics,
        kinds=ANSWERING,
        limits=limits,
        reach=reach,
    )


def unknown_clinic(clinic: str | None) -> Report:
    if clinic is None:
        return Report(Outcome.NOTHING_TO_DO, reasons=(Reason("message_no_clinics"),))
    return Report.refused("message_unknown_clinic", {"code": clinic}, clinic)


def _preview(
    connection: sa.Connection, as_of: datetime, kind: str, clinics: Sequence[Hours], planned: Planned, reach: Reach
) -> Report:
    """What a run would do now, worked out inside a transaction that is rolled back."""
    by_clinic = {clinic.clinic_id: clinic for clinic in clinics}
    ids = connection.scalars(
        sa.text("""SELECT id FROM message WHERE state IN ('planned', 'retry') AND kind = :kind
                     AND clinic_id = ANY (:clinics) AND send_after <= :as_of ORDER BY id"""),
        {"kind": kind, "clinics": list(by_clinic), "as_of": as_of},
    ).all()
    would: Counter[tuple[str, str]] = Counter()
    why: Counter[tuple[str, str]] = Counter(planned.withheld)
    limits = Limits.load(connection)
    writer, pieces = Writer.of(connection, by_clinic, limits.most_segments, reach), 0
    for first in range(0, len(ids), 1000):
        for message in facts(connection, ids[first : first + 1000], as_of):
            known = (by_clinic[message.clinic_id], as_of, frozenset(CHANNELS))
            verdict = judging.judge(message, *known)
            job: Job | Withheld | judging.Wait
            if isinstance(verdict, Ready):
                job = writer.write(message, verdict, judging.by_mail(message, verdict, *known))
            else:
                job = verdict
            if isinstance(job, Withheld):
                why[message.clinic, job.why] += 1
            elif isinstance(job, Job):
                would[message.clinic, job.channel] += 1
                pieces += job.claim.segments or 0
    aside = sum(count for (_, reason), count in why.items() if reason in TO_CALL[kind])
    counts = Counts(created=would.total(), skipped=why.total())
    rows = tuple((clinic, Term("channel", channel), count) for (clinic, channel), count in sorted(would.items()))
    figures: dict[str, Value] = {
        "messages_would_go": would.total(),
        "messages_would_not": why.total(),
        "messages_segments": pieces,
    }
    if limits.segment_cost is not None:
        figures["messages_cost"] = Money(pieces * limits.segment_cost)
    return Report(
        done(counts, set_aside=aside),
        counts,
        tuple(reason_of(code, clinic, count) for (clinic, code), count in sorted(why.items())),
        figures,
        (Table("messages_would_go", ("clinic", "message_channel", "messages_would_go"), rows, len(rows)),)
        if rows
        else (),
        preview=True,
    )
