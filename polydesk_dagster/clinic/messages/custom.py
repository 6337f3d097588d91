"""A customised text is changed as a plan: seen with its advice before it is in force, audited, undone."""

from __future__ import annotations

import dataclasses
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Plan, Scope
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.messages import drafts, templates
from polydesk_dagster.clinic.messages.drafts import Which
from polydesk_dagster.clinic.messages.factory import FACTORY
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


_WITHDRAWN = """
    SELECT 'retire' AS action, CAST(NULL AS text) AS finding, CAST(NULL AS text) AS reason, t.id,
           concat_ws(' ', t.kind, t.variant, t.channel, t.language, coalesce(c.code, 'catena')) AS name,
           t.layer, t.clinic_id, t.kind, t.variant, t.channel, t.language, CAST(:subject AS text) AS subject,
           CAST(:body AS text) AS body, CAST(:as_of AS timestamptz) AS retired_at
    FROM message_template t LEFT JOIN clinic c ON c.id = t.clinic_id
    WHERE t.retired_at IS NULL AND t.clinic_id IS NOT DISTINCT FROM CAST(:clinic_id AS bigint)
      AND (t.kind, t.variant, t.channel, t.language) = (:kind, :variant, :channel, :language)"""


def withdraw(connection: sa.Connection, clinic: str | None, which: Which, *, as_of: datetime) -> Plan:
    """The plan that takes back what ``clinic`` (without one, the chain) wrote for ``which``, so that the layer below
    shows through; its row says what will be sent instead. Where nothing was written the plan has no rows."""
    chain = [] if clinic is None else drafts.in_force(connection, None)
    shipped = (Text(each.subject, each.body) for each in FACTORY if each[:4] == dataclasses.astuple(which))
    below = next((each.text for each in chain if each.which == which), None) or next(shipped, Text(None, ""))
    wanted = {**dataclasses.asdict(which), **dataclasses.asdict(below)}
    scope = Scope(SERVICE, clinic, clinic_id(connection, clinic), wanted)
    return changes.propose(connection, MESSAGE_TEMPLATE, scope, _WITHDRAWN, as_of=as_of)


def restore(connection: sa.Connection, version: int, *, as_of: datetime) -> tuple[Plan, list[Finding]]:
    """The plan that brings an earlier version of a text back into force, for whom it was written then; advice and
    refusals as of :func:`propose`.

    Raises:
        PermanentError: where no such version was written, or lint now finds an error in it.
    """
    found = connection.execute(
        sa.text("""
            SELECT c.code, v.kind, v.variant, v.channel, v.language, v.subject, v.body
            FROM message_template_version v LEFT JOIN clinic c ON c.id = v.clinic_id
            WHERE v.id = :version AND v.body IS NOT NULL"""),
        {"version": version},
    ).one_or_none()
    if found is None:
        raise PermanentError("template_no_version", version=version)
    clinic, kind, variant, channel, language, subject, body = found
    return propose(connection, clinic, kind, variant, channel, language, Text(subject, body), as_of=as_of)
