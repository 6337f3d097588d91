"""The mass resend of activation e-mails, to everyone who has not activated the account yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours, planning
from polydesk_dagster.clinic.messages.dispatch import dispatch
from polydesk_dagster.clinic.messages.kinds import ACTIVATION, Channel
from polydesk_dagster.clinic.messages.pace import Limits
from polydesk_dagster.clinic.messages.planning import Planned
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.clinic.messages.reporting import Came, report_of
from polydesk_dagster.clinic.messages.service import Progress, unknown_clinic
from polydesk_dagster.clinic.messages.writing import LINK_LIFE
from polydesk_dagster.outcome import Counts, Reason, Report, Table, done
from polydesk_dagster.values import Term

PAUSE = timedelta(hours=72)
"""Who was written to less than this ago is left alone."""
MOST = 3
"""Who was written to so many times is left alone."""

# Who has no active account, with how often and when one was written to, and why one is left out now.
_JUDGED = """
    SELECT u.id, u.clinic_id, c.code, u.role, coalesce(past.version, 0) + 1 AS version,
           CASE WHEN u.state IN ('disabled', 'bounced') THEN u.state
                WHEN past.pending THEN 'pending'
                WHEN :everyone THEN NULL
                WHEN greatest(past.sent_at, u.invited_at) > CAST(:as_of AS timestamptz) - :pause THEN 'recent'
                WHEN coalesce(past.times, 0) >= :most THEN 'three_times' END AS left_out
    FROM app_user u
    JOIN clinic c ON c.id = u.clinic_id AND c.active
    LEFT JOIN LATERAL (
        SELECT max(l.version) AS version, max(m.sent_at) AS sent_at, count(m.sent_at) AS times,
               bool_or(m.state IN ('planned', 'claimed', 'retry', 'unknown')) AS pending
        FROM message_ledger l JOIN message m ON m.id = l.message_id
        WHERE l.subject = 'user' AND l.subject_id = u.id AND l.kind = 'activation'
    ) past ON true
    WHERE u.state <> 'active' AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
"""


def resend(
    engine: sa.Engine,
    as_of: datetime,
    providers: Mapping[Channel, Provider],
    *,
    clinic: str | None = None,
    preview: bool = False,
    everyone: bool = False,
    door: str | None = None,
    progress: Progress = lambda _done, _total, _what: None,
) -> Report:
    """Write to everyone who has not activated the account, but not to who was written to in the last 72 hours or three
    times already unless ``everyone``; never to the disabled and the bounced. The link of who works here leads to
    ``door``, the page where staff choose a password; a patient's to her clinic's portal."""
    asked = {"as_of": as_of, "everyone": everyone, "pause": PAUSE, "most": MOST, "clinic": clinic}
    with engine.begin() as connection:
        clinics = hours.load(connection, as_of, clinic)
        if not clinics:
            return unknown_clinic(clinic)
        rows = connection.execute(
            sa.text(f"SELECT code, role, left_out, count(*) FROM ({_JUDGED}) AS j GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"),
            asked,
        ).all()
        left_out: Counter[tuple[str, str]] = Counter()
        for code, _, reason, count in rows:
            if reason is not None:
                left_out[code, reason] += count
        reasons = tuple(
            Reason(f"activation_{reason}", clinic=code, count=count) for (code, reason), count in left_out.items()
        )
        reasons += _example_portal(clinics)
        if preview:
            wanted = tuple((code, Term("user_role", role), n) for code, role, reason, n in rows if reason is None)
            counts = Counts(created=sum(n for *_, n in wanted), skipped=left_out.total())
            table = Table("activation_wanted", ("clinic", "user_role", "activation_users"), wanted, len(wanted))
            figures = {"messages_would_go": counts.created}
            return Report(done(counts), counts, reasons, figures, (table,), preview=True)
        planned = planning.enqueue(
            connection,
            ACTIVATION.key,
            f"""SELECT clinic_id, 'user' AS subject, id AS subject_id, version, 'user' AS recipient_type,
                       id AS recipient_id, CAST(:as_of AS timestamptz) + :life AS expires_at,
                       CASE WHEN role <> 'patient' AND CAST(:door AS text) IS NOT NULL
                            THEN jsonb_build_object('door', CAST(:door AS text)) END AS context
                FROM ({_JUDGED}) AS j WHERE left_out IS NULL""",
            {**asked, "life": LINK_LIFE, "door": door},
            as_of,
        )
        limits = Limits.load(connection)
    tally = dispatch(
        engine,
        as_of,
        providers=providers,
        clinics=clinics,
        kinds=[ACTIVATION.key],
        limits=limits,
        progress=progress,
    )
    report = report_of(Came(Planned(planned, kind=ACTIVATION.key), tally))
    counts = report.counts + Counts(skipped=left_out.total())
    return Report(report.outcome, counts, reasons + report.reasons, report.figures, report.tables)


def _example_portal(clinics: list[hours.Hours]) -> tuple[Reason, ...]:
    if not any("polydesk.example" in clinic.portal_url for clinic in clinics):
        return ()
    return (Reason("example_portal"),)


def redeem(connection: sa.Connection, token: str, as_of: datetime) -> int | None:
    """Use the link of an activation e-mail, once: activates the account and returns its user, or None where the token
    was never given, was used, was replaced by a newer one or is too old."""
    user = connection.scalar(
        sa.text("""
            UPDATE activation_token SET used_at = :as_of
            WHERE token_hash = sha256(convert_to(:token, 'UTF8')) AND used_at IS NULL AND voided_at IS NULL
              AND expires_at > :as_of
            RETURNING user_id"""),
        {"token": token, "as_of": as_of},
    )
    if user is None:
        return None
    activated = connection.execute(
        sa.text("""UPDATE app_user SET state = 'active', activated_at = :as_of
                   WHERE id = :user AND state IN ('never_invited', 'invited', 'bounced')"""),
        {"user": user, "as_of": as_of},
    )
    return int(user) if activated.rowcount else None
