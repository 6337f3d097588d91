"""The demo's chain of clinics, the same for the same seed, laid out around the moment at which it is loaded."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import psycopg
import sqlalchemy as sa

from polydesk_dagster.demo import diary, people, practice
from polydesk_dagster.demo.draft import Draft
from polydesk_dagster.demo.places import municipalities
from polydesk_dagster.demo.sheets import Sheets
from polydesk_dagster.demo.time_line import TimeLine
from polydesk_dagster.errors import PermanentError

_AHEAD = 120
"""Days after ``as_of`` that the calendar knows."""
PORTAL = "https://portale.aurora.example/attiva"
"""Where the links of the chain's activation e-mails lead."""


@dataclass(frozen=True, slots=True)
class Size:
    """Specialists and agendas are of the whole chain and shared evenly: multiples of ``clinics``."""

    clinics: int
    specialists: int
    agendas: int
    patients: int
    history_days: int


SIZES: Mapping[str, Size] = {
    "small": Size(clinics=2, specialists=6, agendas=12, patients=300, history_days=120),
    "chain": Size(clinics=4, specialists=60, agendas=120, patients=20_000, history_days=730),
    "large": Size(clinics=10, specialists=400, agendas=1_000, patients=200_000, history_days=730),
}


@dataclass(frozen=True, slots=True)
class Summary:
    rows: Mapping[str, int]
    """Rows by table."""
    seconds: float


def is_empty(connection: sa.Connection) -> bool:
    """Whether the database holds no clinic and no patient yet."""
    return bool(
        connection.execute(
            sa.text("SELECT NOT EXISTS (SELECT FROM clinic) AND NOT EXISTS (SELECT FROM patient)")
        ).scalar_one()
    )


def load(engine: sa.Engine, size: str | Size = "chain", seed: int = 2026, *, as_of: datetime) -> Summary:
    """Fill an empty, migrated database in one transaction.

    What is booked ahead sits on slots that the agendas' rules produce, on days that neither the desk nor the central
    server closes, but for a handful that the first night finds orphaned. The free slots ahead are left to the service
    that generates them.

    Raises:
        PermanentError: if the database already holds clinics or patients.
    """
    began = time.monotonic()
    size = SIZES[size] if isinstance(size, str) else size
    with Sheets() as sheets, engine.begin() as connection:
        connection.execute(sa.text("LOCK TABLE clinic, patient IN SHARE ROW EXCLUSIVE MODE"))
        if not is_empty(connection):
            raise PermanentError("demo_not_empty")
        rng = random.Random(f"{seed}/chain")  # noqa: S311 - repeatable on purpose
        draft = Draft(sheets, TimeLine(as_of, size.history_days, _AHEAD), rng)
        towns = municipalities()
        for town in towns:
            sheets["municipality"].add(**town._asdict())
        clinics = practice.build(draft, size.clinics, size.specialists, size.agendas)
        population = people.build(draft, clinics.clinics, towns, size.patients)
        diary.fill(draft, clinics, population, seed)
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        with driver.cursor() as cursor:
            for sheet in sheets:
                sheet.pour(cursor)
        connection.execute(
            sa.text("UPDATE message_policy SET portal_url = :url WHERE clinic_id IS NULL"), {"url": PORTAL}
        )
        rows = {sheet.table: sheet.rows for sheet in sheets}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"ANALYZE {', '.join(rows)}"))
    return Summary(rows, time.monotonic() - began)


def integrations(engine: sa.Engine, base_url: str, token_env: str) -> None:
    """Point every clinic at the studiolab that answers under ``base_url``; the chain's last clinic has none yet.

    ``{clinic}`` in the address becomes the clinic's code in lower case.
    """
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                """INSERT INTO integration (clinic_id, base_url, token_env, active)
                   SELECT id, replace(:base_url, '{clinic}', lower(code)), :token_env,
                          count(*) OVER () = 1 OR id < max(id) OVER ()
                   FROM clinic
                   ON CONFLICT (clinic_id) DO UPDATE SET base_url = excluded.base_url,
                       token_env = excluded.token_env, active = excluded.active, updated_at = now()"""
            ),
            {"base_url": base_url, "token_env": token_env},
        )
