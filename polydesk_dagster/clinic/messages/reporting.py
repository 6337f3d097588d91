"""What a run of messages came to: success is what was sent, and what reached nobody is never inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from polydesk_dagster.clinic.messages import codes
from polydesk_dagster.clinic.messages.kinds import TO_CALL, Why
from polydesk_dagster.clinic.messages.pace import Limits, Tally
from polydesk_dagster.clinic.messages.planning import Planned
from polydesk_dagster.clinic.messages.receipts import Receipts
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, done
from polydesk_dagster.values import Money, Term, Value

STATES = ("sent", "withheld", "retry", "failed", "unknown")


@dataclass(frozen=True, slots=True)
class Came:
    """All that a run learned."""

    planned: Planned
    tally: Tally
    arrived: Receipts | None = None
    """Where the gateway was asked what became of earlier texts."""
    calls: Mapping[str, int] = field(default_factory=Counter)
    """Open calls of the desk by clinic code."""
    doubts: int = 0
    """Messages in doubt after the run, its own and earlier ones."""
    limits: Limits | None = None


def reason_of(why: str, clinic: str | None = None, count: int = 1) -> Reason:
    """Why messages were not sent, from the ledger's own word."""
    return Reason(f"message_{why}", clinic=clinic, count=count)


def report_of(came: Came) -> Report:
    """Counts, why what was not sent was not, and which carrier is missing."""
    tally, planned = came.tally, came.planned
    failed, unknown, sent = tally.total("failed"), tally.total("unknown"), tally.total("sent")
    withheld: Counter[tuple[str, str, str]] = Counter()
    for (clinic, why), count in planned.withheld.items():
        withheld[planned.kind, clinic, why] += count
    for (clinic, kind, state, why), count in tally.counts.items():
        if state == "withheld":
            withheld[kind, clinic, why] += count
    aside = unknown + sum(count for (kind, _, why), count in withheld.items() if why in TO_CALL.get(kind, ()))
    counts = Counts(
        created=planned.messages,
        updated=sent,
        skipped=withheld.total(),
        waiting=sum(came.calls.values())
        + max(came.doubts, unknown)
        + tally.behind_doubt.total()
        + tally.suspended.total(),
        failed=failed,
    )
    why_not: Counter[tuple[str, str]] = Counter()
    for (_, clinic, why), count in withheld.items():
        why_not[clinic, why] += count
    for (clinic, _, state, why), count in tally.counts.items():
        if state == "failed" and why != Why.TEMPLATE:
            why_not[clinic, why] += count
    reasons = [reason_of(why, clinic, count) for (clinic, why), count in sorted(why_not.items()) if count]
    reasons += [_broken(*text, count) for text, count in sorted(tally.broken.items())]
    reasons += _waits(came, unknown)
    to_come = max(0, planned.messages - tally.total("sent", "withheld", "failed", "unknown"))
    outcome = done(Counts(updated=sent, failed=failed, unchanged=to_come), set_aside=aside)
    if outcome is Outcome.NOTHING_TO_DO and to_come:
        outcome = Outcome.OK
    for channel, code in tally.closed.items():
        said = codes.in_words(channel, code or "unknown")
        reasons.insert(0, Reason("message_carrier_closed", {"carrier": Term("carrier", channel), "code": said}))
        outcome = Outcome.PARTIAL if sent else Outcome.FAILED
    for channel, count in tally.missing.items():
        values: dict[str, Value] = {"carrier": Term("carrier", channel), "settings": Term("carrier_settings", channel)}
        reasons.insert(0, Reason("message_carrier_missing", values, count=count))
        outcome = Outcome.PARTIAL if sent or aside else Outcome.SKIPPED
    for code in came.arrived.at_fault if came.arrived is not None else ():
        reasons.insert(
            0,
            Reason("message_receipts_alike", {"carrier": Term("carrier", "sms"), "code": codes.in_words("sms", code)}),
        )
        outcome = Outcome.PARTIAL if outcome in {Outcome.OK, Outcome.NOTHING_TO_DO} else outcome
    if tally.capped:
        reasons.append(Reason("message_cap"))
    return Report(outcome, counts, tuple(reasons), _figures(came, counts), (_by_clinic(tally),) if tally.counts else ())


def _broken(clinic: str, kind: str, variant: str, channel: str, language: str, count: int) -> Reason:
    """The text that could not be written, by its name."""
    terms = {"message_kind": kind, "message_variant": variant, "channel": channel, "language": language}
    return Reason("message_broken_text", {domain: Term(domain, code) for domain, code in terms.items()}, clinic, count)


def _waits(came: Came, unknown: int) -> list[Reason]:
    reasons = []
    if unknown:
        reasons.append(Reason("message_unknown", count=unknown))
    if came.arrived is not None and not came.arrived.at_fault:
        lost = sorted(came.arrived.undelivered.items())
        reasons += [Reason("message_undelivered", clinic=clinic, count=count) for clinic, count in lost]
    behind = sorted(came.tally.behind_doubt.items())
    reasons += [Reason("message_behind_doubt", clinic=clinic, count=count) for clinic, count in behind]
    unsure = sorted(came.tally.suspended.items())
    reasons += [Reason("message_suspended", clinic=clinic, count=count) for clinic, count in unsure]
    calls = sorted(came.calls.items())
    return reasons + [Reason("message_calls", clinic=clinic, count=count) for clinic, count in calls]


def _figures(came: Came, counts: Counts) -> dict[str, Value]:
    tally = came.tally
    figures: dict[str, Value] = {
        "messages_planned": came.planned.messages,
        "messages_appointments": came.planned.appointments,
        "messages_sent": counts.updated,
        "messages_withheld": counts.skipped,
        "messages_retry": tally.total("retry", "planned"),
        "messages_failed": counts.failed,
        "messages_unknown": tally.total("unknown"),
        "messages_settled": tally.settled,
        "messages_calls": sum(came.calls.values()),
        "messages_segments": tally.segments,
    }
    if came.limits is not None and came.limits.segment_cost is not None:
        figures["messages_cost"] = Money(tally.segments * came.limits.segment_cost)
    if came.arrived is not None:
        figures["messages_delivered"] = came.arrived.delivered
        figures["messages_undelivered"] = came.arrived.undelivered.total()
    return figures


def _by_clinic(tally: Tally) -> Table:
    totals: dict[tuple[str, str], Counter[str]] = {}
    for (clinic, kind, state, _), count in tally.counts.items():
        totals.setdefault((clinic, kind), Counter())["retry" if state == "planned" else state] += count
    rows = tuple(
        (clinic, Term("message_kind", kind), *(counts[state] for state in STATES))
        for (clinic, kind), counts in sorted(totals.items())
    )
    columns = ("clinic", "message_kind", *(f"messages_{state}" for state in STATES))
    return Table("messages_by_clinic", columns, rows, len(rows))
