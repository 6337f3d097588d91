"""What the tests of clean-up share: rows that are old, and how many are left."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from tests import world
from tests.world import AS_OF

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def count(engine: sa.Engine, table: str, where: str = "true") -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text(f"SELECT count(*) FROM {table} WHERE {where}")) or 0)


def old_holds(connection: sa.Connection, practice: world.Practice, number: int, age: timedelta) -> None:
    """Ended holds of one slot, set-based."""
    slot = world.slot(connection, practice.agenda, AS_OF - age)
    connection.execute(
        sa.text("""
            INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, state, created_at, expires_at,
                              last_activity_at, ended_at)
            SELECT :clinic, :slot, sha256(CAST(:slot || '/' || n AS bytea)), '\\x00', 'expired', :at,
                   :at + interval '10 minutes', :at, :at + interval '10 minutes'
            FROM generate_series(1, CAST(:number AS integer)) n"""),
        {"clinic": practice.clinic, "slot": slot, "at": AS_OF - age, "number": number},
    )


def old_messages(
    connection: sa.Connection, practice: world.Practice, appointment: int, version: int, kind: str, state: str | None
) -> None:
    """A message of 800 days ago with its ledger row and an attempt; without ``state`` only the row, withheld."""
    connection.execute(
        sa.text("""
            WITH sent AS (
                INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, state, reason, send_after,
                                     expires_at, template_revision, sent_at, created_at, changed_at)
                SELECT :clinic, :kind, 'patient', :patient, :state, 'x', :at, :at, 0,
                       CASE WHEN :state = 'sent' THEN CAST(:at AS timestamptz) END, :at, :at
                WHERE CAST(:state AS text) IS NOT NULL RETURNING id
            ), tried AS (
                INSERT INTO message_attempt (message_id, at, channel, answer) SELECT id, :at, 'sms', 'later' FROM sent
            )
            INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                        message_id, withheld, planned_at)
            SELECT 'appointment', :appointment, :version, :kind, 'patient', :patient, :clinic, (SELECT id FROM sent),
                   CASE WHEN CAST(:state AS text) IS NULL THEN 'too_late' END, :at"""),
        {
            "clinic": practice.clinic,
            "patient": practice.patient,
            "appointment": appointment,
            "version": version,
            "kind": kind,
            "state": state,
            "at": AS_OF - 800 * DAY,
        },
    )
