"""The ledger's own moves, each one committed step: claim, depart, record, recover, settle.

A dispatcher is known by a number and holds an advisory lock on it for as long as its connection lives; that is how
another one tells, at once and without a timeout, that it died with messages in its hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import departing
from polydesk_dagster.clinic.messages.blocks import note_refusals
from polydesk_dagster.clinic.messages.kinds import KINDS
from polydesk_dagster.clinic.messages.provider import Answer

FIRST_QUESTION = timedelta(minutes=10)
"""After the gateway took a text, until it is asked whether the text arrived."""
_LOCK_CLASS = 7301
_ALIVE = f"""EXISTS (SELECT FROM pg_locks k WHERE k.locktype = 'advisory' AND k.classid = {_LOCK_CLASS}
                     AND k.objid = CAST(m.dispatcher AS oid) AND k.objsubid = 2
                     AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A message as it is to be claimed: fully written, so that every attempt with its key carries the same text."""

    id: int
    channel: str
    address: str
    key: str
    subject: str | None
    body: str
    segments: int | None
    previous: str | None
    """The key of the attempt before, as it was when this one was written."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a message. Without ``send_after`` the message keeps its time."""

    id: int
    state: str
    at: datetime
    reason: str | None = None
    reference: str | None = None
    send_after: datetime | None = None
    counted: bool = True
    """Whether it was an attempt that counts towards the last."""
    refused: bool = False
    """Whether the message's channel is out for good."""
    answer: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """A text of which nobody knows whether it went out."""

    id: int
    key: str
    attempts: int
    clinic: str
    kind: str


class Ledger:
    """One dispatcher's view of the ledger, on a connection of its own. Use ``with``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = engine.connect()
        try:
            self.id = int(self._connection.scalar(sa.text("SELECT nextval('message_dispatcher')")) or 0)
            self._connection.execute(
                sa.text("SELECT pg_advisory_lock(:class, :id)"), {"class": _LOCK_CLASS, "id": self.id}
            )
            self._connection.commit()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not back to the pool: the lock must go, whatever state the connection is in.
        with suppress(sa.exc.SQLAlchemyError):
            self._connection.invalidate()
        self._connection.close()

    @property
    def connection(self) -> sa.Connection:
        return self._connection

    def recover(self, at: datetime) -> int:
        """Take back what dead dispatchers held: what may be on the wire is unknown, the rest is planned again.
        Returns how many may be on the wire."""
        with self._connection.begin():
            rows = self._connection.execute(
                sa.text(f"""
                    UPDATE message m
                    SET state = CASE WHEN on_wire_at IS NOT NULL THEN 'unknown'
                                     WHEN attempts > 0 THEN 'retry' ELSE 'planned' END,
                        dispatcher = NULL, changed_at = :at
                    WHERE state = 'claimed' AND NOT {_ALIVE}
                    RETURNING state"""),
                {"at": at},
            ).all()
        return sum(row.state == "unknown" for row in rows)

    def expire(self, kinds: Sequence[str], clinics: Sequence[int], at: datetime) -> list[tuple[str, str, str, int]]:
        """Close what is no longer of use. Returns (clinic code, kind, state, how many)."""
        with self._connection.begin():
            rows = self._connection.execute(
                sa.text("""
                    WITH late AS (
                        UPDATE message
                        SET state = CASE WHEN attempts > 0 THEN 'failed' ELSE 'withheld' END, reason = 'too_late',
                            changed_at = :at
                        WHERE state IN ('planned', 'retry') AND expires_at <= :at AND kind = ANY (:kinds)
                          AND clinic_id = ANY (:clinics)
                        RETURNING clinic_id, kind, state
                    )
                    SELECT c.code, kind, state, count(*) FROM late JOIN clinic c ON c.id = clinic_id
                    GROUP BY c.code, kind, state"""),
                {"at": at, "kinds": list(kinds), "clinics": list(clinics)},
            ).all()
            return [(code, kind, state, count) for code, kind, state, count in rows]

    def due(
        self,
        kinds: Sequence[str],
        *,
        clinics: Sequence[int],
        open_clinics: Sequence[int],
        at: datetime,
        after: tuple[datetime, int],
        limit: int,
    ) -> list[tuple[datetime, int]]:
        """The next messages to look at, oldest first. Nothing is locked: writing them takes its time, and
        :meth:`claim` takes only those that are still as they were."""
        rows = self._connection.execute(
            sa.text("""
                SELECT send_after, id FROM message
                WHERE state IN ('planned', 'retry') AND send_after <= :at AND (send_after, id) > (:time, :id)
                  AND kind = ANY (:kinds) AND clinic_id = ANY (:clinics)
                  AND (clinic_id = ANY (:open) OR kind = ANY (:any_hour))
                ORDER BY send_after, id LIMIT :limit"""),
            {
                "at": at,
                "time": after[0],
                "id": after[1],
                "kinds": list(kinds),
                "clinics": list(clinics),
                "open": list(open_clinics),
                "any_hour": [kind.key for kind in KINDS.values() if kind.any_hour],
                "limit": limit,
            },
        ).all()
        return [(row.send_after, row.id) for row in rows]

    def claim(
        self,
        claims: Sequence[Claim],
        withheld: Sequence[tuple[int, str, str]],
        dropped: Sequence[tuple[int, str, int, str]],
        at: datetime,
    ) -> set[int]:
        """Write down what is about to be sent, before it is; the caller commits. Returns the messages that were still
        waiting and that no other dispatcher is taking.

        ``withheld``: (message, state, reason); ``dropped``: (message, subject, its id, reason), ledger rows that their
        message leaves out. Texts can be looked up and count as on the wire from here; e-mails from :meth:`depart`.
        """
        wanted = [claim.id for claim in claims] + [row[0] for row in withheld]
        previous = [claim.previous for claim in claims] + [None] * len(withheld)
        taken = set(
            self._connection.scalars(
                sa.text("""
                    SELECT m.id FROM message m
                    JOIN unnest(CAST(:ids AS bigint[]), CAST(:keys AS uuid[])) AS w (id, key) USING (id)
                    WHERE m.state IN ('planned', 'retry')
                      AND (m.idempotency_key IS NOT DISTINCT FROM w.key OR w.key IS NULL)
                    FOR UPDATE OF m SKIP LOCKED"""),
                {"ids": wanted, "keys": previous},
            )
        )
        claims = [claim for claim in claims if claim.id in taken]
        withheld = [row for row in withheld if row[0] in taken]
        if claims:
            self._connection.execute(
                sa.text("""
                    UPDATE message m
                    SET state = 'claimed', dispatcher = :dispatcher, channel = c.channel, address = c.address,
                        idempotency_key = c.key, subject = c.subject, body = c.body, segments = c.segments,
                        on_wire_at = CASE WHEN c.channel = 'sms' THEN CAST(:at AS timestamptz) END, changed_at = :at,
                        delivery = NULL, delivery_at = NULL, delivery_asked = 0
                    FROM unnest(CAST(:ids AS bigint[]), CAST(:channels AS text[]), CAST(:addresses AS text[]),
                                CAST(:keys AS uuid[]), CAST(:subjects AS text[]), CAST(:bodies AS text[]),
                                CAST(:segments AS smallint[]))
                         AS c (id, channel, address, key, subject, body, segments)
                    WHERE m.id = c.id"""),
                {
                    "dispatcher": self.id,
                    "at": at,
                    "ids": [claim.id for claim in claims],
                    "channels": [claim.channel for claim in claims],
                    "addresses": [claim.address for claim in claims],
                    "keys": [claim.key for claim in claims],
                    "subjects": [claim.subject for claim in claims],
                    "bodies": [claim.body for claim in claims],
                    "segments": [claim.segments for claim in claims],
                },
            )
        if withheld:
            self._connection.execute(
                sa.text("""
                    UPDATE message m SET state = w.state, reason = w.reason, changed_at = :at
                    FROM unnest(CAST(:ids AS bigint[]), CAST(:states AS text[]), CAST(:reasons AS text[]))
                         AS w (id, state, reason)
                    WHERE m.id = w.id"""),
                {
                    "at": at,
                    "ids": [row[0] for row in withheld],
                    "states": [row[1] for row in withheld],
                    "reasons": [row[2] for row in withheld],
                },
            )
        if dropped:
            self._connection.execute(
                sa.text("""
                    UPDATE message_ledger l SET withheld = d.reason
                    FROM unnest(CAST(:messages AS bigint[]), CAST(:subjects AS text[]), CAST(:ids AS bigint[]),
                                CAST(:reasons AS text[])) AS d (message_id, subject, subject_id, reason)
                    WHERE l.message_id = d.message_id AND l.subject = d.subject AND l.subject_id = d.subject_id"""),
                {
                    "messages": [row[0] for row in dropped],
                    "subjects": [row[1] for row in dropped],
                    "ids": [row[2] for row in dropped],
                    "reasons": [row[3] for row in dropped],
                },
            )
        return taken

    def depart(self, messages: Sequence[int], at: datetime) -> set[int]:
        """Which of the claimed ``messages`` may leave now: what they tell is still so, and nobody has said meanwhile
        that it is not wanted. E-mails among them are committed as being on the wire; the others of both are given back
        and looked at anew."""
        with self._connection.begin():
            return departing.free(self._connection, messages, self.id, at)

    def record(self, results: Sequence[Result]) -> None:
        """Write down, in one transaction, what became of messages that this dispatcher claimed or looked up."""
        if not results:
            return
        with self._connection.begin():
            self._connection.execute(
                sa.text("""
                    WITH r AS (
                        SELECT * FROM unnest(
                            CAST(:ids AS bigint[]), CAST(:states AS text[]), CAST(:times AS timestamptz[]),
                            CAST(:reasons AS text[]), CAST(:references AS text[]), CAST(:send_after AS timestamptz[]),
                            CAST(:counted AS boolean[]), CAST(:refused AS boolean[]))
                        AS r (id, state, at, reason, reference, send_after, counted, refused)
                    ), written AS (
                        UPDATE message m
                        SET state = r.state, reason = r.reason, changed_at = r.at,
                            sent_at = CASE WHEN r.state = 'sent' THEN coalesce(m.on_wire_at, r.at) END,
                            provider_reference = coalesce(r.reference, m.provider_reference),
                            send_after = coalesce(r.send_after, m.send_after),
                            attempts = m.attempts + CAST(r.counted AS integer),
                            refused_channels = CASE WHEN r.refused THEN array_append(m.refused_channels, m.channel)
                                                    ELSE m.refused_channels END,
                            on_wire_at = CASE WHEN r.state = 'unknown' THEN m.on_wire_at END,
                            ask_after = CASE WHEN r.state = 'sent' AND m.channel = 'sms'
                                             THEN r.at + CAST(:first_question AS interval) END,
                            dispatcher = NULL
                        FROM r
                        WHERE m.id = r.id
                          AND (m.state = 'claimed' AND m.dispatcher = :dispatcher OR m.state = 'unknown')
                        RETURNING m.id, m.kind, m.state, m.recipient_id, r.at
                    )
                    UPDATE app_user u SET state = 'invited', invited_at = written.at
                    FROM written
                    WHERE written.kind = 'activation' AND written.state = 'sent' AND u.id = written.recipient_id
                      AND u.state IN ('never_invited', 'invited')"""),
                {
                    "dispatcher": self.id,
                    "first_question": FIRST_QUESTION,
                    "ids": [result.id for result in results],
                    "states": [result.state for result in results],
                    "times": [result.at for result in results],
                    "reasons": [result.reason for result in results],
                    "references": [result.reference for result in results],
                    "send_after": [result.send_after for result in results],
                    "counted": [result.counted for result in results],
                    "refused": [result.refused for result in results],
                },
            )
            noted = [result for result in results if result.answer is not None]
            if noted:
                self._connection.execute(
                    sa.text("""
                        INSERT INTO message_attempt (message_id, at, channel, answer, code)
                        SELECT m.id, n.at, m.channel, n.answer, n.code
                        FROM unnest(CAST(:ids AS bigint[]), CAST(:times AS timestamptz[]), CAST(:answers AS text[]),
                                    CAST(:codes AS text[])) AS n (id, at, answer, code)
                        JOIN message m ON m.id = n.id"""),
                    {
                        "ids": [result.id for result in noted],
                        "times": [result.at for result in noted],
                        "answers": [result.answer for result in noted],
                        "codes": [result.code for result in noted],
                    },
                )

    def refuse(self, results: Sequence[Result], answers: Sequence[Answer], at: datetime) -> None:
        """Write down what was refused or put off by the messages' own fault, after :meth:`record` had them wait, and
        what each answer says of its address; ``results`` and ``answers`` go in pairs."""
        with self._connection.begin():
            note_refusals(self._connection, [result.id for result in results], answers, at)
            self._connection.execute(
                sa.text("""
                    UPDATE message m
                    SET state = r.state, reason = r.reason, changed_at = :at,
                        send_after = coalesce(r.again, send_after), attempts = attempts + 1,
                        refused_channels = CASE WHEN r.refused THEN array_append(refused_channels, channel)
                                                ELSE refused_channels END
                    FROM unnest(CAST(:ids AS bigint[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
                                CAST(:again AS timestamptz[]), CAST(:refused AS boolean[]))
                         AS r (id, state, reason, again, refused)
                    WHERE m.id = r.id AND m.state = 'retry'"""),
                {
                    "at": at,
                    "ids": [result.id for result in results],
                    "states": [result.state for result in results],
                    "reasons": [result.reason for result in results],
                    "again": [result.send_after for result in results],
                    "refused": [result.refused for result in results],
                },
            )

    def give_links(self, links: Sequence[tuple[int, str]], at: datetime, life: timedelta) -> None:
        """Give each (user, token) of an activation e-mail its single-use link, voiding the older ones; the caller
        commits. Only the token's SHA-256 is kept."""
        if not links:
            return
        self._connection.execute(
            sa.text("""
                UPDATE activation_token SET voided_at = :at
                WHERE user_id = ANY (:users) AND used_at IS NULL AND voided_at IS NULL"""),
            {"users": [user for user, _ in links], "at": at},
        )
        self._connection.execute(
            sa.text("""
                INSERT INTO activation_token (token_hash, user_id, created_at, expires_at)
                SELECT sha256(convert_to(token, 'UTF8')), user_id, :at, CAST(:at AS timestamptz) + :life
                FROM unnest(CAST(:users AS bigint[]), CAST(:tokens AS text[])) AS link (user_id, token)"""),
            {"users": [user for user, _ in links], "tokens": [token for _, token in links], "at": at, "life": life},
        )

    def doubtful_texts(self, limit: int, after: int) -> list[Doubt]:
        """Texts of which nobody knows whether they went out, by id."""
        with self._connection.begin():
            rows = self._connection.execute(
                sa.text("""
                    SELECT m.id, CAST(m.idempotency_key AS text), m.attempts, c.code, m.kind
                    FROM message m JOIN clinic c ON c.id = m.clinic_id
                    WHERE m.state = 'unknown' AND m.channel = 'sms' AND m.id > :after ORDER BY m.id LIMIT :limit"""),
                {"limit": limit, "after": after},
            ).all()
        return [Doubt(*row) for row in rows]


def settle(connection: sa.Connection, message_id: int, *, arrived: bool, who: str, at: datetime) -> bool:
    """A person says what became of an unknown message: it arrived, or it may be sent again. Returns False where the
    message is not unknown (any more)."""
    return bool(
        connection.execute(
            sa.text("""
                UPDATE message
                SET state = CASE WHEN :arrived THEN 'sent' ELSE 'retry' END, settled_by = :who, changed_at = :at,
                    sent_at = CASE WHEN :arrived THEN coalesce(on_wire_at, :at) END, on_wire_at = NULL
                WHERE id = :id AND state = 'unknown'"""),
            {"id": message_id, "arrived": arrived, "who": who, "at": at},
        ).rowcount
    )
