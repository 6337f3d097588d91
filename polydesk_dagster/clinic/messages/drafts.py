"""The texts as somebody who changes them sees them: which is in force, every version before, what a draft would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import samples, templates
from polydesk_dagster.clinic.messages.factory import FACTORY
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.pace import Limits
from polydesk_dagster.clinic.messages.samples import Sample
from polydesk_dagster.clinic.messages.templates import Finding, Text
from polydesk_dagster.values import Money

_MONTH = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Which:
    """One text: of which message, in which wording, over which channel, in which language."""

    kind: str
    variant: str
    channel: Channel
    language: str


@dataclass(frozen=True, slots=True)
class InForce:
    """What is sent for ``which`` today, and whose words they are: ``factory``, ``chain`` or ``clinic``."""

    which: Which
    layer: str
    text: Text


@dataclass(frozen=True, slots=True)
class Past:
    """A version of a text that somebody wrote; without ``text`` it says that the layer below shows through."""

    number: int
    layer: str
    written_at: datetime
    text: Text | None


@dataclass(frozen=True, slots=True)
class Draft:
    """What a text that is not in force yet would be."""

    findings: Sequence[Finding]
    samples: Sequence[Sample]
    """As three real patients would get it, with masked names; none where an error forbids the text."""
    segments: int | None = None
    """Of the longest of them; None for an e-mail."""
    each: Money | None = None
    """What that one costs, where the price of a segment is known."""
    month: Money | None = None
    """The same for as many as went out in the last thirty days."""


_CURRENT = sa.text("""
    SELECT DISTINCT ON (t.kind, t.variant, t.channel, t.language)
           t.kind, t.variant, t.channel, t.language, t.layer, t.subject, t.body
    FROM message_template t LEFT JOIN clinic c ON c.id = t.clinic_id
    WHERE t.retired_at IS NULL AND (t.layer = 'chain' OR c.code = CAST(:clinic AS text))
    ORDER BY t.kind, t.variant, t.channel, t.language, t.layer DESC""")


def in_force(connection: sa.Connection, clinic: str | None) -> list[InForce]:
    """Every text as ``clinic`` (without one, the chain) sends it today, in the factory's order."""
    written = {
        Which(row.kind, row.variant, row.channel, row.language): (row.layer, Text(row.subject, row.body))
        for row in connection.execute(_CURRENT, {"clinic": clinic})
    }
    shipped = {
        Which(each.kind, each.variant, each.channel, each.language): ("factory", Text(each.subject, each.body))  # pyrefly: ignore[bad-argument-type]
        for each in FACTORY
    }
    return [InForce(which, *place) for which, place in {**shipped, **written}.items()]


def versions(connection: sa.Connection, clinic: str | None, which: Which) -> list[Past]:
    """What the chain and ``clinic`` ever wrote for ``which``, newest first."""
    rows = connection.execute(
        sa.text("""
            SELECT v.id, v.layer, v.created_at, v.subject, v.body
            FROM message_template_version v LEFT JOIN clinic c ON c.id = v.clinic_id
            WHERE (v.kind, v.variant, v.channel, v.language) = (:kind, :variant, :channel, :language)
              AND (v.layer = 'chain' OR c.code = CAST(:clinic AS text))
            ORDER BY v.id DESC"""),
        {"clinic": clinic, **_named(which)},
    )
    return [
        Past(row.id, row.layer, row.created_at, None if row.body is None else Text(row.subject, row.body))
        for row in rows
    ]


def look(
    connection: sa.Connection, clinic: str | None, which: Which, text: Text, as_of: datetime, many: int = 3
) -> Draft:
    """What ``text`` would be as ``which``; nothing is kept.

    Raises:
        PermanentError: where no active clinic has that code.
    """
    findings = templates.lint(which.kind, which.variant, which.channel, text.subject, text.body)
    if any(finding.error for finding in findings):
        return Draft(findings, ())
    shown = samples.of_draft(connection, which.kind, which.variant, which.channel, which.language, text, as_of, clinic,
                             many)  # fmt: skip
    if which.channel != "sms":
        return Draft(findings, shown)
    longest = max((sample.size.segments for sample in shown if sample.size), default=1)
    price = Limits.load(connection).segment_cost
    if price is None:
        return Draft(findings, shown, longest)
    each = longest * price
    return Draft(findings, shown, longest, Money(each), Money(each * _went(connection, clinic, which, as_of)))


def _went(connection: sa.Connection, clinic: str | None, which: Which, as_of: datetime) -> Decimal:
    """Texts of this kind and language that went out in the last thirty days."""
    return Decimal(
        connection.scalar(
            sa.text("""
                SELECT count(*) FROM message m JOIN clinic c ON c.id = m.clinic_id
                LEFT JOIN patient p ON m.recipient_type = 'patient' AND p.id = m.recipient_id
                WHERE m.state = 'sent' AND m.kind = :kind AND m.channel = :channel AND m.changed_at > :since
                  AND coalesce(p.language, c.language) = :language
                  AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)"""),
            {"clinic": clinic, "since": as_of - _MONTH, **_named(which)},
        )
        or 0
    )


def _named(which: Which) -> dict[str, str]:
    return {
        "kind": which.kind,
        "variant": which.variant,
        "channel": which.channel,
        "language": which.language,
    }
