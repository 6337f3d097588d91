"""A customised text is changed as a plan: seen with its advice before it is in force, audited, undone."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Plan, Scope
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.messages import templates
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.reset import MESSAGE_TEMPLATE
from polydesk_dagster.clinic.messages.templates import Finding, Text
from polydesk_dagster.errors import PermanentError

SERVICE = "message_texts"

_WANTED = """
    SELECT CASE WHEN t.id IS NULL THEN 'create' ELSE 'update' END AS action, CAST(NULL AS text) AS finding,
           CAST(NULL AS text) AS reason, t.id,
           concat_ws(' ', w.kind, w.variant, w.channel, w.language, coalesce(c.code, 'catena')) AS name,
           CASE WHEN w.clinic_id IS NULL THEN 'chain' ELSE 'clinic' END AS layer, w.clinic_id, w.kind, w.variant,
           w.channel, w.language, w.subject, w.body, CAST(NULL AS timestamptz) AS retired_at
    FROM (SELECT CAST(:clinic_id AS bigint) AS clinic_id, CAST(:kind AS text) AS kind,
                 CAST(:variant AS text) AS variant, CAST(:channel AS text) AS channel,
                 CAST(:language AS text) AS language,
                 CAST(:subject AS text) AS subject, CAST(:body AS text) AS body) AS w
    LEFT JOIN clinic c ON c.id = w.clinic_id
    LEFT JOIN message_template t
      ON (t.kind, t.variant, t.channel, t.language) = (w.kind, w.variant, w.channel, w.language)
     AND t.clinic_id IS NOT DISTINCT FROM w.clinic_id
    WHERE (t.subject, t.body, t.retired_at) IS DISTINCT FROM (w.subject, w.body, NULL)"""


def propose(
    connection: sa.Connection,
    clinic: str | None,
    kind: str,
    variant: str,
    channel: Channel,
    language: str,
    text: Text,
    *,
    as_of: datetime,
) -> tuple[Plan, list[Finding]]:
    """The plan that makes ``text`` the clinic's (without one, the chain's) from the next message planned on, and the
    advice about it. Without a change the plan has no rows.

    Raises:
        PermanentError: for a text that lint finds an error in; there is no plan then.
    """
    found = templates.lint(kind, variant, channel, text.subject, text.body)
    for finding in found:
        if finding.error:
            raise PermanentError("template_refused", why=finding.reason)
    wanted = {
        "kind": kind,
        "variant": variant,
        "channel": channel,
        "language": language,
        "subject": text.subject if channel == "email" else None,
        "body": text.body,
    }
    scope = Scope(SERVICE, clinic, clinic_id(connection, clinic), wanted)
    return changes.propose(connection, MESSAGE_TEMPLATE, scope, _WANTED, as_of=as_of), found
