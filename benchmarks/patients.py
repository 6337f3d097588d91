"""New patients from studiolab's pages to committed rows, beside plain COPY plus INSERT and beside dlt.

All begin with the same bytes on the wire. Measured is CPU, of this process and of the server: for the first import of
a process, as who presses a button waits for it, and for more clinics of the same chain after it, as in a night. Either
side finds its modules loaded, its certificates read and its connection open; the reference's tables grow as ours do.
"""

from __future__ import annotations

import gc
import importlib.util
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import psycopg
import sqlalchemy as sa
from codicefiscale import codicefiscale

from benchmarks import wire
from benchmarks.harness import Bench, Figure, cpu, peak_mb, settle
from polydesk_dagster import network
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.clinic.patients.fiscal_codes import birth_part, check_letter
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.outcome import Report
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.studiolab.client import Studiolab

AS_OF = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
SIZES = (10_000, 100_000, 1_000_000)
CLINICS = 7
"""Of the smallest size: the first of a process, and more after it."""
COLUMNS = ("id", "fiscal_code", "last_name", "first_name", "sex", "birth_date", "birth_place", "residence", "address",
           "postal_code", "email", "phone", "mobile", "deceased_on")  # fmt: skip
FIRST_NAMES = {"M": ("Marco", "Luca", "Paolo", "Giorgio", "Dario", "Enzo", "Sandro", "Ugo"),
               "F": ("Anna", "Giulia", "Sara", "Chiara", "Elena", "Marta", "Irene", "Lucia")}  # fmt: skip
SYLLABLES = ("ba", "cor", "del", "fer", "gal", "lom", "mar", "ner", "pel", "ros", "san", "tor", "ver", "zan", "bri")
PLACES = ("A944", "H501", "F205", "L219", "D612", "F839", "G273", "D969", "A662", "L736", "Z129", "Z330")


def records(count: int, clinic: int = 0) -> Iterator[dict[str, Any]]:
    """As studiolab's bodies hold them; one in fifty without a fiscal code. Each ``clinic`` has others."""
    dice = random.Random(7 + clinic)
    surnames = ["".join(parts).capitalize() + "i" for parts in product(SYLLABLES, repeat=3)]
    codes = {name: codicefiscale.encode_lastname(name) for name in surnames}
    firsts = {name: codicefiscale.encode_firstname(name) for names in FIRST_NAMES.values() for name in names}
    days = [date(1930, 1, 1) + timedelta(days=n) for n in range(33_000)]
    births = {(d, s): birth_part(d.isoformat(), s) for d in days for s in ("M", "F")}
    for number in range(count):
        sex = "MF"[number % 2]
        last, first = dice.choice(surnames), dice.choice(FIRST_NAMES[sex])
        day, place = dice.choice(days), dice.choice(PLACES)
        code = codes[last] + firsts[first] + births[day, sex] + place
        yield {
            "id": f"P{number:07d}",
            "fiscal_code": None if number % 50 == 0 else code + check_letter(code),
            "last_name": last,
            "first_name": first,
            "sex": sex,
            "birth_date": day.isoformat(),
            "birth_place": place,
            "residence": "A944",
            "address": f"Via Emilia Levante {number % 500}",
            "postal_code": "40139",
            "email": f"{first.lower()}.{last.lower()}{number}@example.it",
            "phone": None,
            "mobile": f"333{number % 10_000_000:07d}",
            "deceased_on": None,
            "updated_at": "2026-01-01T10:00:00+01:00",
        }


def _import(engine: sa.Engine, code: str, clinic: int, url: str) -> Report:
    with Studiolab(code, url, "token") as client:
        scope = Scope("import_patients", code, clinic)
        return lists.synchronise(engine, client, "patients", scope, as_of=AS_OF)


REFERENCE = """
    CREATE TABLE reference (LIKE patient INCLUDING ALL);
    ALTER TABLE reference ADD FOREIGN KEY (guardian_id) REFERENCES reference;
    CREATE TABLE reference_link (LIKE patient_link INCLUDING ALL);
    ALTER TABLE reference_link ADD FOREIGN KEY (patient_id) REFERENCES reference;
    ALTER TABLE reference_link ADD FOREIGN KEY (clinic_id) REFERENCES clinic
"""


COPIED = ", ".join(COLUMNS)
TYPED = ", ".join(f"{name} text" for name in COLUMNS)


def _reference(engine: sa.Engine, connection: psycopg.Connection[Any], clinic: int, url: str) -> tuple[float, float]:
    """The same records by COPY into an unlogged table, and one INSERT … SELECT into tables identical to ours: the CPU
    seconds for the patients alone, and for the patients with the links to studiolab that we write too."""

    def patients_alone() -> None:
        connection.execute(f"CREATE UNLOGGED TABLE incoming ({TYPED})".encode())
        with connection.cursor().copy(f"COPY incoming ({COPIED}) FROM STDIN".encode()) as copy:
            for items in wire.pages(url, "patients"):
                for item in items:
                    copy.write_row([item[name] for name in COLUMNS])
        connection.execute("""
            INSERT INTO reference (fiscal_code, fiscal_code_canonical, fiscal_code_kind, last_name, first_name,
                                   sex, birth_date, birth_place, residence, address, postal_code, email, phone,
                                   mobile, deceased_on)
            SELECT fiscal_code, fiscal_code, CASE WHEN fiscal_code IS NOT NULL THEN 'CF' END, last_name,
                   first_name, sex, CAST(birth_date AS date), birth_place, residence, address, postal_code, email,
                   phone, mobile, CAST(deceased_on AS date)
            FROM incoming""")
        connection.commit()

    def links() -> None:
        connection.execute(
            """INSERT INTO reference_link (clinic_id, external_id, patient_id, made_by, plan_id, made_at)
               SELECT %s, i.id, (SELECT max(id) FROM reference) + 1 - row_number() OVER (), 'created', 1, now()
               FROM incoming i""",
            [clinic],
        )
        connection.commit()

    alone = cpu(engine, patients_alone)
    both = alone + cpu(engine, links)
    connection.execute("DROP TABLE incoming")
    connection.commit()
    return alone, both


def _new_clinic(connection: sa.Connection, code: str) -> int:
    made = connection.execute(
        sa.text("""INSERT INTO clinic (code, name, region, municipality_code)
                   VALUES (:code, 'Prova', 'Emilia-Romagna', 'A944') RETURNING id"""),
        {"code": code},
    )
    return int(made.scalar_one())


def _dlt(engine: sa.Engine, url: str) -> float:
    """CPU seconds of dlt's own client, page by page, and its merge into a schema of its own."""
    import dlt
    from dlt.sources.helpers.rest_client.client import RESTClient
    from dlt.sources.helpers.rest_client.paginators import (
        JSONResponseCursorPaginator,
    )

    paginator = JSONResponseCursorPaginator(cursor_path="next_page", cursor_param="page")
    client = RESTClient(base_url=url, paginator=paginator, data_selector="items")
    with TemporaryDirectory() as state:
        pipeline = dlt.pipeline(
            "patients",
            pipelines_dir=state,
            destination=dlt.destinations.postgres(
                credentials={
                    "database": engine.url.database,
                    "username": engine.url.username,
                    "password": engine.url.password or "none",
                    "host": quote(str(engine.url.query.get("host") or engine.url.host), safe=""),
                    "port": engine.url.port or 5432,
                }
            ),
            dataset_name="peer",
        )
        records = client.paginate("patients", params={"limit": wire.PAGE})
        return cpu(
            engine,
            lambda: pipeline.run(records, table_name="patient", write_disposition="merge", primary_key="id"),
        )


def _peers() -> bool:
    """Whether the peer is there: it is in the dependency group "bench"."""
    return importlib.util.find_spec("dlt") is not None


@dataclass
class Spent:
    """CPU seconds of one clinic."""

    alone: float
    reference: float
    ours: float
    again: float


def _measured(bench: Bench, place: Path, url: str, count: int, clinics: int) -> list[Spent]:
    """Of so many clinics of one chain, one after the other."""
    spent: list[Spent] = []
    with bench.engine() as engine, psycopg.connect(plain_url(engine.url)) as plain:
        for statement in REFERENCE.split(";"):
            plain.execute(statement.encode())
        plain.commit()
        for number in range(clinics):
            wire.write(place, "patients", records(count, number), count)
            spent.append(_spent(engine, plain, f"B{number + 1}", url, count))
    return spent


def _spent(engine: sa.Engine, plain: psycopg.Connection[Any], code: str, url: str, count: int) -> Spent:
    with engine.begin() as connection:
        clinic = _new_clinic(connection, code)
    _settled(engine)
    alone, reference = _reference(engine, plain, clinic, url)
    _settled(engine)
    reports: list[Report] = []
    first = cpu(engine, lambda: reports.append(_import(engine, code, clinic, url)))
    _settled(engine)
    assert reports[0].counts.created > 0.99 * count, reports[0]
    again = cpu(engine, lambda: reports.append(_import(engine, code, clinic, url)))
    assert reports[1].counts.changed == 0, reports[1]
    return Spent(alone, reference, first, again)


def _settled(engine: sa.Engine) -> None:
    """What whoever was before has left is cleared away: by the server, and in this process."""
    settle(engine)
    gc.collect()


def _figures(count: int, spent: list[Spent]) -> Iterator[Figure]:
    first, rest = spent[0], spent[1:]
    many = f"{count} new with their links, from the wire to committed rows"
    yield Figure("patients", many, first.ours, first.reference, "CPU s", 1.5)
    if rest:
        ours, reference = (median(getattr(each, side) for each in rest) for side in ("ours", "reference"))
        yield Figure("patients", f"{many}, of each clinic after it", ours, reference, "CPU s", 1.5)
    yield Figure("patients", f"{count}, beside the patients without links", first.ours, first.alone, "CPU s", 1.5)
    yield Figure("patients", f"{count} read again, beside the first time", first.again, first.ours, "CPU s", 0.4)


def figures(bench: Bench) -> Iterator[Figure]:
    sizes: dict[int, list[Spent]] = {}
    network.trust()
    with TemporaryDirectory() as folder, wire.serving(place := Path(folder)) as url:
        for count in map(bench.size, SIZES):
            sizes[count] = _measured(bench, place, url, count, CLINICS if not sizes else 1)
            yield from _figures(count, sizes[count])
        peak = peak_mb()
        yield Figure("patients", "Python's memory, beside its bound", peak, 400.0, "MB", 1.0, peak_mb=peak)
        if not _peers():
            return
        for count, (first, *_) in sizes.items():
            per = "rows/CPU s"
            wire.write(place, "patients", records(count), count)
            with bench.engine() as engine:
                peer = count / _dlt(engine, url)
            name = f"{count} a second, beside dlt's merge of the same"
            yield Figure("patients", name, count / first.ours, peer, per, 3.0, at_least=True)
            name = f"{count} a second of the reference with links, beside dlt's"
            yield Figure("patients", name, count / first.reference, peer, per, 3.0, at_least=True)
