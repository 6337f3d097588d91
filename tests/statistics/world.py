"""A small chain for the statistics' and caches' tests: clinics in two zones, agendas, slots, appointments, holds."""

from __future__ import annotations

import sqlalchemy as sa

CHAIN = """
INSERT INTO clinic (id, code, name, region, municipality_code, time_zone) VALUES
    (1, 'BO01', 'Bologna', 'Emilia-Romagna', 'A944', 'Europe/Rome'),
    (2, 'LIS1', 'Lisbona', 'Estero', 'Z128', 'Europe/Lisbon'),
    (3, 'VUO1', 'Vuota', 'Lazio', 'H501', 'Europe/Rome');
INSERT INTO location (id, clinic_id, name, address, municipality_code) VALUES
    (1, 1, 'Centro', 'Via Zamboni 1', 'A944'), (2, 2, 'Baixa', NULL, NULL), (3, 1, 'Fiera', NULL, 'A944');
INSERT INTO specialist (id, clinic_id, title, last_name, first_name, specialties) VALUES
    (1, 1, 'Dott.ssa', 'De Luca', 'Anna', '{Cardiologia}'), (2, 2, 'Dott.', 'Rossi', 'Mario', '{}'),
    (3, 1, 'Prof.', 'D''Angelo', 'Ugo', '{Ortopedia}');
INSERT INTO service (id, clinic_id, code, name, duration_minutes, price, bookable_online) VALUES
    (1, 1, '89.7A.3', 'Visita cardiologica', 30, 90, true), (2, 2, '89.01', 'Visita', 20, 60, true),
    (3, 1, '89.52', 'ECG', 15, 40, false);
INSERT INTO agreement (id, clinic_id, name, kind, valid_from) VALUES (1, 1, 'Salute Più', 'insurance', '2020-01-01');
INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, slot_minutes, online) VALUES
    (1, 1, 1, 1, 'De Luca', 30, true), (2, 2, 2, 2, 'Rossi', 20, true), (3, 1, 3, 3, 'D''Angelo', 30, false);
INSERT INTO agenda_service (clinic_id, agenda_id, service_id) VALUES (1, 1, 1), (2, 2, 2), (1, 3, 3);
INSERT INTO patient (id, last_name, first_name) VALUES (1, 'Prova', 'Paziente');
SELECT setval(pg_get_serial_sequence(t, 'id'), 1000)
FROM unnest(ARRAY['clinic', 'location', 'specialist', 'service', 'agreement', 'agenda', 'patient']) t;
"""

APPOINTMENT = """
INSERT INTO appointment (clinic_id, agenda_id, service_id, specialist_id, patient_id, agreement_id, starts_at, ends_at,
                         created_at, status, channel, quoted_price, cancelled_at, accepted_at, expired_at,
                         verification_expires_at, verified_at)
SELECT CAST(:clinic AS bigint), CAST(:clinic AS bigint), CAST(:clinic AS bigint), CAST(:clinic AS bigint), 1,
       CAST(:agreement AS bigint), s.at, s.at + make_interval(mins => :minutes), s.at - make_interval(days => :lead),
       CAST(:status AS text), CAST(:channel AS text), CAST(:price AS numeric),
       CASE WHEN :status = 'cancelled' THEN s.at END, CASE WHEN :status = 'accepted' THEN s.at END,
       CASE WHEN :status = 'expired' THEN s.at END, CASE WHEN :status = 'unverified' THEN s.at END,
       CASE WHEN :verified THEN s.at END
FROM (SELECT CAST(CAST(:start AS text) AS timestamptz) AS at) s
RETURNING id
"""


def chain(connection: sa.Connection) -> None:
    """Three clinics: Bologna (1), Lisbon (2, another zone) and one without data (3)."""
    connection.execute(sa.text(CHAIN))


def appointment(connection: sa.Connection, start: str, clinic: int = 1, **values: object) -> int:
    """One appointment of the clinic's first agenda, service and specialist. Returns its id."""
    given = {
        "clinic": clinic,
        "start": start,
        "status": "booked",
        "channel": "desk",
        "price": "90.00",
        "agreement": None,
        "minutes": 30,
        "lead": 10,
        "verified": False,
    }
    return int(connection.execute(sa.text(APPOINTMENT), {**given, **values}).scalar_one())


def slots(connection: sa.Connection, agenda: int, day: str, count: int) -> None:
    """So many half-hour slots from 08:00 UTC of ``day``."""
    connection.execute(
        sa.text("""
            INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
            SELECT :agenda, s, s + interval '30 minutes', CAST(:day AS date), 1
            FROM generate_series(
                (CAST(:day AS date) + time '08:00') AT TIME ZONE 'UTC',
                (CAST(:day AS date) + time '08:00' + (:count - 1) * interval '30 minutes') AT TIME ZONE 'UTC',
                interval '30 minutes') s"""),
        {"agenda": agenda, "day": day, "count": count},
    )
