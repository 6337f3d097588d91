"""What PostgreSQL, or whoever stands before it, means when it refuses: by SQLSTATE and what was being done, the
sentence and the very SQL for whoever runs the server. Its own words are never passed on: they may quote a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import psycopg
import sqlalchemy as sa
from psycopg.errors import ConnectionTimeout
from sqlalchemy.engine import URL

from polydesk_dagster.database import patience
from polydesk_dagster.database.engine import SESSION, plain_url
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Reason, Term


class Phase(StrEnum):
    """What was being done."""

    CONNECT = "connect"
    MAKE = "make"
    """Making a database."""
    MIGRATE = "migrate"
    WORK = "work"


_MAKE = "CREATE DATABASE {database} OWNER {role} TEMPLATE template0 ENCODING 'UTF8';"
_ROLE = "ALTER ROLE {role} SET "
_SETTINGS = " ".join(f"{_ROLE}{name} = '{value}';" for name, value in SESSION.items())

CASES: dict[tuple[str, Phase | None], tuple[str, str]] = {
    ("28P01", None): ("refused_password", "ALTER ROLE {role} PASSWORD '…';"),
    ("28000", None): ("refused_entry", "host {database} {role} samenet scram-sha-256"),
    ("3D000", None): ("refused_missing", _MAKE),
    ("42501", Phase.CONNECT): ("refused_connect", "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role};"),
    ("42501", Phase.MAKE): ("refused_make", _MAKE),
    ("42501", None): (
        "refused_rights",
        "ALTER DATABASE {database} OWNER TO {role}; GRANT USAGE, CREATE ON SCHEMA public TO {role};",
    ),
    ("40001", Phase.WORK): ("database_busy", ""),
    ("40P01", Phase.WORK): ("database_busy", ""),
    ("55P03", Phase.WORK): ("database_busy", ""),
    ("53100", None): ("refused_disk", ""),
    ("53200", None): ("refused_memory", ""),
    ("53300", None): (
        "refused_full",
        "SELECT usename, count(*) FROM pg_stat_activity GROUP BY 1; ALTER ROLE {role} CONNECTION LIMIT -1;",
    ),
    ("57P01", None): ("refused_restarting", ""),
    ("57P02", None): ("refused_restarting", ""),
    ("57P03", None): ("refused_restarting", ""),
    ("08P01", None): ("refused_pooler", _SETTINGS),
    ("25006", None): ("refused_reading_only", "SELECT pg_is_in_recovery(), current_setting('transaction_read_only');"),
}
"""By SQLSTATE, and by what was being done where that matters: a reason's code, and what its ``sql`` is."""


def known(error: BaseException, url: URL, phase: Phase = Phase.WORK, *, asked: URL | None = None) -> Reason | None:
    """Why PostgreSQL refused what was to be done in the database of ``url``; None where that says nothing of how it is
    set up. Where no connection was to be had, to ``asked`` if that is another, the server is asked once more."""
    original = getattr(error, "orig", error)
    diagnosis = getattr(original, "diag", None)
    sqlstate = getattr(diagnosis, "sqlstate", None)
    if sqlstate is None:
        if not isinstance(error, sa.exc.OperationalError | psycopg.OperationalError):  # COPY raises psycopg's own
            return None
        if isinstance(original, ConnectionTimeout) and asked in (None, url):  # it has had its time
            return Reason("database_unreachable", {"host": host(url)})
        answered, sqlstate = patience.asked(_address(asked or url))
        if answered and sqlstate is None:
            return Reason("database_broke", {"host": host(url)})
        if sqlstate is None:
            return Reason("database_unreachable", {"host": host(url)})
        phase = Phase.CONNECT if phase is Phase.WORK else phase
    return of_state(sqlstate, url, phase)


def of_state(sqlstate: str, url: URL, phase: Phase) -> Reason | None:
    """The same by its SQLSTATE."""
    code, sql = CASES.get((sqlstate, phase)) or CASES.get((sqlstate, None)) or ("", "")
    if not code:
        return Reason("database_refuses", {"error": f"SQLSTATE {sqlstate}"}) if phase is not Phase.WORK else None
    names = {"role": _quoted(url.username or ""), "database": _quoted(str(url.database))}
    said = {"role": url.username or "", "database": str(url.database), "host": host(url)}
    return Reason(code, {**said, "sql": sql.format(**names)} if sql else said)


_BROKEN = {"23505": "twice", "23P01": "overlap", "23514": "value", "23502": "empty"}


def broken(error: sa.exc.IntegrityError, table: str) -> Term:
    """Which kind of rule what was to be written in ``table`` breaks, for whom the name of a constraint says nothing."""
    diagnosis = getattr(error.orig, "diag", None)
    sqlstate, where = getattr(diagnosis, "sqlstate", None) or "", getattr(diagnosis, "table_name", None)
    if sqlstate == "23503":
        return Term("broken", "gone" if where == table else "in_use")
    return Term("broken", _BROKEN.get(sqlstate, "other"))


_OF_THE_SERVER = frozenset({"25", "53", "57", "58"})
"""Classes of SQLSTATE: it only reads, it has no room, it is being stopped, its disk fails."""


def of_the_server(error: BaseException) -> bool:
    """Whether it is the database that is in trouble, and nothing of what it was asked to do to blame."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    sqlstate = getattr(getattr(error.orig, "diag", None), "sqlstate", None) or ""
    nobody = isinstance(error, sa.exc.OperationalError) and not sqlstate  # no connection is to be had, or it is lost
    return error.connection_invalidated or nobody or sqlstate[:2] in _OF_THE_SERVER


def away(error: BaseException) -> bool:
    """Whether the database is not to be had just now: in trouble, or all connections wait for it."""
    return isinstance(error, sa.exc.TimeoutError) or of_the_server(error)


def refused(error: BaseException, url: URL, phase: Phase, *, asked: URL | None = None) -> PermanentError:
    """An error for whoever cannot go on."""
    return _error(known(error, url, phase, asked=asked) or Reason("database_refuses", {"error": type(error).__name__}))


@contextmanager
def told(url: URL, phase: Phase = Phase.WORK) -> Iterator[None]:
    """Whoever works in the database of ``url`` here is told what is wrong with its server, where that is known, and not
    that an operation failed.

    Raises:
        PermanentError: the server does not answer, stops, has no room, or refuses.
    """
    try:
        yield
    except (sa.exc.DBAPIError, psycopg.OperationalError) as error:
        why = known(error, url, phase)
        if why is None:
            raise
        raise _error(why) from None


def refused_pooler(url: URL) -> PermanentError:
    """An error for whose session is not what it asked for."""
    reason = of_state("08P01", url, Phase.CONNECT)
    assert reason is not None
    return _error(reason)


def _error(reason: Reason) -> PermanentError:
    told = PermanentError(reason.code)
    told.reason = reason
    return told


def host(url: URL) -> str:
    """Where a server is, as people are told."""
    where = url.host or str(url.query.get("host", "localhost"))
    return f"{where}:{url.port}" if url.port else where


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _address(url: URL) -> str:
    """As who connects for work says it: that may be what is refused."""
    settings = {"connect_timeout": "10", "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items())}
    return plain_url(url.update_query_dict(settings))
