"""Whether the database was brought back from a copy; then nothing is sent or synced until a person has looked.

What was sent and read after the copy was made is unknown to it. Two things betray one: the row that names the
installation says in which server, database and table it was written, so a dump that is restored lies elsewhere; and
every home counts, outside of the database, how often sending or syncing went out, so files that are put back are
behind.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Instant, Reason, Term

log = logging.getLogger(__name__)

FILE = "installation.json"
"""Under the home: what is known of the database outside of it."""

_HERE = """concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                     (SELECT oid FROM pg_database WHERE datname = current_database()),
                     CAST(CAST('installation' AS regclass) AS oid))"""
_ROW = sa.text(f"""
    SELECT CAST(id AS text) AS id, outings, place, held_since, held_why, {_HERE} AS here,
           EXISTS (SELECT FROM clinic) AS filled
    FROM installation""")


@dataclass(frozen=True, slots=True)
class Known:
    """What a home knows of its installation: its name, and how often something went out, last at ``at`` (RFC 3339)."""

    id: str
    outings: int
    at: str

    @classmethod
    def of(cls, home: Path) -> Known | None:
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((home / FILE).read_text()))
        return None

    def keep(self, home: Path) -> None:
        """Whole or not at all; never a smaller count than before. A home without room stops nobody's reminder: a file
        that is behind is no sign of a copy, and the next one that goes out is counted again."""
        before = Known.of(home)
        if before is not None and before.id == self.id and before.outings >= self.outings:
            return
        draft = home / f"{FILE}.{self.outings}"
        try:
            home.mkdir(parents=True, exist_ok=True)
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(asdict(self)))
            draft.replace(home / FILE)
        except OSError as error:
            log.warning("%s was not written: %s", FILE, os.strerror(error.errno or 0))
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def noticed_restore(connection: sa.Connection, home: Path, as_of: datetime) -> Reason | None:
    """Why nothing may be sent or synced here, or None. What is noticed for the first time is written down, in the
    caller's transaction."""
    known = Known.of(home)  # before the row, which is counted first: what goes out meanwhile is in both or in the row
    row = connection.execute(_ROW).one()
    if row.held_since is not None:
        return _reason(row.held_since, row.held_why)
    why = _betrayed(row, known)
    if why is None:
        return None
    hold(connection, as_of, why)
    if row.place is None and known is not None:  # a copy from before there were names: its keys are to go on
        connection.execute(sa.text("UPDATE installation SET id = CAST(:id AS uuid)"), {"id": known.id})
    return _reason(as_of, why)


def _betrayed(row: Any, known: Known | None) -> str | None:
    if row.place is not None and row.place != row.here:
        return "elsewhere"
    if known is None:
        return None
    if known.id != row.id:
        return "another" if row.filled else None
    return "behind" if known.outings > row.outings else None


def hold(connection: sa.Connection, as_of: datetime, why: str = "told") -> None:
    """Keep everything in from now on; for whoever restores."""
    connection.execute(
        sa.text("UPDATE installation SET held_since = :at, held_why = :why WHERE held_since IS NULL"),
        {"at": as_of, "why": why},
    )


def moved(connection: sa.Connection) -> None:
    """What lies here is no copy beside another, but all that there is: for whoever takes an installation elsewhere."""
    connection.execute(sa.text(f"UPDATE installation SET place = {_HERE} WHERE place IS NOT NULL"))


def go_out(engine: sa.Engine, home: Path, as_of: datetime) -> Reason | None:
    """Count that something goes out, or has gone out, to others; None, or why nothing may."""
    with engine.begin() as connection:
        held = noticed_restore(connection, home, as_of)
        if held is not None:
            return held
        known = _count(connection, as_of)
    known.keep(home)
    return None


def _count(connection: sa.Connection, as_of: datetime) -> Known:
    row = connection.execute(
        sa.text(f"""UPDATE installation SET outings = outings + 1, place = {_HERE}
                    RETURNING CAST(id AS text) AS id, outings""")
    ).one()
    return Known(row.id, row.outings, as_of.isoformat())


def accept(engine: sa.Engine, home: Path, *, actor: str, reason: str, as_of: datetime) -> bool:
    """A person has looked: from now on this database is the installation. Returns whether anything was held.

    Raises:
        PermanentError: without a reason.
    """
    from polydesk_dagster.changes import audit

    if not audit.is_reason(reason):
        raise PermanentError("reason_missing", least=audit.LEAST_REASON)
    known = Known.of(home)
    with engine.begin() as connection:
        held = noticed_restore(connection, home, as_of)
        if held is None:
            return False
        connection.execute(
            sa.text("""UPDATE installation SET held_since = NULL, held_why = NULL,
                                               outings = greatest(outings, CAST(:outings AS bigint))"""),
            {"outings": known.outings if known else 0},
        )
        now = _count(connection, as_of)
        detail = {"reason": reason, "why": held.code}
        audit.append(
            connection, as_of=as_of, actor=actor, action="accept_restore", service="installation", detail=detail
        )
    now.keep(home)
    return True


def _reason(since: datetime, why: str) -> Reason:
    return Reason("restored", {"since": Instant(since), "why": Term("restored", why)})
