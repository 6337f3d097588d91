"""The reset of customised texts to the factory's, as a plan: what each one says now, what it will say, and back."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind, Plan, Scope
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.bookings import emergency
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.messages.factory import FACTORY
from polydesk_dagster.clinic.messages.naming import named
from polydesk_dagster.outcome import Report

SERVICE = "reset_message_templates"

MESSAGE_TEMPLATE = Kind(
    name="message_template",
    whole=True,
    table="message_template",
    key="r.name",
    told=True,
    fixed=("layer", "clinic_id", "kind", "variant", "channel", "language"),
    owned=("subject", "body", "retired_at"),
    carried={"name": "text"},
    expires=timedelta(minutes=30),
)
"""A retired row lets the factory's text show through; undoing brings back what it said."""

# The row also takes the factory's words, so that the plan shows what will be sent instead of what.
_CUSTOMISED = f"""
    SELECT 'retire' AS action, CAST(NULL AS text) AS finding,
           {why("back_to_factory")} AS reason, t.id, {named("t", "c.code")} AS name,
           t.layer, t.clinic_id, t.kind, t.variant, t.channel, t.language,
           coalesce(f.subject, t.subject) AS subject, coalesce(f.body, t.body) AS body,
           CAST(:as_of AS timestamptz) AS retired_at
    FROM message_template t
    LEFT JOIN clinic c ON c.id = t.clinic_id
    LEFT JOIN factory_template f ON (f.kind, f.variant, f.channel, f.language)
                                 = (t.kind, t.variant, t.channel, t.language)
    WHERE t.retired_at IS NULL AND (CAST(:clinic_id AS bigint) IS NULL OR t.clinic_id = :clinic_id)
    ORDER BY t.id"""


def propose(connection: sa.Connection, scope: Scope, as_of: datetime) -> Plan:
    """The plan that resets every customised text in scope: one clinic's, or all and the chain's own."""
    connection.execute(
        sa.text("""
            CREATE TEMPORARY TABLE factory_template
                (kind text, variant text, channel text, language text, subject text, body text) ON COMMIT DROP""")
    )
    connection.execute(
        sa.text(
            "INSERT INTO factory_template SELECT * FROM jsonb_to_recordset(CAST(:factory AS jsonb)) AS f "
            "(kind text, variant text, channel text, language text, subject text, body text)"
        ),
        {"factory": json.dumps([template._asdict() for template in FACTORY], ensure_ascii=False)},
    )
    return changes.propose(connection, MESSAGE_TEMPLATE, scope, _CUSTOMISED, as_of=as_of)


def reset(
    engine: sa.Engine, as_of: datetime, given: Press, *, clinic: str | None = None, preview: bool = False
) -> Report:
    """Show or apply the reset. Messages that are already queued keep the texts that they were planned with."""
    with engine.begin() as connection:
        scope = Scope(SERVICE, clinic, clinic_id(connection, clinic))
        return emergency.press(
            connection,
            given,
            scope=scope,
            kind=MESSAGE_TEMPLATE,
            propose=lambda: propose(connection, scope, as_of),
            as_of=as_of,
            preview=preview,
        )
