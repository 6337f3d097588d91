"""Paths that go through many rows at once cost so many blocks and so much log a row, at any size and in any company.

Each is tried at five sizes, so that one whose plan turns quadratic shows: every doubling costs a row no more than the
others. What a row takes of the processor is compared as well, in units of a work that is the same for ever and is done
meanwhile: roughly, for who else is at work can make a row three times as dear and the unit not.

``budgets.json`` is the history: a path that costs more than its last entry fails here. Who makes one dearer on purpose
adds an entry, and says why in the commit; who makes one cheaper adds one so that it stays so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.central import Closure
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.clinic.bookings import confirming, holds
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.clinic.patients import claims
from polydesk_dagster.clinic.patients.fiscal_codes import birth_part, check_letter
from polydesk_dagster.clinic.patients.identity import PATIENT
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.sources.records import Agreement, Price, Service
from tests import postgres
from tests.budgets import Spent, spent

AS_OF = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
FILE = Path(__file__).with_name("budgets.json")
HISTORY: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text())
CLINICS = 3
SIZES = (300, 500, 1000, 2000, 4000)
AGREEMENTS = 20
BOOKED = 1 / 50
ROOM = 1.25
LITTLE = {"blocks": 1.0, "log": 10.0}
"""How much more than the budget is still the same: where rows lie on their blocks is not the same twice."""
GROWTH = 2.0
"""How much more a row may cost in the last doubling than on the way there; of what is quadratic, 2.6 times as much."""

ROUGHLY = 10.0
"""How many times as much of the processor a row may take as it did; blind plans took 17 and 66 times as much."""
UNIT = "SELECT sum(hashint8(n)), count(DISTINCT n % 1000) FROM generate_series(1, 200000) n"

CHAIN = """
INSERT INTO clinic (id, code, name, region, municipality_code, horizon_days)
    SELECT n, 'B' || n, 'Prova', 'Lazio', 'H501', 20 FROM generate_series(1, :clinics) n;
INSERT INTO service (clinic_id, external_id, code, name, duration_minutes, bookable_online)
    SELECT c.id, 'S' || n, 'C' || n, 'Visita', 20, true FROM clinic c, generate_series(0, :rows / :agreements) n;
INSERT INTO agreement (clinic_id, external_id, name, kind, valid_from)
    SELECT c.id, 'A' || n, 'Fondo ' || n, 'fund', '2026-01-01' FROM clinic c, generate_series(1, :agreements - 1) n"""

PRICES = """
INSERT INTO price (clinic_id, service_id, agreement_id, amount, currency, valid_from)
    SELECT s.clinic_id, s.id, a.id, 50 + n % 90, 'EUR', '2026-01-01'
    FROM generate_series(0, :rows - 1) n
    JOIN service s ON s.external_id = 'S' || n / :agreements
    LEFT JOIN agreement a ON a.clinic_id = s.clinic_id AND a.external_id = 'A' || n % :agreements"""

AGENDAS = """
INSERT INTO location (id, clinic_id, name) SELECT id, id, 'Sede' FROM clinic;
INSERT INTO specialist (id, clinic_id, last_name, first_name)
    SELECT n, 1 + n % :clinics, 'Bianchi', 'Elena' FROM generate_series(1, :rows / 100) n;
INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, auto_generate, slot_minutes, online)
    SELECT n, c, c, n, 'Agenda ' || n, true, 20, true
    FROM (SELECT n, 1 + n % :clinics AS c FROM generate_series(1, :rows / 100) n) agendas;
INSERT INTO agenda_rule (agenda_id, weekday, starts_at, ends_at, valid_from)
    SELECT id, weekday, '08:00', '11:40', '2020-01-01' FROM agenda, generate_series(1, 7) weekday;
INSERT INTO agenda_service (clinic_id, agenda_id, service_id)
    SELECT clinic_id, id, (SELECT min(s.id) FROM service s WHERE s.clinic_id = agenda.clinic_id) FROM agenda"""

PEOPLE = """
WITH people AS (
    INSERT INTO patient (last_name, first_name, sex, birth_date, birth_place)
    SELECT 'Rossi', 'Anna', 'F', make_date(CAST(1930 + n / 336 AS integer), CAST(1 + n / 28 % 12 AS integer),
                                          CAST(1 + n % 28 AS integer)), 'H501'
    FROM generate_series(0, :rows - 1) n ORDER BY n RETURNING id)
INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
    SELECT 2, 'P' || row_number() OVER (ORDER BY id) - 1, id, 'created', now() FROM people"""

# Statistics come when the server finds time for them. What is measured here does without.
ALONE = """
DO $$ DECLARE t regclass; BEGIN
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = CAST('public' AS regnamespace) AND relkind = 'r' LOOP
        EXECUTE 'ALTER TABLE ' || t || ' SET (autovacuum_enabled = false)';
    END LOOP; END $$"""

Run = Callable[[sa.Engine], Any]


def _made(engine: sa.Engine, rows: int, *more: str) -> None:
    values = {"clinics": CLINICS, "rows": rows, "agreements": AGREEMENTS}
    with engine.begin() as connection:
        connection.exec_driver_sql(ALONE)
        for statement in ";".join((CHAIN, *more)).split(";"):
            connection.execute(sa.text(statement), values)


def _scope(service: str) -> Scope:
    return Scope(service, "B2", 2)


def _list(kind: Kind, service: str, records: list[Any], *, preview: bool = True) -> Run:
    pages = [Page(n // 1000 + 1, records[n : n + 1000], (), "s", len(records)) for n in range(0, len(records), 1000)]
    return lambda engine: synchronise(engine, kind, _scope(service), pages, as_of=AS_OF, preview=preview)


def _prices(count: int, changed: int) -> list[Price]:
    return [
        Price(
            service_id=f"S{n // AGREEMENTS}",
            agreement_id=f"A{n % AGREEMENTS}" if n % AGREEMENTS else None,
            collaborator_id=None,
            amount=f"{50 + n % 90 + (n < changed)}.00",
            patient_share=None,
            currency="EUR",
            vat_rate=None,
            valid_from=date(2026, 1, 1),
            valid_to=None,
        )
        for n in range(count)
    ]


def prices(engine: sa.Engine, rows: int) -> Run:
    _made(engine, rows, PRICES)
    return _list(PRICE, "sync_prices", _prices(rows, rows // 100))


def applied_prices(engine: sa.Engine, rows: int) -> Run:
    _made(engine, rows, PRICES)
    _list(PRICE, "sync_prices", _prices(rows, rows // 20))(engine)
    with engine.connect() as connection:
        plan = plans.load(connection, connection.scalar(sa.text("SELECT max(id) FROM plan")) or 0)

    def work(engine: sa.Engine) -> None:
        report = settle(engine, PRICE, _scope("sync_prices"), plan, as_of=AS_OF, actor="prova", reason="misura")
        assert report.counts.updated == rows // 20, report

    return work


def services(engine: sa.Engine, rows: int) -> Run:
    _made(engine, rows * AGREEMENTS)
    records = [
        Service(
            id=f"S{n}",
            code=f"C{n}",
            name=f"Visita {n % 100}",
            duration_minutes=20,
            preparation=None,
            active=True,
        )
        for n in range(rows)
    ]
    return _list(SERVICE, "sync_services", records)


def agreements(engine: sa.Engine, rows: int) -> Run:
    _made(engine, 100)
    records = [
        Agreement(id=f"N{n}", name=f"Cassa {n}", kind="fund", valid_from=date(2026, 1, 1), valid_to=None)
        for n in range(rows)
    ]
    return _list(AGREEMENT, "sync_prices", records)


def renumbered(engine: sa.Engine, rows: int) -> Run:
    _made(engine, rows * AGREEMENTS)
    records = [
        Service(id=f"N{n}", code=f"C{n}", name="Visita", duration_minutes=20, preparation=None, active=True)
        for n in range(rows)
    ]

    def work(engine: sa.Engine) -> None:
        report = _list(SERVICE, "sync_services", records)(engine)
        assert report.counts.waiting >= rows, report

    return work


def patients(engine: sa.Engine, rows: int) -> Run:
    _made(engine, 100)
    records: list[Any] = [
        {
            "id": f"P{n}",
            "fiscal_code": None,
            "last_name": f"Ros{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n // 676 % 26)}i",
            "first_name": "Anna",
            "sex": "F",
            "birth_date": f"{1930 + n % 80}-{1 + n % 12:02}-{1 + n % 28:02}",
        }
        for n in range(rows)
    ]
    return _list(PATIENT, "import_patients", records, preview=False)


def linked(engine: sa.Engine, rows: int) -> Run:
    """Who was linked when nothing was noted of who they are, each tenth with a code that is news."""
    _made(engine, rows, PEOPLE)
    said = []
    for n in range(rows):
        day = f"{1930 + n // 336}-{1 + n // 28 % 12:02}-{1 + n % 28:02}"
        code = "RSSNNA" + birth_part(day, "F") + "H501"
        who = {"last_name": "Rossi", "first_name": "Anna", "sex": "F", "birth_date": day, "birth_place": "H501"}
        code = None if n % 10 else code + check_letter(code)
        said.append({**who, "id": f"P{n}", "fiscal_code": code, "updated_at": "2026-01-01T00:00:00Z"})

    def work(engine: sa.Engine) -> None:
        with engine.begin() as connection:
            assert claims.check(connection, 2, said, AS_OF) == 0

    return work


def generated(engine: sa.Engine, rows: int) -> Run:
    _made(engine, rows, AGENDAS)
    return lambda engine: slots.generate(engine, AS_OF)


def generated_again(engine: sa.Engine, rows: int) -> Run:
    work = generated(engine, rows)
    work(engine)
    return work


def closed(engine: sa.Engine, rows: int) -> Run:
    """Two working days more, of the year in which one was closed."""
    generated_again(engine, rows)

    def year(*days: str) -> Run:
        known = [{"id": day, "name": "Prova", "date_from": day, "date_to": day, "scope": "national"} for day in days]
        asked = tuple(Closure.model_validate(each) for each in known)
        return lambda engine: closures.import_year(engine, 2026, "v", asked, (), as_of=AS_OF)

    year("2026-01-20")(engine)
    return year("2026-01-20", "2026-03-17", "2026-03-18")


def booked(engine: sa.Engine, rows: int) -> Run:
    generated_again(engine, rows)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO patient (id, last_name, first_name) SELECT n, 'Rossi', 'Anna ' || n FROM "
                "generate_series(1, :rows) n"
            ),
            {"rows": rows},
        )
        free = connection.execute(
            sa.text("""SELECT s.id, x.service_id FROM slot s JOIN agenda_service x USING (agenda_id)
                       WHERE s.starts_at > :as_of ORDER BY hashint8(s.id) LIMIT :some"""),
            {"as_of": AS_OF, "some": rows * BOOKED},
        ).all()

    def work(engine: sa.Engine) -> None:
        for number, (slot, service) in enumerate(free, 1):
            token = holds.new_token()
            booking = holds.Booking(service_id=service, patient_id=number)
            with engine.begin() as connection:
                placed = holds.place(
                    connection, slot_id=slot, service_id=service, token=token, visitor=f"v{number}", as_of=AS_OF
                )
            assert placed.answer is Answer.PLACED, placed
            with engine.begin() as connection:
                reply = confirming.confirm(connection, token=token, booking=booking, as_of=AS_OF)
            assert reply.answer is Answer.CONFIRMED, reply

    return work


PATHS: dict[str, tuple[Callable[[sa.Engine, int], Run], float]] = {
    "prices previewed": (prices, 1),
    "prices applied": (applied_prices, 1 / 20),
    "services previewed": (services, 1),
    "agreements previewed": (agreements, 1),
    "services under other numbers": (renumbered, 1),
    "patients imported": (patients, 1),
    "links looked at": (linked, 1),
    "slots generated": (generated, 11 * 20 / 100),
    "slots generated again": (generated_again, 11 * 20 / 100),
    "days closed": (closed, 11 * 2 / 100),
    "places held and confirmed": (booked, BOOKED),
}
"""What makes a world of so many rows and gives the work, and how many of its rows the work is about."""


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_row_costs_no_more_than_it_did(server: sa.URL, path: str) -> None:
    budget = HISTORY[path][-1]
    found = tried(server, path)
    whole, last = between(path, found, SIZES[0], SIZES[-1]), between(path, found, SIZES[-2], SIZES[-1])
    before = between(path, found, SIZES[0], SIZES[-2])
    for what, little in LITTLE.items():
        most = ROOM * budget[what] + little
        assert whole[what] <= most, f"{path}: {whole[what]:.2f} {what} a row, {budget[what]} before"
        most = GROWTH * max(before[what], budget[what]) + little
        assert last[what] <= most, f"{path}: {last[what]:.2f} {what} a row at {SIZES[-1]}, {before[what]:.2f} below"
    now, then = a_row(path, found) / unit(server), budget["cpu"] / budget["unit"]
    assert now <= ROUGHLY * then, f"{path}: a row takes {now:.6f} units of the processor, {then:.6f} before"


def tried(server: sa.URL, path: str) -> dict[int, Spent]:
    """What the path costs at each size, in a database of its own."""
    costs: dict[int, Spent] = {}
    for rows in SIZES:
        with postgres.copied(server, postgres.EMPTY) as url:
            engine = create_engine(url)
            work = PATHS[path][0](engine, rows)
            engine.dispose()
            costs[rows] = spent(url, work)
    return costs


def between(path: str, costs: dict[int, Spent], small: int, large: int) -> dict[str, float]:
    """Blocks and bytes of log for each row more: what a path costs without any is no row's."""
    less, more, rows = costs[small], costs[large], (large - small) * PATHS[path][1]
    return {"blocks": (more.blocks - less.blocks) / rows, "log": (more.log - less.log) / rows}


def a_row(path: str, costs: dict[int, Spent]) -> float:
    """Microseconds of the processor for each row of the largest size, all that it took divided by them."""
    return 1e6 * costs[SIZES[-1]].cpu / SIZES[-1] / PATHS[path][1]


@cache
def unit(server: sa.URL) -> float:
    """Microseconds of the processor, of server and client, for what measures the machine: the least of three."""

    def work(engine: sa.Engine) -> None:
        with engine.connect() as connection:
            connection.execute(sa.text(UNIT))
        rows = [{"number": n, "amount": f"{n % 90}.00"} for n in range(40_000)]
        assert len(json.loads(json.dumps(rows))) == len(rows)

    with postgres.copied(server, postgres.EMPTY) as url:
        return 1e6 * min(spent(url, work).cpu for _ in range(3))


def write() -> None:
    """Add what is measured now to the history: ``python -m tests.database.test_budgets``."""
    today = datetime.now(UTC).date().isoformat()
    with postgres.started() as server:
        measure = unit(server)
        for path in PATHS:
            costs = tried(server, path)
            found = between(path, costs, SIZES[0], SIZES[-1])
            found |= {"cpu": a_row(path, costs), "unit": measure}
            found = {what: round(value, 1) for what, value in found.items()}
            HISTORY.setdefault(path, []).append({"on": today, **found})
    FILE.write_text(json.dumps(HISTORY, indent=1) + "\n")


if __name__ == "__main__":
    write()
