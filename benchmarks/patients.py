"""A million new patients from studiolab's pages to committed rows, beside plain COPY plus INSERT and beside dlt."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import psycopg
import sqlalchemy as sa
from codicefiscale import codicefiscale

from benchmarks.harness import Bench, Figure, peak_mb, seconds, settle
from polydesk_dagster.answers import decode
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import synchronise
from polydesk_dagster.clinic.patients import identity as patients
from polydesk_dagster.clinic.patients.fiscal_codes import birth_part, check_letter
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.outcome import Report

AS_OF = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
PAGE = 1000
COLUMNS = ("id", "fiscal_code", "last_name", "first_name", "sex", "birth_date", "birth_place", "residence", "address",
           "postal_code", "email", "phone", "mobile", "deceased_on")  # fmt: skip
FIRST_NAMES = {"M": ("Marco", "Luca", "Paolo", "Giorgio", "Dario", "Enzo", "Sandro", "Ugo"),
               "F": ("Anna", "Giulia", "Sara", "Chiara", "Elena", "Marta", "Irene", "Lucia")}  # fmt: skip
SYLLABLES = ("ba", "cor", "del", "fer", "gal", "lom", "mar", "ner", "pel", "ros", "san", "tor", "ver", "zan", "bri")
PLACES = ("A944", "H501", "F205", "L219", "D612", "F839", "G273", "D969", "A662", "L736", "Z129", "Z330")


def _write_pages(folder: Path, count: int) -> None:
    """Files of a thousand records each, as studiolab's bodies hold them; one in fifty without a fiscal code."""
    dice = random.Random(7)
    surnames = ["".join(parts).capitalize() + "i" for parts in product(SYLLABLES, repeat=3)]
    codes = {name: codicefiscale.encode_lastname(name) for name in surnames}
    firsts = {name: codicefiscale.encode_firstname(name) for names in FIRST_NAMES.values() for name in names}
    days = [date(1930, 1, 1) + timedelta(days=n) for n in range(33_000)]
    births = {(d, s): birth_part(d.isoformat(), s) for d in days for s in ("M", "F")}
    page: list[dict[str, Any]] = []
    for number in range(count):
        sex = "MF"[number % 2]
        last, first = dice.choice(surnames), dice.choice(FIRST_NAMES[sex])
        day, place = dice.choice(days), dice.choice(PLACES)
        code = codes[last] + firsts[first] + births[day, sex] + place
        page.append(
            {
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
        )
        if len(page) == PAGE or number == count - 1:
            (folder / f"{number // PAGE:06d}.json").write_text(json.dumps({"items": page}))
            page = []


def _bodies(folder: Path, most: int | None = None) -> Iterator[list[dict[str, Any]]]:
    pages = None if most is None else -(-most // PAGE)
    for file in sorted(folder.iterdir())[:pages]:
        yield decode("studiolab", file.read_bytes())["items"]


def _import(engine: sa.Engine, clinic: int, folder: Path, count: int) -> Report:
    with engine.connect() as connection:
        known = patients.linked(connection, clinic)
    pages = (Page(number, items, (), "s", count) for number, items in enumerate(_bodies(folder, count), 1))
    scope = Scope("import_patients", "B1", clinic)
    return synchronise(engine, patients.PATIENT, scope, patients.missing_only(pages, known), as_of=AS_OF)


def _reference(engine: sa.Engine, clinic: int, folder: Path) -> tuple[float, float]:
    """The same records by COPY into an unlogged table, and one INSERT … SELECT into tables identical to ours: the
    seconds for the patients alone, and for the patients with the links to studiolab that we write too."""
    columns = ", ".join(COLUMNS)
    with psycopg.connect(plain_url(engine.url)) as connection:

        def patients_alone() -> None:
            connection.execute(f"CREATE UNLOGGED TABLE incoming ({', '.join(f'{name} text' for name in COLUMNS)})")
            with connection.cursor().copy(f"COPY incoming ({columns}) FROM STDIN") as copy:
                for items in _bodies(folder):
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
                   SELECT %s, i.id, row_number() OVER (), 'created', 1, now() FROM incoming i""",
                [clinic],
            )
            connection.commit()

        alone = seconds(patients_alone)
        return alone, alone + seconds(links)


def _new_clinic(connection: sa.Connection) -> int:
    made = connection.execute(
        sa.text("""INSERT INTO clinic (code, name, region, municipality_code)
                   VALUES ('B1', 'Prova', 'Emilia-Romagna', 'A944') RETURNING id""")
    )
    return int(made.scalar_one())


def _beside_dlt(engine: sa.Engine, folder: Path, rows: int) -> tuple[float, float]:
    """Seconds of our import and of dlt's merge of the same ``rows`` records into one empty database."""
    import dlt  # type: ignore[import-not-found, unused-ignore]

    with engine.begin() as connection:
        clinic = _new_clinic(connection)
    ours = seconds(lambda: _import(engine, clinic, folder, rows))
    settle(engine)
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
        records = _bodies(folder, rows)
        peer = seconds(lambda: pipeline.run(records, table_name="patient", write_disposition="merge", primary_key="id"))
    return ours, peer


def figures(bench: Bench) -> Iterator[Figure]:
    count = bench.size(1_000_000)
    with TemporaryDirectory() as place, bench.engine() as engine:
        folder = Path(place)
        _write_pages(folder, count)
        with engine.begin() as connection:
            clinic = _new_clinic(connection)
            connection.execute(sa.text("CREATE TABLE reference (LIKE patient INCLUDING ALL)"))
            connection.execute(sa.text("ALTER TABLE reference ADD FOREIGN KEY (guardian_id) REFERENCES reference"))
            connection.execute(sa.text("CREATE TABLE reference_link (LIKE patient_link INCLUDING ALL)"))
            connection.execute(sa.text("ALTER TABLE reference_link ADD FOREIGN KEY (patient_id) REFERENCES reference"))
            connection.execute(sa.text("ALTER TABLE reference_link ADD FOREIGN KEY (clinic_id) REFERENCES clinic"))
        settle(engine)
        alone, reference = _reference(engine, clinic, folder)
        settle(engine)
        reports: list[Report] = []
        first = seconds(lambda: reports.append(_import(engine, clinic, folder, count)))
        peak = peak_mb()
        settle(engine)
        assert reports[0].counts.created > 0.99 * count, reports[0]
        again = seconds(lambda: reports.append(_import(engine, clinic, folder, count)))
        assert reports[1].counts.changed == 0, reports[1]
        yield Figure("patients", f"{count} new with their links, pages to committed rows", first, reference, "s", 1.5,
                     peak_mb=peak)  # fmt: skip
        yield Figure("patients", "the same, beside the patients written without links", first, alone, "s", 1.5)
        yield Figure("patients", "second run, nothing missing, beside the first", again, first, "s", 0.4)
        yield Figure("patients", "Python's memory, beside its bound", peak, 400.0, "MB", 1.0, peak_mb=peak)
        rows = min(count, bench.size(50_000))
        try:
            with bench.engine() as empty:
                ours, peer = _beside_dlt(empty, folder, rows)
        except ModuleNotFoundError:
            return  # the peer is in the dependency group "bench"
        name = f"{rows} rows a second, beside dlt's merge of the same"
        yield Figure("patients", name, rows / ours, rows / peer, "rows/s", 3.0, at_least=True)
