"""Who may do what in the embedded server: a role for each kind of process, none of them a superuser.

The server's administrator makes roles and databases here, whenever the schema is brought up to date; homes from before
there were roles hand over what the administrator owned.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import BUSINESS, DAGSTER, Role, create_engine

PUBLIC = ("alembic_version", "clinic", "cache_current", "cache_version")
"""What the front reads: the caches hold what a clinic shows to everybody, the first which programs suit them."""

APPENDED = ("audit", "service_switch")
"""What the services add to and never change."""

SECRETS = (
    *("user_password", "web_session", "login_link", "login_attempt", "oidc_journey", "activation_token"),
    *("verification", "front_token", "front_answer", "front_booking", "message_secret"),
)
"""What proves who somebody is: nothing that only shows something reads it."""

_MAKE = """DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} LOGIN; END IF; END $$"""

_HAND_OVER = """
DO $$ DECLARE thing record; BEGIN
    FOR thing IN
        SELECT CASE WHEN c.relkind IN ('S') THEN 'SEQUENCE' WHEN c.relkind = 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind,
               format('%I.%I', n.nspname, c.relname) AS name,
               CASE n.nspname WHEN 'plan_rows' THEN '{rows}' ELSE '{owner}' END AS whose
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
        WHERE n.nspname IN ('public', 'plan_rows') AND r.rolname = '{before}' AND c.relkind IN ('r', 'p', 'v', 'S')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
        UNION ALL
        SELECT 'ROUTINE', CAST(CAST(p.oid AS regprocedure) AS text), '{owner}'
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles r ON r.oid = p.proowner
        WHERE n.nspname = 'public' AND r.rolname = '{before}'
        UNION ALL
        SELECT 'SCHEMA', format('%I', n.nspname), '{owner}' FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
        WHERE n.nspname IN ('public', 'plan_rows') AND r.rolname IN ('{before}', 'pg_database_owner')
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO %I', thing.kind, thing.name, thing.whose);
    END LOOP;
END $$"""


def prepare(home: Path) -> None:
    """Make the roles and the two databases where they are missing, and hand over what the administrator owns."""
    server = make_url(embedded.url(home)).set(drivername="postgresql+psycopg")
    _as(server.set(database="postgres"), *(_MAKE.format(role=role) for role in Role))
    for database, owner in ((BUSINESS, Role.OWNER), (DAGSTER, Role.DAGSTER)):
        _make(server, database, owner)
        rows = Role.APP if database == BUSINESS else owner
        statement = _HAND_OVER.format(owner=owner, rows=rows, before=embedded.ADMINISTRATOR)
        _as(server.set(database=database), statement, *_to_read(rows))


def _to_read(owner: Role) -> tuple[str, ...]:
    """What lets the reader see the tables that ``owner`` has and will make, without being asked again."""
    return (
        f"GRANT USAGE ON SCHEMA public TO {Role.READER}",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO {Role.READER}",
        f"""DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tableowner = '{owner}' LOOP
                EXECUTE format('GRANT SELECT ON %s TO {Role.READER}', name);
            END LOOP;
        END $$""",
    )


def hand_over(home: Path, before: str) -> None:
    """Give everybody of our database what is theirs of it, where all of it belongs to the role ``before``."""
    server = make_url(embedded.url(home)).set(drivername="postgresql+psycopg", database=BUSINESS)
    _as(server, _HAND_OVER.format(owner=Role.OWNER, rows=Role.APP, before=before))


def _make(server: URL, database: str, owner: Role) -> None:
    engine = create_engine(server.set(database="postgres"), pool_size=1)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            known = connection.scalar(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": database})
            if not known:
                connection.execute(
                    sa.text(f"CREATE DATABASE {database} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'")
                )
            statements = [
                f"ALTER DATABASE {database} OWNER TO {owner}",
                f"REVOKE ALL ON DATABASE {database} FROM PUBLIC",
                f"GRANT CONNECT ON DATABASE {database} TO {Role.READER}",
            ]
            if database == BUSINESS:
                statements += [
                    f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {Role.APP}",
                    f"GRANT CONNECT ON DATABASE {database} TO {Role.FRONT}",
                ]
            for statement in statements:
                connection.execute(sa.text(statement))
    finally:
        engine.dispose()


def grant(connection: sa.Connection) -> None:
    """What each role may do with the tables that there are now, in the owner's transaction."""
    everything = "SELECT, INSERT, UPDATE, DELETE, MAINTAIN"
    appended = ", ".join(APPENDED)
    for statement in (
        f"GRANT USAGE ON SCHEMA public TO {Role.APP}, {Role.FRONT}",
        f"GRANT {everything} ON ALL TABLES IN SCHEMA public TO {Role.APP}",
        f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {Role.APP}",
        f"REVOKE UPDATE, DELETE ON {appended} FROM {Role.APP}",
        f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {Role.APP}",
        f"GRANT USAGE, CREATE ON SCHEMA plan_rows TO {Role.APP}",
        f"GRANT SELECT ON {', '.join(PUBLIC)} TO {Role.FRONT}",
        f"GRANT USAGE ON SCHEMA public, plan_rows TO {Role.READER}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {Role.READER}",
        f"REVOKE ALL ON {', '.join(SECRETS)} FROM {Role.READER}",
    ):
        connection.execute(sa.text(statement))


def _as(url: URL, *statements: str) -> None:
    engine = create_engine(url, pool_size=1)
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7301000002)"))
            for statement in statements:
                connection.execute(sa.text(statement))
    finally:
        engine.dispose()
