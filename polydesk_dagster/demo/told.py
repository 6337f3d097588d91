"""What the chain had told its patients before it is loaded: at noon the clinics wrote down what was due, and whatever
can be told no more by now went out in time. So the first evening does not begin with tomorrow's patients all untold."""

from __future__ import annotations

from datetime import datetime, time, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours, planning
from polydesk_dagster.clinic.messages.kinds import PREPARATION, REMINDER

_NOON = time(12)

_SENT_IN_TIME = """
UPDATE message m SET state = 'sent', sent_at = m.send_after, changed_at = m.send_after,
    channel = CASE WHEN p.mobile IS NOT NULL THEN 'sms' ELSE 'email' END
FROM unnest(CAST(:clinics AS bigint[]), CAST(:next AS timestamptz[])) AS w (clinic_id, next), patient p
WHERE m.clinic_id = w.clinic_id AND m.state = 'planned' AND m.expires_at <= w.next
  AND m.recipient_type = 'patient' AND p.id = m.recipient_id"""


def before(engine: sa.Engine, as_of: datetime) -> None:
    """Write down what was told before ``as_of`` to the patients of a chain that was just loaded."""
    with engine.begin() as connection:
        clinics = hours.load(connection, as_of)
        zone = clinics[0].zone
        day = as_of.astimezone(zone)
        noon = datetime.combine(day - timedelta(days=day.time() < _NOON), _NOON, zone)
        for kind in (REMINDER.key, PREPARATION.key):
            planning.plan(connection, kind, noon, clinics)
        connection.execute(
            sa.text(_SENT_IN_TIME),
            {
                "clinics": [clinic.clinic_id for clinic in clinics],
                "next": [clinic.next_allowed(as_of) for clinic in clinics],
            },
        )
