"""What is said of a plan from a source as a whole: whether the source is broken, or too much of ours would change."""

from __future__ import annotations

import math
from collections.abc import Iterator

import sqlalchemy as sa

from polydesk_dagster.changes.kind import Kind, Source
from polydesk_dagster.changes.stage import Staged
from polydesk_dagster.changes.step import Known
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.values import Count, Several, Term, Value

DRIFTED = "too_many_since_confirmed"

BROKEN_TEXT = "[\u00c3\u00c2]([\u0080-\u00bf ]|$)|\ufffd|\u00e2\u20ac"
"""UTF-8 read as Windows-1252 (a hard blank may have become a plain one, or gone), or what could not be read."""

BROKEN_SHARE = 0.01


def of_source(kind: Kind, staged: Staged, ours: int, known: Known | None) -> Iterator[Verdict]:
    """Whether the source is whole: compared with last time, and with what a person last confirmed."""
    limits = kind.limits
    reference = ours if known is None else max(known.records, known.confirmed)
    least = max(limits.minimum, min(1, max(reference, ours)))
    seen = Count("records", staged.seen)
    yield Verdict("source_empty", staged.seen >= least, staged.seen, least, {"seen": seen, "least": least})
    least = math.ceil(reference * (1 - limits.shrink))
    yield Verdict("source_short", staged.seen >= least, staged.seen, least, {"seen": seen, "before": reference})
    if staged.total is not None:
        announced = Count("records", staged.total)
        values: dict[str, Value] = {"seen": seen, "announced": announced}
        yield Verdict("source_incomplete", staged.seen >= staged.total, staged.seen, staged.total, values)
    unreadable = len(staged.unreadable)
    most = max(limits.rejected * staged.seen, min(limits.few, staged.seen - unreadable))
    most = most if staged.seen >= limits.enough else staged.seen
    values = {"value": Count("unreadable_records", unreadable), "seen": staged.seen}
    yield Verdict("source_shape", unreadable <= most, unreadable, most, values)


def of_text(connection: sa.Connection, source: Source, staged: Staged, stage: str) -> Verdict:
    """Whether its texts were read in a wrong encoding."""
    broken = 0
    if source.text:
        # Plain letters, which nearly all are, are told by their length alone.
        tests = " OR ".join(f"octet_length({name}) <> length({name}) AND {name} ~ :broken" for name in source.text)
        broken = connection.execute(
            sa.text(f"SELECT count(*) FROM {stage} WHERE {tests}"), {"broken": BROKEN_TEXT}
        ).scalar_one()
    most = max(1.0, BROKEN_SHARE * staged.records)
    return Verdict("source_encoding", broken <= most, broken, most, {"value": Count("records", broken)})


def of_changes(kind: Kind, counted: dict[str, int], ours: int, known: Known | None) -> Iterator[Verdict]:
    """Whether too much of ours would change at once, or would have gone little by little since a person looked."""
    limits = kind.limits
    for name, share, number in (
        ("too_many_retired", limits.retired, counted.get("missing_there", 0)),
        ("too_many_changed", limits.changed, counted.get("differs", 0)),
    ):
        if share is not None:
            most = max(share * ours, limits.few)
            what = Term("kind", kind.name)
            of = max(ours, number)  # also what had no name of the source's yet
            values: dict[str, Value] = {"value": number, "what": what, "ours": of, "limit": int(most)}
            yield Verdict(name, number <= most, number, most, values)
    if limits.retired is not None and known is not None and known.ours is not None:
        number = counted.get("missing_there", 0)
        gone = number + known.retired
        most = max(limits.since_confirmed * known.ours, limits.few)
        values = {"value": gone, "what": Term("kind", kind.name), "ours": known.ours, "limit": int(most)}
        yield Verdict(DRIFTED, not number or gone <= most, gone, most, values)


def of_duplicates(kind: Kind, numbers: list[int]) -> Verdict:
    """Whether records, of these numbers, contradict each other under one key."""
    values: dict[str, Value] = {"value": Count("records", len(numbers)), "first": Several(tuple(numbers[:10]))}
    most = 0 if kind.limits.alike else len(numbers)
    return Verdict("duplicate_keys", len(numbers) <= most, len(numbers), most, values)
