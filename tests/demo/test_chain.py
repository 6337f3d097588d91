from __future__ import annotations

import csv
import gzip
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from codicefiscale import codicefiscale

from polydesk_dagster.clinic.bookings import checks
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.demo import chain
from polydesk_dagster.demo.closures import central_closures
from polydesk_dagster.demo.places import SEATS, municipalities
from polydesk_dagster.demo.services import WITHDRAWN, all_offers
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.runtime.state.model import Condition
from polydesk_dagster.runtime.state.services import service_states
from tests import world

AS_OF = world.AS_OF

MOMENTS = (
    datetime(2026, 3, 27, 10, 0, tzinfo=UTC),  # the clocks go forward on the 29th
    datetime(2026, 10, 24, 16, 0, tzinfo=UTC),  # a Saturday, the night before they go back
    datetime(2026, 4, 4, 6, 0, tzinfo=UTC),  # tomorrow is Easter
    datetime(2026, 8, 13, 22, 30, tzinfo=UTC),  # the summer closure, after midnight in Rome
    datetime(2026, 12, 31, 23, 30, tzinfo=UTC),  # already the new year in Rome
)

OFF_RULES = """
SELECT s.id
FROM slot s JOIN agenda a ON a.id = s.agenda_id
WHERE s.starts_at > :as_of AND NOT s.manual
  AND NOT EXISTS (
      SELECT FROM agenda_rule r
      WHERE r.agenda_id = a.id AND r.weekday = extract(isodow FROM s.local_date)
        AND s.local_date BETWEEN r.valid_from AND coalesce(r.valid_to, 'infinity')
        AND (s.local_date - r.valid_from) % (7 * r.every_weeks) = 0
        AND (s.starts_at AT TIME ZONE 'Europe/Rome')::time >= r.starts_at
        AND (s.ends_at AT TIME ZONE 'Europe/Rome')::time <= r.ends_at
        AND extract(epoch FROM (s.starts_at AT TIME ZONE 'Europe/Rome')::time - r.starts_at)::int
            % (60 * a.slot_minutes) = 0)
"""


def _rows(connection: sa.Connection, query: str, **values: object) -> list[sa.Row]:
    return list(connection.execute(sa.text(query), values))


def _number(connection: sa.Connection, query: str, **values: object) -> int:
    return connection.execute(sa.text(query), values).scalar_one()


def test_it_refuses_a_database_in_use(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert chain.is_empty(connection)
        world.practice(connection)
    with engine.connect() as connection:
        assert not chain.is_empty(connection)
    with pytest.raises(PermanentError, match="demo_not_empty"):
        chain.load(engine, "small", as_of=AS_OF)
    with engine.connect() as connection:
        assert _number(connection, "SELECT count(*) FROM clinic") == 1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_chain_and_another_another(engine: sa.Engine) -> None:
    digests = []
    for seed in (7, 7, 8):
        summary = chain.load(engine, "small", seed, as_of=AS_OF)
        with engine.begin() as connection:
            digests.append(
                {
                    table: connection.execute(
                        sa.text(
                            f"""SELECT md5(string_agg(r, ',' ORDER BY r COLLATE "C"))
                                FROM (SELECT (to_jsonb(t) {"- 'created_at'" if table == "location" else ""})::text AS r
                                      FROM {table} t) x"""
                        )
                    ).scalar_one()
                    for table in summary.rows
                }
            )
            world.clear(connection, *summary.rows, renumber=True)
    assert digests[0] == digests[1]
    assert {table for table in digests[0] if digests[0][table] != digests[2][table]} >= {"patient", "appointment"}


@pytest.mark.slow
@pytest.mark.parametrize("as_of", MOMENTS, ids=lambda moment: moment.date().isoformat())
def test_what_is_booked_ahead_can_be_kept(engine: sa.Engine, as_of: datetime) -> None:
    """On slots that the rules produce, on open days, tomorrow included; but for the deliberate orphans."""
    chain.load(engine, "small", as_of=as_of)
    with engine.begin() as connection:
        _check_rules(connection, as_of)
        _check_closures(connection, as_of)
        _check_tomorrow(connection, as_of)


def _check_rules(connection: sa.Connection, as_of: datetime) -> None:
    off = {row.id for row in _rows(connection, OFF_RULES, as_of=as_of)}
    seven = _rows(
        connection,
        """SELECT s.id FROM slot s
           WHERE (s.starts_at AT TIME ZONE 'Europe/Rome')::time = '07:00' AND s.starts_at > :as_of""",
        as_of=as_of,
    )
    assert off == {row.id for row in seven}
    assert 1 <= len(off) <= 2, "the deliberate ones, and no others"
    assert (
        _number(
            connection,
            "SELECT count(*) FROM slot WHERE (starts_at AT TIME ZONE 'Europe/Rome')::date <> local_date",
        )
        == 0
    )


def _check_closures(connection: sa.Connection, as_of: datetime) -> None:
    today = as_of.astimezone(world.ROME).date()
    connection.execute(sa.text("CREATE TEMP TABLE shut (day date, start time, until time, clinic_id bigint)"))
    for item in (*central_closures(today.year), *central_closures(today.year + 1)):
        hours = {"day": ("00:00", "24:00"), "morning": ("00:00", "13:00"), "afternoon": ("13:00", "24:00")}
        start, until = hours[str(item["part"])]
        connection.execute(
            sa.text(
                """INSERT INTO shut SELECT :day, :start, :until, id FROM clinic
                   WHERE coalesce(:town, municipality_code) = municipality_code
                     AND coalesce(:region, region) = region"""
            ),
            {"day": item["date_from"], "start": start, "until": until}
            | {"town": item["municipality"], "region": item["region"]},
        )
    shut = _rows(
        connection,
        """SELECT a.id AS agenda_id, s.local_date,
                  EXISTS (SELECT FROM closure o WHERE o.agenda_id = a.id AND o.effect = 'open'
                          AND s.local_date BETWEEN o.date_from AND o.date_to) AS opened
           FROM seat JOIN slot s ON s.id = seat.slot_id JOIN agenda a ON a.id = s.agenda_id
           JOIN (SELECT * FROM shut
                 UNION ALL
                 SELECT d::date, '00:00', '24:00', c.id FROM clinic c,
                        generate_series(:today, :today + 400, interval '1 day') d
                 WHERE to_char(d, 'MM-DD') BETWEEN '08-12' AND '08-18') x
             ON x.clinic_id = a.clinic_id AND x.day = s.local_date
            AND (s.starts_at AT TIME ZONE 'Europe/Rome')::time < x.until
            AND (s.ends_at AT TIME ZONE 'Europe/Rome')::time > x.start""",
        today=today,
    )
    assert [row for row in shut if not row.opened] == []
    leave = _rows(
        connection,
        """SELECT c.agenda_id, count(*) AS booked FROM closure c
           JOIN slot s ON s.agenda_id = c.agenda_id AND s.local_date = c.date_from
           JOIN seat ON seat.slot_id = s.id
           WHERE c.layer = 'agenda' AND c.effect = 'closed' GROUP BY 1""",
    )
    assert sum(row.booked for row in leave) in range(1, 25)


def _check_tomorrow(connection: sa.Connection, as_of: datetime) -> None:
    tomorrow = as_of.astimezone(world.ROME).date() + timedelta(days=1)
    clinics = _rows(
        connection,
        """SELECT clinic_id, count(*) FROM appointment
           WHERE status = 'booked' AND (starts_at AT TIME ZONE 'Europe/Rome')::date = :tomorrow GROUP BY 1""",
        tomorrow=tomorrow,
    )
    assert len(clinics) == 2


def test_nothing_is_overdue_in_a_chain_that_was_only_just_loaded(small_chain: sa.Engine) -> None:
    with small_chain.connect() as connection:
        states = service_states(connection, None, AS_OF + timedelta(minutes=4), live=True)
    late = {Condition.OVERDUE, Condition.IDLE}
    assert [state.service.key for state in states if state.condition in late] == []


def test_statuses_agree_with_the_clock_and_seats_with_the_statuses(small_chain: sa.Engine) -> None:
    with small_chain.connect() as connection:
        past = {
            row.status: row.n
            for row in _rows(
                connection,
                "SELECT status, count(*) AS n FROM appointment WHERE starts_at < :as_of GROUP BY 1",
                as_of=AS_OF,
            )
        }
        ahead = {
            row.status: row.n
            for row in _rows(
                connection,
                "SELECT status, count(*) AS n FROM appointment WHERE starts_at >= :as_of GROUP BY 1",
                as_of=AS_OF,
            )
        }
        assert set(past) == {"completed", "no_show", "cancelled"}
        assert 0.03 < past["no_show"] / sum(past.values()) < 0.10
        assert {"booked", "unverified", "expired", "cancelled"} <= set(ahead) <= set(ahead) | {"accepted"}
        assert _number(connection, "SELECT count(*) FROM appointment WHERE created_at > :as_of", as_of=AS_OF) == 0
        assert _number(connection, "SELECT count(*) FROM appointment WHERE created_at > starts_at") == 0
        disagreeing = _number(
            connection,
            """SELECT count(*) FROM appointment a LEFT JOIN seat ON seat.appointment_id = a.id
               WHERE (a.status IN ('booked', 'unverified', 'accepted')) <> (seat.slot_id IS NOT NULL)
                  OR seat.slot_id <> a.slot_id""",
        )
        assert disagreeing == 0
        holds = _number(
            connection,
            """SELECT count(*) FROM hold h LEFT JOIN seat ON seat.hold_id = h.id
               WHERE (h.state IN ('live', 'confirming')) <> (seat.slot_id IS NOT NULL)
                  OR seat.held_until <> h.expires_at""",
        )
        assert holds == 0
        states = {row.state for row in _rows(connection, "SELECT DISTINCT state FROM hold")}
        assert {"live", "confirmed", "expired", "released"} <= states
        live = "SELECT count(*) FROM hold WHERE state IN ('live', 'confirming') AND expires_at {} :as_of"
        assert _number(connection, live.format(">"), as_of=AS_OF) > 0
        assert _number(connection, live.format("<="), as_of=AS_OF) > 0
        twice = _rows(
            connection,
            """SELECT a.id FROM appointment a JOIN appointment b ON b.patient_id = a.patient_id AND b.id > a.id
                  AND b.starts_at < a.ends_at AND a.starts_at < b.ends_at
               WHERE a.status = 'booked' AND b.status = 'booked'""",
        )
        assert twice == []


def test_unverified_bookings_are_in_time_and_too_late(small_chain: sa.Engine) -> None:
    with small_chain.connect() as connection:
        rows = _rows(
            connection,
            """SELECT verification_expires_at > :as_of AS in_time, starts_at - verification_expires_at AS margin,
                      patient_id, contact_email, contact_phone
               FROM appointment WHERE status = 'unverified'""",
            as_of=AS_OF,
        )
        assert {row.in_time for row in rows} == {True, False}
        assert all(row.margin >= timedelta(hours=1) and row.patient_id is None for row in rows)
        assert all(row.contact_email.endswith("@example.org") and row.contact_phone for row in rows)


def test_new_rows_go_behind_those_that_were_loaded(small_chain: sa.Engine) -> None:
    with small_chain.begin() as connection:
        one = world.practice(connection, "ZZ01")
        slot = world.slot(connection, one.agenda, world.rome("2026-03-12", "09:00"))
        world.appointment(connection, slot, service_id=one.service, patient_id=one.patient)


@pytest.mark.slow
def test_people_are_plausible(engine: sa.Engine) -> None:
    chain.load(engine, chain.Size(clinics=2, specialists=6, agendas=12, patients=3_000, history_days=60), as_of=AS_OF)
    with engine.connect() as connection:
        people = _rows(connection, "SELECT * FROM patient")
        codes = [person for person in people if person.fiscal_code_kind == "CF"]
        assert len(codes) > 0.95 * len(people)
        for person in codes[:200]:
            assert codicefiscale.is_valid(person.fiscal_code)
            decoded = codicefiscale.decode(person.fiscal_code)
            assert decoded["birthdate"].date() == person.birth_date
            assert decoded["gender"] == person.sex
            assert decoded["birthplace"]["code"] == person.birth_place
            assert person.fiscal_code_canonical == codicefiscale.encode(
                person.last_name, person.first_name, person.sex, person.birth_date.isoformat(), person.birth_place
            )
        kinds = Counter(person.fiscal_code_kind for person in people)
        assert kinds["STP"]
        assert kinds[None]
        assert any(person.fiscal_code != person.fiscal_code_canonical for person in codes), "an omocodia"
        twice = Counter(person.fiscal_code_canonical for person in codes)
        assert max(twice.values()) > 1, "a fiscal code alone is not a person"
        assert {person.language for person in people} == {"it", "de"}
        assert any(person.deceased_on for person in people)
        mothers = {person.id: person for person in people}
        children = [person for person in people if person.guardian_id]
        assert children
        assert all(mothers[child.guardian_id].last_name == child.last_name for child in children[:50] if child.language)
        states = {row.state for row in _rows(connection, "SELECT DISTINCT state FROM app_user")}
        assert states == {"never_invited", "invited", "active", "disabled", "bounced"}


def test_the_towns_are_those_of_istat(shared_data: Path) -> None:
    with gzip.open(shared_data / "comuni" / "gi_comuni_cap_2025-10-14.csv.gz", "rt", encoding="utf-8-sig") as file:
        known = {
            (row["codice_belfiore"], row["codice_istat"], row["denominazione_ita"], row["sigla_provincia"])
            for row in csv.DictReader(file)
        }
    for seat in SEATS:
        for place in seat.places:
            assert (place.cadastral_code, place.istat_code, place.name, seat.code) in known, place
    provinces = {(code, istat[:3], province) for code, istat, _, province in known}
    towns = municipalities()
    assert len(towns) > 7_850
    agreeing = [town for town in towns if (town.cadastral_code, town.istat_code[:3], town.province) in provinces]
    assert len(agreeing) > len(towns) - 5
    names = {code: name for code, _, name, _ in known}
    named = [town for town in towns if names.get(town.cadastral_code) == town.name]
    assert len(named) > 0.99 * len(towns)


def test_services_have_codes_of_the_nomenclature(shared_data: Path) -> None:
    with gzip.open(shared_data / "listino" / "umbria_nomenclatore_v05_2024-09-17.csv.gz", "rt") as file:
        known = {row["CODICE_NOMENCLATORE"] for row in csv.DictReader(file)}
    offers = (*all_offers(), *WITHDRAWN)
    assert len({offer.code for offer in offers}) == len(offers) >= 60
    assert {offer.code for offer in offers} <= known
    for offer in offers:
        if offer.preparation:
            assert offer.preparation.last_hours <= 24 * offer.preparation.lead_days


def test_closures_speak_the_central_server_s_contract() -> None:
    items = central_closures(2026)
    by_id = {str(item["id"]): item for item in items}
    assert len(by_id) == len(items)
    assert all(set(item) == set(items[0]) for item in items)
    assert by_id["it-04-06"]["name"] == "Lunedì dell'Angelo"
    assert by_id["it-12-24-pm"]["part"] == "afternoon"
    assert by_id["F205-12-07"]["municipality"] == "F205"
    assert by_id["bz-05-25"] | {"name": ""} == by_id["bz-05-25"] | {"name": "", "region": "Trentino-Alto Adige"}
    assert "it-11-07" not in {str(item["id"]) for item in central_closures(2027)}, "a day of unity, not off"
    assert all(date.fromisoformat(str(item["date_from"])).year == 2026 for item in items)


def test_one_clinic_has_no_studiolab_yet(small_chain: sa.Engine) -> None:
    for port in (8081, 9081):
        chain.integrations(small_chain, f"http://127.0.0.1:{port}/{{clinic}}/api/v1", "POLYDESK_STUDIOLAB_TOKEN_DEMO")
    with small_chain.connect() as connection:
        rows = _rows(connection, "SELECT base_url, active FROM integration ORDER BY clinic_id")
    assert [(row.base_url, row.active) for row in rows] == [
        ("http://127.0.0.1:9081/bo01/api/v1", True),
        ("http://127.0.0.1:9081/bz01/api/v1", False),
    ]


@pytest.mark.slow
def test_the_whole_chain(engine: sa.Engine) -> None:
    summary = chain.load(engine, "chain", as_of=AS_OF)
    assert {table: summary.rows[table] for table in ("clinic", "specialist", "agenda", "patient")} == {
        "clinic": 4,
        "specialist": 60,
        "agenda": 120,
        "patient": 20_000,
    }
    assert summary.rows["appointment"] > 100_000
    with engine.connect() as connection:
        assert len(_rows(connection, OFF_RULES, as_of=AS_OF)) <= 2
        span = _rows(connection, "SELECT max(starts_at) - min(starts_at) AS span FROM appointment")[0].span
        assert span > timedelta(days=730)
        languages = _rows(connection, "SELECT code FROM clinic WHERE language = 'de'")
        assert [row.code for row in languages] == ["BZ01"]
        per_agenda = _number(
            connection,
            "SELECT count(*) FROM agenda a WHERE NOT EXISTS (SELECT FROM appointment WHERE agenda_id = a.id)",
        )
        assert per_agenda == 0
        digest = _number(
            connection,
            """SELECT count(*) FROM (
                 SELECT patient_id FROM appointment
                 WHERE status = 'booked' AND starts_at BETWEEN :as_of AND :as_of + interval '2 days'
                 GROUP BY patient_id, clinic_id, (starts_at AT TIME ZONE 'Europe/Rome')::date HAVING count(*) > 1) x""",
            as_of=AS_OF,
        )
        assert digest > 0, "somebody comes twice on one day"
        assert _number(connection, "SELECT count(*) FROM package") > 50


def test_the_first_night_keeps_what_is_booked(small_chain: sa.Engine) -> None:
    first = slots.generate(small_chain, AS_OF)
    again = slots.generate(small_chain, AS_OF)
    assert (first.outcome, first.counts.failed) == (Outcome.PARTIAL, 0)
    assert first.counts.created > 500
    assert again.outcome is Outcome.NOTHING_TO_DO
    with small_chain.begin() as connection:
        retired = _rows(
            connection,
            """SELECT s.id FROM slot s WHERE s.state = 'retired' AND NOT EXISTS (
                   SELECT FROM closure c WHERE c.agenda_id = s.agenda_id AND s.local_date = c.date_from)""",
        )
        assert retired == [], "only the day that a doctor took off"
        before = _rows(connection, "SELECT cause, count(*) AS n FROM orphan GROUP BY 1 ORDER BY 1")
        assert {row.cause for row in before} == {"closure", "rule_changed"}
        assert sum(row.n for row in before) == first.counts.waiting < 15
        for item in (*central_closures(2026), *central_closures(2027)):
            hours = {"day": (None, None), "morning": ("00:00", "13:00"), "afternoon": ("13:00", "23:59")}
            start, until = hours[str(item["part"])]
            values = item | {"start": start, "until": until, "year": int(str(item["date_from"])[:4])}
            connection.execute(
                sa.text(
                    """INSERT INTO closure (layer, name, date_from, date_to, from_time, to_time, region,
                                            municipality_code, source, source_year, source_id)
                       VALUES (:scope, :name, :date_from, :date_to, :start, :until, :region, :municipality,
                               'central', :year, :id)"""
                ),
                values,
            )
    closed = slots.generate(small_chain, AS_OF)
    assert closed.counts.retired > 0
    with small_chain.connect() as connection:
        assert _rows(connection, "SELECT cause, count(*) AS n FROM orphan GROUP BY 1 ORDER BY 1") == before


def test_nobody_of_the_demo_is_in_two_places(small_chain: sa.Engine) -> None:
    with small_chain.connect() as connection:
        assert checks.collisions(connection, AS_OF).count == 0
        assert connection.scalar(sa.text("SELECT count(*) FROM occupancy WHERE NOT exclusive")) == 0
