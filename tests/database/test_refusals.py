"""What PostgreSQL refuses is said with its remedy, by what it really answers: each case is made on a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster import definitions
from polydesk_dagster.database import patience, programs, refusals
from polydesk_dagster.database.engine import SESSION, create_engine, plain_url
from polydesk_dagster.database.migrate import create_database, migrate
from polydesk_dagster.database.refusals import Phase
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import checking
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.values import Term
from tests import debian, postgres
from tests.waiting import PATIENCE, until

assert psycopg2.__libpq_version__, "the other libpq is in this process too, as wherever Dagster is"

ROLES = (
    "CREATE ROLE desk LOGIN PASSWORD 'right'",
    "CREATE ROLE many LOGIN CONNECTION LIMIT 0",
    "CREATE DATABASE clinics OWNER desk",
    "CREATE DATABASE clinics_dagster",
    "CREATE DATABASE closed",
    "REVOKE ALL ON DATABASE closed FROM PUBLIC",
    "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 OWNER desk",
)


@pytest.fixture(scope="module")
def own() -> Iterator[URL]:
    """A server whose settings the tests may change; its words are Italian where it has them."""
    with postgres.started() as url:
        with (_data(url) / "pg_ident.conf").open("a") as accounts:  # as whom pgbouncer runs where we are root
            accounts.write(f"polydesk {programs.SERVER_ACCOUNT} all\n")
        postgres.do(url, *ROLES, "SELECT pg_reload_conf()")
        yield url.set(database="clinics")


def _why(url: URL, phase: Phase = Phase.CONNECT) -> refusals.Reason:
    """Why a connection is not to be had."""
    engine = create_engine(url, pool_size=1)
    with pytest.raises(sa.exc.OperationalError) as refused:
        engine.connect()
    why = refusals.known(refused.value, url, phase)
    assert why is not None
    return why


@pytest.mark.parametrize(
    ("given", "code", "sql"),
    [
        ({"database": "nowhere"}, "refused_missing", 'CREATE DATABASE "nowhere" OWNER "postgres"'),
        ({"username": "nobody"}, "refused_entry", 'host "clinics" "nobody"'),
        ({"username": "desk", "database": "closed"}, "refused_connect", 'ON DATABASE "closed" TO "desk"'),
        ({"username": "many"}, "refused_full", 'ALTER ROLE "many" CONNECTION LIMIT -1'),
    ],
)
def test_who_is_not_let_in_is_told_why_and_what_to_do(own: URL, given: dict[str, str], code: str, sql: str) -> None:
    why = _why(own.set(**given))  # type: ignore[arg-type]
    assert (why.code, sql in str(why.values["sql"])) == (code, True)
    for language in LANGUAGES:
        assert sql in teller(language).reason(why)


def test_a_wrong_password_is_called_so(own: URL) -> None:
    folder = _data(own)
    before = (folder / "pg_hba.conf").read_text()
    (folder / "pg_hba.conf").write_text("local all desk scram-sha-256\n" + before)
    postgres.do(own, "SELECT pg_reload_conf()")
    try:
        right = own.set(username="desk", password="right")
        create_engine(right, pool_size=1).connect().close()
        assert _why(right.set(password="wrong")).code == "refused_password"
    finally:
        (folder / "pg_hba.conf").write_text(before)
        postgres.do(own, "SELECT pg_reload_conf()")


def test_nobody_there_is_called_so(own: URL) -> None:
    elsewhere = own.set(host="127.0.0.1", port=9, query={})
    assert _why(elsewhere) == refusals.Reason("database_unreachable", {"host": "127.0.0.1:9"})


def test_who_takes_a_connection_and_says_nothing_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "asked", lambda _: pytest.fail("it has had its time"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = make_url(f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/x")
        engine = sa.create_engine(url, connect_args={"connect_timeout": 2})
        with pytest.raises(sa.exc.OperationalError) as refused:
            engine.connect()
    why = refusals.known(refused.value, url, Phase.CONNECT)
    assert why is not None
    assert why.code == "database_unreachable"


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("INSERT INTO room VALUES (1, 3, NULL)", "twice"),
        ("INSERT INTO room VALUES (2, 3, '[5,9)')", "overlap"),
        ("INSERT INTO room VALUES (2, -3, NULL)", "value"),
        ("INSERT INTO room VALUES (2, NULL, NULL)", "empty"),
        ("DELETE FROM room", "in_use"),
        ("UPDATE room SET id = 9", "in_use"),
        ("INSERT INTO room VALUES (2, 3, NULL, 77)", "gone"),
    ],
)
def test_a_broken_rule_is_told_by_its_kind(own: URL, statement: str, word: str) -> None:
    engine = create_engine(own, pool_size=1)
    with engine.connect() as connection:
        for made in (
            """CREATE TEMP TABLE room (id bigint PRIMARY KEY, size integer NOT NULL CHECK (size > 0), used int8range,
                                       beside bigint REFERENCES room, EXCLUDE USING gist (used WITH &&))""",
            "CREATE TEMP TABLE bed (room bigint REFERENCES room)",
            "INSERT INTO room VALUES (1, 3, '[1,6)')",
            "INSERT INTO bed VALUES (1)",
        ):
            connection.execute(sa.text(made))
        with pytest.raises(sa.exc.IntegrityError) as refused:
            connection.execute(sa.text(statement))
    engine.dispose()
    term = refusals.broken(refused.value, "room")
    assert (term, teller().value(term) != word) == (Term("broken", word), True)


def test_whoever_may_make_no_database_is_told_who_makes_it(own: URL) -> None:
    url = own.set(username="desk", database="more")
    with pytest.raises(PermanentError) as refused:
        create_database(url)
    assert refused.value.reason.code == "refused_make"
    assert 'CREATE DATABASE "more" OWNER "desk"' in str(refused.value.reason.values["sql"])


def test_what_is_there_is_found_without_a_way_into_any_other_database(own: URL) -> None:
    postgres.do(own, "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    try:
        assert create_database(own.set(username="desk")) is False
        with pytest.raises(PermanentError, match="refused_make"):
            create_database(own.set(username="desk", database="more"))
    finally:
        postgres.do(own, "GRANT CONNECT ON DATABASE postgres TO PUBLIC")


def test_a_schema_that_is_another_s_and_a_replica_are_told_while_working(own: URL) -> None:
    engine = create_engine(own.set(username="desk", database="postgres"), pool_size=1)
    for first, code in (("SELECT 1", "refused_rights"), ("SET transaction_read_only = on", "refused_reading_only")):
        with engine.connect() as connection:
            connection.execute(sa.text(first))
            with pytest.raises(sa.exc.DBAPIError) as refused:
                connection.execute(sa.text("CREATE TABLE mine ()"))
        why = refusals.known(refused.value, engine.url)
        assert why is not None
        assert why.code == code
    engine.dispose()


@pytest.mark.slow
def test_a_pooler_in_front_is_known_and_told_how_to_be(
    own: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if debian.program("pgbouncer", package="pgbouncer") is None:
        pytest.skip("needs Debian's package pgbouncer, or root to install it")
    migrated = create_engine(own, pool_size=1)
    migrate(migrated)
    migrated.dispose()
    with _pooler(own, tmp_path / "strict", "") as url:
        why = _why(url)
        assert why.code == "refused_pooler"
        assert "ALTER ROLE \"postgres\" SET timezone = 'UTC'" in str(why.values["sql"])
    lenient = "ignore_startup_parameters = options\npool_mode = transaction\n"
    with _pooler(own, tmp_path / "shared", lenient) as url:
        assert _checked(url)["session"] == "refused_pooling"
        assert "un pooler" in _swept(url, tmp_path, monkeypatch)
    with _pooler(own, tmp_path / "silent", lenient.replace("transaction", "session")) as url:
        assert _checked(url)["session"] == "refused_pooler"
        assert "ALTER ROLE" in _swept(url, tmp_path, monkeypatch)
        postgres.do(own, *(f"ALTER ROLE postgres SET {name} = '{value}'" for name, value in SESSION.items()))
    with _pooler(own, tmp_path / "still_shared", lenient) as url:
        assert "pool_mode = session" in _swept(url, tmp_path, monkeypatch)
    with _pooler(own, tmp_path / "right", lenient.replace("transaction", "session")) as url:
        assert set(_checked(url).values()) == {None}
        assert _swept(url, tmp_path, monkeypatch) == ""


def _swept(url: URL, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why a service does not run there, as Dagster shows it; nothing where it does."""
    monkeypatch.setenv("POLYDESK_HOME", str(home))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(url))
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.defs.resolve_job_def("release_expired_holds")
        done = job.execute_in_process(instance=instance, raise_on_error=False)
    failed = [event.step_failure_data for event in done.all_events if event.is_step_failure]
    return str(failed[0].user_failure_data.description) if failed else ""  # type: ignore[union-attr]


def test_the_check_says_of_an_old_encoding_and_an_empty_database(own: URL, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=plain_url(own.set(database="latin")))
    found = {each.what: each.why and each.why.code for each in checking.look(settings)}
    assert (found["ours"], found["encoding"], found["schema"]) == (None, "not_utf8", "schema_missing")


@pytest.mark.parametrize(("role", "code"), [("postgres", "made_by_migrating"), ("desk", "refused_missing")])
def test_the_check_sends_nobody_to_the_server_for_a_database_that_we_make(own: URL, role: str, code: str) -> None:
    assert _checked(own.set(database="latin", username=role))["theirs"] == code


@pytest.mark.slow
def test_a_server_that_stops_is_called_so() -> None:
    """57P03, of a server that waits for its last guest; whoever is in meanwhile is thrown out with 57P01."""
    with postgres.started() as url, create_engine(url.set(database="postgres")).connect() as guest:
        guest.execute(sa.text("SELECT 1"))
        backend = guest.scalar(sa.text("SELECT pg_backend_pid()"))
        guest.commit()
        programs.run("pg_ctl", "stop", "-W", "-m", "smart", "-D", str(_data(url)), data=_data(url))
        until(lambda: _refusal(url) == "refused_restarting")
        assert backend


def _refusal(url: URL) -> str | None:
    engine = create_engine(url.set(database="postgres"), pool_size=1)
    try:
        engine.connect().close()
    except sa.exc.OperationalError as error:
        why = refusals.known(error, url.set(database="postgres"))
        return why.code if why is not None else None
    finally:
        engine.dispose()
    return None


def _checked(url: URL) -> dict[str, str | None]:
    settings = Settings(home=Path("nowhere"), database_url=plain_url(url))
    return {each.what: each.why and each.why.code for each in checking.look(settings)}


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def _pooler(url: URL, folder: Path, more: str) -> Iterator[URL]:
    """pgbouncer before the server, on a socket of its own; its account is that of the tests unless they are root."""
    folder.mkdir()
    place = Path(tempfile.mkdtemp(prefix="polydesk-pool-", dir="/tmp"))
    account = [] if os.geteuid() else ["-u", programs.SERVER_ACCOUNT]
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={url.query['host']}\n[pgbouncer]\nunix_socket_dir = {place}\nlisten_port = 6543\n"
        f"auth_type = trust\nauth_file = {folder / 'users.txt'}\n{more}"
    )
    for path in (place, *folder.parents, folder):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    place.chmod(0o777)
    program = str(debian.program("pgbouncer", package="pgbouncer"))
    process = subprocess.Popen([program, *account, str(folder / "pgbouncer.ini")], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _listens(place / ".s.PGSQL.6543"))
        yield url.set(port=6543, query={"host": str(place)})
    finally:
        process.terminate()
        process.wait(PATIENCE)
        shutil.rmtree(place, ignore_errors=True)


def _data(url: URL) -> Path:
    return Path(str(url.query["host"]))


def test_a_full_disk_is_called_so_and_quotes_no_row(own: URL) -> None:
    """A tablespace on a disk of 8 MB, where this machine lets one be mounted."""
    disk = Path(tempfile.mkdtemp(prefix="polydesk-disk-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=8M,mode=0777", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        disk.rmdir()
        pytest.skip("no disk may be mounted here")
    engine = create_engine(own, pool_size=1)
    try:
        shutil.chown(disk, programs.SERVER_ACCOUNT)
        postgres.do(own, f"CREATE TABLESPACE small LOCATION '{disk}'")
        with pytest.raises(sa.exc.DBAPIError) as refused, engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE filling TABLESPACE small AS SELECT 'Rossi' || n FROM"
                                       " generate_series(1, 1000000) n"))  # fmt: skip
        why = refusals.known(refused.value, own)
        assert why is not None
        assert why.code == "refused_disk"
        assert "Rossi1" not in str(refused.value)
        postgres.do(own, "DROP TABLESPACE small")
    finally:
        engine.dispose()
        subprocess.run(["umount", str(disk)], check=False)
        disk.rmdir()
