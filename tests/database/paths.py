"""The paths whose rows are counted in ``test_budgets``, and the worlds in which they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from polydesk_dagster.central import Closure
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import settle, synchronise
from polydesk_dagster.clinic.bookings import confirming, holds, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.caches import documents as caches
from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.clinic.messages import hours, planning
from polydesk_dagster.clinic.patients import claims
from polydesk_dagster.clinic.patients.fiscal_codes import birth_part, check_letter
from polydesk_dagster.clinic.patients.identity import PATIENT
from polydesk_dagster.clinic.statistics.refresh import refresh
from polydesk_dagster.clinic.upkeep import retention
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.kinds.agreements import AGREEMENT
from polydesk_dagster.sources.kinds.prices import PRICE
from polydesk_dagster.sources.kinds.services import SERVICE
from polydesk_dagster.sources.port import News
from polydesk_dagster.sources.practice import importing, reading, sheets
from polydesk_dagster.sources.records import Agreement, Event, Price, Service
from tests import world

AS_OF = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
MORNING, TOMORROW = AS_OF.replace(hour=9, minute=30), datetime(2026, 3, 11, 6, 0, tzinfo=UTC)
"""When reminders are planned, and the first of the visits that they are of."""
CLINICS = 3
AGREEMENTS = 20
BOOKED = 1 / 50
"""Of rows, so many places are held and confirmed, as many held until they expire, as many until all are released."""
DOCTORS = 1 / 4
"""Of rows, so many that a workbook brings, and that caches show."""
VISITS = 1 / 2
"""Of rows, so many that events bring, which are counted and told to patients."""

CHAIN = """
INSERT INTO clinic (id, code, name, region, municipality_code, horizon_days)
    SELECT n, 'B' || n, 'Prova', 'Lazio', 'H501', 20 FROM generate_series(1, :clinics) n;
INSERT INTO service (clinic_id, external_id, code, name, duration_minutes, bookable_online)
    SELECT c.id, 'S' || n, 'C' || n, 'Visita', 20, true FROM clinic c, generate_series(0, :rows / :agreements) n;
INSERT INTO agreement (clinic_id, external_id, name, kind, valid_from)
    SELECT c.id, 'A' || n, 'Fondo ' || n, 'fund', '2026-01-01' FROM clinic c, generate_series(1, :agreements - 1) n"""

LINKED = """
WITH people AS (
    INSERT INTO patient (last_name, first_name, sex, birth_date, birth_place)
    SELECT 'Rossi', 'Anna', 'F', make_date(CAST(1930 + n / 336 AS integer), CAST(1 + n / 28 % 12 AS integer),
                                          CAST(1 + n % 28 AS integer)), 'H501'
    FROM generate_series(0, :rows - 1) n ORDER BY n RETURNING id)
INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
    SELECT 2, 'P' || row_number() OVER (ORDER BY id) - 1, id, 'created', now() FROM people"""

PEOPLE = """
INSERT INTO patient (id, last_name, first_name, mobile)
    SELECT n, 'Rossi', 'Anna ' || n, '+39347' || lpad(CAST(n AS text), 7, '0') FROM generate_series(1, :rows) n;
INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
    SELECT 2, 'P' || id, id, 'created', now() FROM patient;
INSERT INTO location (id, clinic_id, name) SELECT id, id, 'Sede' FROM clinic;
INSERT INTO specialist (id, clinic_id, external_id, last_name, first_name)
    SELECT n, 2, 'D' || n, 'Bianchi', 'Elena' FROM generate_series(1, 1 + :rows / 100) n;
INSERT INTO agenda (id, clinic_id, location_id, specialist_id, external_id, name, slot_minutes)
    SELECT id, 2, 2, id, 'A' || id, 'Agenda ' || id, 5 FROM specialist"""

# Of visitors long gone; a slot of theirs is still there.
OLD_HOLDS = """
INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, state, created_at, expires_at, last_activity_at,
                  ended_at)
    SELECT 2, (SELECT min(id) FROM slot), sha256(CAST('t' || n AS bytea)), sha256(CAST('v' || n AS bytea)), 'expired',
           at, at + interval '10 minutes', at, at + interval '10 minutes'
    FROM generate_series(1, :rows) n,
         LATERAL (SELECT timestamptz '2026-01-01' + n * interval '1 second' AS at) t"""

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

# Statistics come when the server finds time for them. What is measured here does without.
ALONE = """
DO $$ DECLARE t regclass; BEGIN
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = CAST('public' AS regnamespace) AND relkind = 'r' LOOP
        EXECUTE 'ALTER TABLE ' || t || ' SET (autovacuum_enabled = false)';
    END LOOP; END $$"""

Run = Callable[[sa.Engine], Any]
World = Iterator[tuple[str, Run]]
"""Paths in the order in which they are tried, each with its work."""


def _made(engine: sa.Engine, rows: int, *more: str) -> None:
    _filled(engine, rows, ALONE, CHAIN, *more)


def _filled(engine: sa.Engine, rows: int, *statements: str) -> None:
    values = {"clinics": CLINICS, "rows": rows, "agreements": AGREEMENTS}
    with engine.begin() as connection:
        for script in statements:
            for statement in [script] if script is ALONE else script.split(";"):
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


def prices(engine: sa.Engine, rows: int) -> World:
    _made(engine, rows, PRICES)
    yield "prices previewed", _list(PRICE, "sync_prices", _prices(rows, rows // 100))
    _list(PRICE, "sync_prices", _prices(rows, rows // 20))(engine)
    with engine.connect() as connection:
        plan = plans.load(connection, connection.scalar(sa.text("SELECT max(id) FROM plan")) or 0)

    def apply(engine: sa.Engine) -> None:
        report = settle(engine, PRICE, _scope("sync_prices"), plan, as_of=AS_OF, actor="prova", reason="misura")
        assert report.counts.updated == rows // 20, report

    yield "prices applied", apply


def lists(engine: sa.Engine, rows: int) -> World:
    _made(engine, rows * AGREEMENTS)
    changed = [
        Service(id=f"S{n}", code=f"C{n}", name=f"Visita {n % 100}", duration_minutes=20, preparation=None, active=True)
        for n in range(rows)
    ]
    yield "services previewed", _list(SERVICE, "sync_services", changed)
    renumbered = [
        Service(id=f"N{n}", code=f"C{n}", name="Visita", duration_minutes=20, preparation=None, active=True)
        for n in range(rows)
    ]

    def renumber(engine: sa.Engine) -> None:
        report = _list(SERVICE, "sync_services", renumbered)(engine)
        assert report.counts.waiting >= rows, report

    yield "services under other numbers", renumber
    funds = [
        Agreement(id=f"N{n}", name=f"Cassa {n}", kind="fund", valid_from=date(2026, 1, 1), valid_to=None)
        for n in range(rows)
    ]
    yield "agreements previewed", _list(AGREEMENT, "sync_prices", funds)
    people: list[Any] = [
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
    yield "patients imported", _list(PATIENT, "import_patients", people, preview=False)
    yield "workbook applied", _workbook(int(rows * DOCTORS))

    def written(engine: sa.Engine) -> None:
        assert caches.refresh(engine, AS_OF).outcome is Outcome.OK

    yield "caches written", written
    yield "caches looked at, nothing changed", lambda engine: caches.refresh(engine, AS_OF)


def linked(engine: sa.Engine, rows: int) -> World:
    """Who was linked when nothing was noted of who they are, each tenth with a code that is news."""
    _made(engine, rows, LINKED)
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

    yield "links looked at", work


def _workbook(count: int) -> Run:
    sheet = sheets.BY_KEY["doctors"]
    blank = dict.fromkeys(column.key for column in sheet.columns)
    doctors = [
        reading.Record(n + 2, blank | {"clinic": f"B{1 + n % CLINICS}", "last_name": f"Neri {n}", "first_name": "Ugo"})
        for n in range(count)
    ]
    book = reading.Workbook((reading.Read(sheet, frozenset({"clinic", "last_name", "first_name"}), doctors),), ())

    def work(engine: sa.Engine) -> None:
        with engine.begin() as connection:
            found = importing.plan(connection, book, as_of=AS_OF, origin="misura", snapshot="s")
        with engine.begin() as connection:
            report = importing.apply(connection, found, as_of=AS_OF, actor="desk:prova")
        assert report.counts.created == count, report

    return work


def calendar(engine: sa.Engine, rows: int) -> World:
    _made(engine, rows, AGENDAS)
    yield "slots generated", lambda engine: slots.generate(engine, AS_OF)
    yield "slots generated again", lambda engine: slots.generate(engine, AS_OF)

    def year(*days: str) -> Run:
        known = [{"id": day, "name": "Prova", "date_from": day, "date_to": day, "scope": "national"} for day in days]
        asked = tuple(Closure.model_validate(each) for each in known)
        return lambda engine: closures.import_year(engine, 2026, "v", asked, (), as_of=AS_OF)

    year("2026-01-20")(engine)
    yield "days closed", year("2026-01-20", "2026-03-17", "2026-03-18")
    yield from _booked(engine, int(rows * BOOKED))


def _booked(engine: sa.Engine, count: int) -> World:
    """Places of free slots, by turns."""
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO patient (id, last_name, first_name) SELECT n, 'Rossi', 'Anna ' || n FROM "
                "generate_series(1, :rows) n"
            ),
            {"rows": count},
        )
        free = connection.execute(
            sa.text("""SELECT s.id, x.service_id FROM slot s JOIN agenda_service x USING (agenda_id)
                       WHERE s.starts_at > :as_of AND s.state = 'free' ORDER BY hashint8(s.id) LIMIT :some"""),
            {"as_of": AS_OF, "some": 3 * count},
        ).all()

    def hold(connection: sa.Connection, slot: int, service: int) -> str:
        token = holds.new_token()
        placed = holds.place(connection, slot_id=slot, service_id=service, token=token, visitor=f"v{slot}", as_of=AS_OF)
        assert placed.answer is Answer.PLACED, placed
        return token

    def book(engine: sa.Engine) -> None:
        for number, (slot, service) in enumerate(free[:count], 1):
            with engine.begin() as connection:
                token = hold(connection, slot, service)
            booking = holds.Booking(service_id=service, patient_id=number)
            with engine.begin() as connection:
                reply = confirming.confirm(connection, token=token, booking=booking, as_of=AS_OF)
            assert reply.answer is Answer.CONFIRMED, reply

    yield "places held and confirmed", book
    with engine.begin() as connection:
        for slot, service in free[count : 2 * count]:
            hold(connection, slot, service)

    def expire(engine: sa.Engine) -> None:
        with engine.begin() as connection:
            report = sweeping.release_expired(connection, AS_OF + timedelta(hours=1))
        assert report.counts.updated == count, report

    yield "holds expired", expire
    with engine.begin() as connection:
        for slot, service in free[2 * count :]:
            hold(connection, slot, service)
        shown = releasing.release_all(connection, AS_OF, Press(), preview=True)
        press = Press("prova di misura", f"LIBERA {shown.counts.updated}", "desk:prova", shown.plan_id)
        typed = world.typed(connection, press)

    def release(engine: sa.Engine) -> None:
        with engine.begin() as connection:
            report = releasing.release_all(connection, AS_OF, typed)
        assert report.counts.updated == count, report

    yield "holds released", release


@dataclass(frozen=True)
class _Feed:
    """A studiolab's news, as its client reads it."""

    news: Sequence[Event]
    epoch: str = "s"

    def events(self, after: int, limit: int) -> News:
        found = tuple(self.news[after : after + limit])
        return News(found, (), len(self.news), len(found))

    def oldest(self) -> int | None:
        return 1


def _booking(number: int, agendas: int) -> Event:
    starts = TOMORROW + timedelta(minutes=5 * (number // agendas))
    agenda = 1 + number % agendas
    return Event(
        id=str(UUID(int=number + 1)),
        sequence=number + 1,
        type="appointment.created",
        version=1,
        occurred_at=AS_OF.isoformat(),
        entity={"type": "appointment", "id": f"E{number}"},
        data={
            "patient_id": f"P{number + 1}",
            "collaborator_id": f"D{agenda}",
            "service_id": "S0",
            "agenda_id": f"A{agenda}",
            "starts_at": starts.isoformat(),
            "ends_at": (starts + timedelta(minutes=5)).isoformat(),
            "status": "booked",
        },
    )


def day(engine: sa.Engine, rows: int) -> World:
    """What events bring is counted, and told to patients; then it is old."""
    _made(engine, 5 * rows)
    _filled(engine, rows, PEOPLE)
    visits = int(rows * VISITS)
    feed = _Feed([_booking(number, 1 + rows // 100) for number in range(visits)])

    def take(engine: sa.Engine) -> None:
        report = intake.sync(engine, AS_OF, "B2", feed)
        assert report.counts.updated + report.counts.created == visits, report

    yield "events applied", take
    yield "statistics counted", lambda engine: refresh(engine, AS_OF)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE appointment SET quoted_price = 50 WHERE id % 100 = 0"))
    yield "statistics of a day that changed", lambda engine: refresh(engine, AS_OF)
    yield "statistics, nothing changed", lambda engine: refresh(engine, AS_OF)

    def plan(engine: sa.Engine) -> None:
        with engine.begin() as connection:
            planned = planning.plan(connection, "reminder", MORNING, hours.load(connection, MORNING))
        assert planned.messages == visits, planned

    yield "reminders planned", plan
    _filled(engine, rows, OLD_HOLDS)

    def clean(engine: sa.Engine) -> None:
        report = retention.clean(engine, AS_OF)
        assert report.counts.retired == rows, report

    yield "old rows cleaned up", clean


WORLDS: dict[Callable[[sa.Engine, int], World], dict[str, float]] = {
    prices: {"prices previewed": 1, "prices applied": 1 / 20},
    lists: {
        "services previewed": 1,
        "services under other numbers": 1,
        "agreements previewed": 1,
        "patients imported": 1,
        "workbook applied": DOCTORS,
        "caches written": DOCTORS,
        "caches looked at, nothing changed": DOCTORS,
    },
    linked: {"links looked at": 1},
    calendar: {
        "slots generated": 11 * 20 / 100,
        "slots generated again": 11 * 20 / 100,
        "days closed": 11 * 2 / 100,
        "places held and confirmed": BOOKED,
        "holds expired": BOOKED,
        "holds released": BOOKED,
    },
    day: {
        "events applied": VISITS,
        "statistics counted": VISITS,
        "statistics of a day that changed": VISITS,
        "statistics, nothing changed": VISITS,
        "reminders planned": VISITS,
        "old rows cleaned up": 1,
    },
}
"""What makes a world of so many rows and tries its paths in it, and of how many of the rows each is."""

PATHS = {path: share for paths in WORLDS.values() for path, share in paths.items()}
