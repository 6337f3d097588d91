"""The services that write to patients: plan what is due, send it, and say what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours, judging, planning, receipts
from polydesk_dagster.clinic.messages.dispatch import Limits, Tally, dispatch
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import Ready, Withheld, judge
from polydesk_dagster.clinic.messages.kinds import (
    CHANNELS,
    KINDS,
    PASSING,
    PREPARATION,
    REMINDER,
    WHY_WORDS,
    Channel,
    Why,
)
from polydesk_dagster.clinic.messages.planning import Planned
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.clinic.messages.receipts import Receipts
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, done

VOLUME_GUARD = "unusual_volume"
UNUSUAL = 3
"""Times the usual volume of a day above which a person has to allow it."""
_USUAL_DAYS = 28
_FEWEST_DAYS = 5
_SMALL = 200
"""Messages a day that are never too many."""

Progress = Callable[[int, int, str], None]
CARRIERS: Mapping[str, str] = {
    "sms": "il gateway SMS: imposta POLYDESK_SMS_URL, POLYDESK_SMS_TOKEN e POLYDESK_SMS_SENDER",
    "email": "il server di posta: imposta POLYDESK_SMTP_URL e POLYDESK_MAIL_FROM",
}

_LOST = "il gestore non è riuscito a consegnarli: numero da correggere in anagrafica"


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
    past_guard: str | None = None,
    progress: Progress = _silent,
) -> Report:
    """Plan and send the reminders or the preparation notices, and whatever other parts have put in the ledger.

    ``past_guard``: ``unusual_volume`` says that a person has allowed today's volume.
    """
    with engine.connect() as connection:
        clinics = hours.load(connection, as_of, clinic)
        if not clinics:
            return unknown_clinic(clinic)
        planned = planning.plan(connection, kind, as_of, clinics)
        nudges = planning.nudge(connection, as_of, clinics)
        planned = replace(planned, messages=planned.messages + nudges, appointments=planned.appointments + nudges)
        if preview:
            report = _preview(connection, as_of, kind, clinics, planned)
            connection.rollback()
            return report
        connection.commit()
    arrived = Receipts()
    if kind == REMINDER.key:
        arrived = receipts.collect(engine, as_of, providers.get("sms"), clinics)
    with engine.connect() as connection:
        kinds = [kind, *PASSING]
        idle = not planned.messages and planning.nothing_to_send(connection, kinds, as_of, clinics)
        held = None if idle else hold_unusual(connection, kind, as_of, allowed=past_guard == VOLUME_GUARD)
        limits = None if idle else Limits.load(connection)
        connection.commit()
    if held is not None:
        return held
    tally = Tally()
    if limits is not None:
        tally = dispatch(
            engine, as_of, providers=providers, clinics=clinics, kinds=kinds, limits=limits, progress=progress
        )
    if kind == PREPARATION.key and (limits is not None or planned.withheld):
        with engine.begin() as connection:
            list_calls(connection, as_of)
    return report_of(planned, tally, arrived)


def unknown_clinic(clinic: str | None) -> Report:
    if clinic is None:
        return Report(Outcome.NOTHING_TO_DO, reasons=(Reason("no_clinics", "Non c'è ancora nessuna clinica attiva."),))
    return Report.refused("unknown_clinic", f"Non esiste una clinica attiva con il codice «{clinic}».", clinic)


def hold_unusual(connection: sa.Connection, kind: str, as_of: datetime, *, allowed: bool) -> Report | None:
    """Stop a day that wants more than three times the usual messages of ``kind``, until a person allows it."""
    since = as_of - timedelta(hours=as_of.hour, minutes=as_of.minute, seconds=as_of.second)
    wanted = connection.scalar(
        sa.text("""
            SELECT (SELECT count(*) FROM message
                    WHERE kind = :kind AND state IN ('planned', 'retry') AND send_after <= :as_of)
                 + (SELECT count(*) FROM message WHERE kind = :kind AND state = 'sent' AND changed_at >= :since)"""),
        {"kind": kind, "as_of": as_of, "since": since},
    )
    if wanted is None or wanted <= _SMALL:
        return None
    days, usual = connection.execute(
        sa.text("""
            SELECT count(*), coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY sent), 0)
            FROM (SELECT count(*) AS sent FROM message
                  WHERE kind = :kind AND state = 'sent' AND changed_at < :since
                    AND changed_at >= CAST(:since AS timestamptz) - make_interval(days => :days)
                  GROUP BY date_trunc('day', changed_at)) AS day"""),
        {"kind": kind, "since": since, "days": _USUAL_DAYS},
    ).one()
    if days < _FEWEST_DAYS or wanted <= UNUSUAL * usual:
        return None
    if allowed:
        connection.execute(
            sa.text("INSERT INTO message_approval (kind, wanted, usual, at) VALUES (:kind, :wanted, :usual, :at)"),
            {"kind": kind, "wanted": wanted, "usual": usual, "at": as_of},
        )
        return None
    return Report.refused(
        VOLUME_GUARD,
        f"{KINDS[kind].name}: oggi sarebbero {wanted} messaggi, di solito {usual}. Nessuno è partito: "
        f"se è giusto così, ripeti con la protezione «{VOLUME_GUARD}» tolta.",
    )


_CALL = sa.text("""
    INSERT INTO call_list (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
    SELECT l.clinic_id, l.subject_id, l.version, l.kind, m.reason, a.starts_at, :as_of
    FROM message m
    JOIN message_ledger l ON l.message_id = m.id AND l.subject = 'appointment' AND l.withheld IS NULL
    JOIN appointment a ON a.id = l.subject_id AND a.status = 'booked' AND a.start_version = l.version
    WHERE m.kind = 'preparation' AND m.state IN ('withheld', 'failed') AND m.changed_at >= :as_of
      AND m.reason = ANY (:reasons) AND a.starts_at > :as_of
    ON CONFLICT DO NOTHING""")


def list_calls(connection: sa.Connection, as_of: datetime) -> int:
    """Put on the desk's call list whose preparation could not be sent since ``as_of``."""
    reasons = [Why.NO_ADDRESS, Why.OPTED_OUT, Why.TOO_LATE, Why.REFUSED, Why.EXHAUSTED, Why.TEMPLATE, Why.PERSON_CAP]
    return connection.execute(_CALL, {"as_of": as_of, "reasons": [str(why) for why in reasons]}).rowcount


def report_of(planned: Planned, tally: Tally, arrived: Receipts | None = None) -> Report:
    """What the operator reads: counts, why what was not sent was not, and which carrier is missing.

    ``arrived``: where the gateway was asked what became of earlier texts."""
    failed = tally.total("failed")
    unknown = tally.total("unknown")
    counts = Counts(
        created=planned.messages,
        updated=tally.total("sent"),
        skipped=sum(planned.withheld.values()) + tally.total("withheld"),
        failed=failed + unknown,
    )
    why: Counter[tuple[str, str]] = Counter(planned.withheld)
    for (clinic, _, state, reason), count in tally.counts.items():
        if state in {"withheld", "failed"}:
            why[clinic, reason] += count
    reasons = [Reason(code, WHY_WORDS[code], clinic, count) for (clinic, code), count in sorted(why.items())]
    outcome = done(counts)
    if unknown:
        reasons.append(
            Reason("unknown", "Non si sa se siano arrivati: vedi «polydesk messages unknown»", count=unknown)
        )
    if arrived is not None:
        reasons += [Reason("undelivered", _LOST, clinic, n) for clinic, n in sorted(arrived.undelivered.items())]
    for channel, code in tally.closed.items():
        reasons.insert(0, Reason("carrier", f"Non risponde o ci rifiuta {CARRIERS[channel].split(':')[0]} ({code})"))
        outcome = Outcome.PARTIAL if counts.updated else Outcome.FAILED
    for channel, count in tally.missing.items():
        reasons.insert(0, Reason("not_configured", f"Manca {CARRIERS[channel]}; i messaggi aspettano", count=count))
        outcome = Outcome.PARTIAL if counts.changed else Outcome.SKIPPED
    if tally.capped:
        reasons.append(Reason("cap", "Raggiunto il massimo per esecuzione o per ora: il resto parte più tardi"))
    figures = {
        "Messaggi pianificati": planned.messages,
        "Appuntamenti nei messaggi": planned.appointments,
        "Inviati": tally.total("sent"),
        "Trattenuti": counts.skipped,
        "Da ritentare": tally.total("retry", "planned"),
        "Non riusciti": failed,
        "In dubbio": unknown,
        "Dubbi chiariti": tally.settled,
    }
    if arrived is not None:
        figures |= {"Consegne confermate": arrived.delivered, "Non consegnati": arrived.undelivered.total()}
    return Report(outcome, counts, tuple(reasons), figures, (_by_clinic(tally),) if tally.counts else ())


def _by_clinic(tally: Tally) -> Table:
    states = ("sent", "withheld", "retry", "failed", "unknown")
    totals: dict[tuple[str, str], Counter[str]] = {}
    for (clinic, kind, state, _), count in tally.counts.items():
        totals.setdefault((clinic, kind), Counter())["retry" if state == "planned" else state] += count
    rows = tuple(
        (clinic, KINDS[kind].name, *(counts[state] for state in states))
        for (clinic, kind), counts in sorted(totals.items())
    )
    columns = ("Clinica", "Messaggio", "Inviati", "Trattenuti", "Da ritentare", "Non riusciti", "In dubbio")
    return Table("Per clinica", columns, rows, len(rows))


def _preview(
    connection: sa.Connection, as_of: datetime, kind: str, clinics: Sequence[Hours], planned: Planned
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
    for first in range(0, len(ids), 1000):
        for message in judging.facts(connection, ids[first : first + 1000], as_of):
            verdict = judge(message, by_clinic[message.clinic_id], as_of, frozenset(CHANNELS))
            if isinstance(verdict, Ready):
                would[message.clinic, verdict.channel] += 1
            elif isinstance(verdict, Withheld):
                why[message.clinic, verdict.why] += 1
    counts = Counts(created=would.total(), skipped=why.total())
    rows = tuple((clinic, channel, count) for (clinic, channel), count in sorted(would.items()))
    return Report(
        done(counts),
        counts,
        tuple(Reason(code, WHY_WORDS[code], clinic, count) for (clinic, code), count in sorted(why.items())),
        {"Messaggi che partirebbero": would.total(), "Messaggi da trattenere": why.total()},
        (Table("Partirebbero", ("Clinica", "Canale", "Messaggi"), rows, len(rows)),) if rows else (),
    )
