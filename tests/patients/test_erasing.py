"""A patient's rights: all that is held about her in one file, and what may go gone from everywhere."""

from __future__ import annotations

import json
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import audit, plans, reverse
from polydesk_dagster.changes.apply import apply, is_altered
from polydesk_dagster.clinic.patients import claims, erasing, exporting, identity, seen
from polydesk_dagster.clinic.patients.personal import REGISTRY, Deed
from polydesk_dagster.outcome import Outcome, Report
from tests import world
from tests.patients.world import Import, person

HERS: dict[str, Any] = {
    "last_name": "Quetzalpioggia",
    "first_name": "Zuleika",
    "sex": "F",
    "fiscal_code": "QTZZLK80A41H501B",
    "email": "zuleika@quetzal.example",
    "mobile": "+39 333 998 8776",
    "phone": "+39 051 998 8775",
    "address": "Via Quetzalpioggia 7",
}
MARKS = ("quetzal", "zuleika", "qtzzlk80a41h501", "3339988776", "0519988775")
LATER = world.AS_OF + timedelta(hours=1)
PAST_ALL = ("erasure_is_final", "booked_ahead", "payment_open")
NOT_PERSONAL = json.loads(Path(__file__).with_name("not_personal.json").read_text())


def everywhere(run: Import) -> int:
    """A patient of whom every data set of the registry holds something, and another one beside her; her id."""
    run(person("P2", **HERS), person("P1"))
    given = {"clinic_id": run.clinic}
    with run.engine.begin() as connection:
        patient = connection.scalar(sa.text("SELECT id FROM patient WHERE last_name = 'Quetzalpioggia'"))
        assert patient is not None
        other = connection.scalar(sa.text("SELECT id FROM patient WHERE last_name = 'Rossi'"))
        claims.check(connection, run.clinic, [person("P2", **HERS)], world.AS_OF)
        booked = _bookings(connection, patient, run.clinic)
        user = world.user(connection, run.clinic, patient_id=patient, email=HERS["email"], display_name="Zuleika Q")
        desk = {"role": "desk", "patient_id": patient, "email": "anna@clinica.example", "display_name": "Anna"}
        world.user(connection, run.clinic, **desk)
        report = {"external_id": "R1", "patient_id": patient, "title": "ECG di Zuleika", "url": "https://x/quetzal"}
        stamps = {"published_at": world.AS_OF, "updated_at": world.AS_OF}
        (report_id,) = world.insert(connection, "report", [{**given, **report, **stamps}])
        _messages(connection, run.clinic, patient, other, booked, user, report_id)
        _sources(connection, run.clinic, patient)
        world.insert(connection, "package", [{**given, "patient_id": patient, "name": "Dieci sedute"}])
        world.insert(
            connection,
            "login_attempt",
            [
                {
                    "account": sha256(HERS["email"].encode()).digest(),
                    "address": "10.0.0.1",
                    "at": world.AS_OF,
                    "succeeded": False,
                }
            ],
        )
        seen.log(connection, "desk:anna", "/da-fare", world.AS_OF, patients=(patient,))
        done = {"patient_id": patient, "dataset": "calls", "deed": "delete", "rows": 1, "erased_at": world.AS_OF}
        world.insert(connection, "erasure", [done])
        token = {"token_hash": b"t" * 32, "user_id": user, "created_at": world.AS_OF, "expires_at": LATER}
        connection.execute(
            sa.text(
                "INSERT INTO activation_token (token_hash, user_id, created_at, expires_at)"
                " VALUES (:token_hash, :user_id, :created_at, :expires_at)"
            ),
            token,
        )
    return int(patient)


def _bookings(connection: sa.Connection, patient: int, clinic: int) -> int:
    """A booking with all that hangs on it, and one whose address alone is hers; the first one's id."""
    service = world.service(connection, clinic)
    place = world.location(connection, clinic)
    agenda = world.agenda(connection, clinic, place, service_id=service, services=[service])
    slots = [world.slot(connection, agenda, LATER + timedelta(days=n)) for n in range(3)]
    contacts = {"contact_email": HERS["email"], "contact_phone": "+393339988776"}
    more = {"overlap_reason": "Lo chiede la signora Quetzalpioggia", "external_id": "A1"}
    booked = world.appointment(connection, slots[0], service_id=service, patient_id=patient, **contacts, **more)
    unverified = {"status": "unverified", "channel": "online", "verification_expires_at": LATER}
    world.appointment(connection, slots[1], service_id=service, patient_id=None, **contacts, **unverified)
    ended = {"state": "confirmed", "ended_at": world.AS_OF, "appointment_id": booked, "payment_reference": "PAY-1"}
    hold = world.hold(connection, clinic, slots[2], **ended)
    world.insert(
        connection,
        "payment_case",
        [
            {
                "clinic_id": clinic,
                "hold_id": hold,
                "kind": "unanswered",
                "starts_at": LATER,
                "opened_at": world.AS_OF,
                "patient_id": patient,
                **contacts,
            }
        ],
    )
    world.insert(
        connection,
        "verification",
        [
            {
                "appointment_id": booked,
                "channel": "email",
                "secret_hash": b"s" * 32,
                "created_at": world.AS_OF,
                "expires_at": LATER,
            }
        ],
    )
    connection.execute(
        sa.text("""INSERT INTO call_list (clinic_id, appointment_id, start_version, kind, reason, starts_at, state,
                                          created_at, done_at, done_by, outcome)
                   VALUES (:clinic, :booked, 1, 'reminder', 'no_contact', :at, 'done', :at, :at, 'desk:anna',
                           'La signora Zuleika viene')"""),
        {"clinic": clinic, "booked": booked, "at": world.AS_OF},
    )
    return booked


def _messages(
    connection: sa.Connection, clinic: int, patient: int, other: int, booked: int, user: int, report: int
) -> None:
    """To her, to her account, to her booking; and to somebody else about her: one sent, one still to be sent."""
    text = {
        "address": HERS["email"],
        "subject": "Cara Zuleika",
        "body": "Cara Zuleika Quetzalpioggia",
        "context": {"name": "Zuleika"},
        "provider_reference": "SM-quetzal",
        "channel": "email",
    }
    base = {
        "clinic_id": clinic,
        "kind": "reminder",
        "send_after": world.AS_OF,
        "expires_at": LATER,
        "template_revision": 1,
        "created_at": world.AS_OF,
        "changed_at": world.AS_OF,
        "refused_channels": "{}",
        "attempts": 1,
        **text,
    }
    to = [("patient", patient), ("user", user), ("booking", booked), ("patient", other)]
    ids = [
        world.insert(connection, "message", [{**base, "recipient_type": kind, "recipient_id": number, **state}])[0]
        for (kind, number), state in zip(
            to,
            [{"state": "sent", "sent_at": world.AS_OF}, {"state": "planned"}, {"state": "unknown"}, {"state": "retry"}],
            strict=True,
        )
    ]
    lines = [
        ("appointment", booked, ids[0], "patient", patient),
        ("appointment", booked, ids[3], "patient", other),
        ("report", report, ids[0], "patient", patient),
    ]
    world.insert(
        connection,
        "message_ledger",
        [
            {
                "subject": subject,
                "subject_id": about,
                "version": 1,
                "kind": "reminder",
                "recipient_type": kind,
                "recipient_id": number,
                "clinic_id": clinic,
                "message_id": message,
                "planned_at": world.AS_OF,
            }
            for subject, about, message, kind, number in lines
        ],
    )
    world.insert(
        connection,
        "message_attempt",
        [{"message_id": ids[0], "at": world.AS_OF, "channel": "email", "answer": "accepted", "code": "250"}],
    )
    connection.execute(
        sa.text("""INSERT INTO message_block (channel, address, cause, since) VALUES
                   ('sms', '+393339988776', 'stop', :at), ('email', :email, 'bounced', :at)"""),
        {"at": world.AS_OF, "email": HERS["email"]},
    )
    connection.execute(
        sa.text("""INSERT INTO message_reply (external_id, address, body, said_at, received_at)
                   VALUES ('IN-1', '+393339988776', 'Sono Zuleika, non vengo', :at, :at)"""),
        {"at": world.AS_OF},
    )
    connection.execute(
        sa.text("""INSERT INTO message_receipt (external_id, reference, status, bad_address, strike, at, received_at)
                   VALUES ('OUT-1', 'SM-quetzal', 'delivered', false, false, :at, :at)"""),
        {"at": world.AS_OF},
    )
    connection.execute(
        sa.text("""INSERT INTO appointment_answer (clinic_id, appointment_id, start_version, said, via, at)
                   VALUES (:clinic, :booked, 1, 'confirmed', 'sms', :at)"""),
        {"clinic": clinic, "booked": booked, "at": world.AS_OF},
    )
    connection.execute(
        sa.text("INSERT INTO front_booking (appointment_id, key_hash) VALUES (:booked, sha256('key'))"),
        {"booked": booked},
    )
    connection.execute(
        sa.text("""INSERT INTO message_opt_out (patient_id, channel, kind, since, source)
                   VALUES (:p, 'sms', 'reminder', :at, 'STOP')"""),
        {"p": patient, "at": world.AS_OF},
    )


def _sources(connection: sa.Connection, clinic: int, patient: int) -> None:
    """What systems outside said of her and waits somewhere."""
    said = {**person("P2", **HERS)}
    at = {"clinic": clinic, "at": world.AS_OF, "patient": patient, "record": json.dumps(said)}
    for statement in (
        """INSERT INTO quarantine (service, clinic_id, record_key, code, message, record, kind,
                                   first_seen_at, last_seen_at)
           VALUES ('import_patients', :clinic, 'P2', 'invalid', 'x', CAST(:record AS jsonb), 'patient', :at, :at),
                  ('import_patients', :clinic, 'P9', 'invalid', 'x', CAST(:record AS jsonb), 'patient', :at, :at)""",
        """INSERT INTO patient_review (clinic_id, external_id, cause, candidates, record, found_at, state, decided_at)
           VALUES (:clinic, 'P2', 'namesake_of_patient', ARRAY[CAST(:patient AS bigint)], CAST(:record AS jsonb), :at,
                   'open', NULL),
                  (:clinic, 'P8', 'namesake_of_patient', '{}', CAST(:record AS jsonb), :at, 'open', NULL),
                  (:clinic, 'P8', 'namesake_of_patient', '{}', '{}', :at, 'dismissed', :at)""",
        """INSERT INTO patient_discrepancy (clinic_id, patient_id, field, ours, theirs, noticed_at)
           VALUES (:clinic, :patient, 'email', 'zuleika@quetzal.example', 'z@quetzal.example', :at)""",
        """INSERT INTO patient_link_ended (clinic_id, external_id, patient_id, made_by, made_at, ended_at, reason)
           VALUES (:clinic, 'P7', :patient, 'code', :at, :at, 'x')""",
    ):
        connection.execute(sa.text(statement), at)
    connection.execute(
        sa.text("""INSERT INTO event_inbox (clinic_id, event_id, sequence, type, version, entity, state, reason,
                                            attempts, payload, received_at, changed_at)
                   VALUES (:clinic, :event, 1, 'appointment.created', 1, 'A7', 'dead', 'service_unknown', 1,
                           CAST(:payload AS jsonb), :at, :at)"""),
        {"clinic": clinic, "event": uuid4(), "at": world.AS_OF, "payload": json.dumps({"patient_id": "P2"})},
    )


def dump(engine: sa.Engine) -> dict[str, str]:
    """The whole of the business database, the rows of plans too, as text by table."""
    with engine.connect() as connection:
        tables = connection.execute(
            sa.text("""SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'plan_rows')""")
        ).all()
        return {
            name: " ".join(connection.scalars(sa.text(f'SELECT lower(CAST(t AS text)) FROM {schema}."{name}" t')))
            for schema, name in tables
        }


def naming(engine: sa.Engine) -> dict[str, list[str]]:
    found = {table: [mark for mark in MARKS if mark in text] for table, text in dump(engine).items()}
    return {table: marks for table, marks in found.items() if marks}


def erase(engine: sa.Engine, patient: int) -> Report:
    with engine.begin() as connection:
        shown = erasing.plan_erasure(connection, patient, world.AS_OF)
    assert shown.plan_id is not None
    return applied(engine, shown.plan_id)


def applied(engine: sa.Engine, plan: int, past: tuple[str, ...] = PAST_ALL) -> Report:
    with engine.begin() as connection:
        return apply(
            connection, plan, as_of=LATER, actor="desk:anna", reason="Lo ha chiesto per iscritto", past_guards=past
        )


@pytest.fixture
def run(engine: sa.Engine) -> Import:
    return Import(engine)


def test_every_data_set_of_the_registry_is_there_and_then_only_what_is_kept(run: Import) -> None:
    patient = everywhere(run)
    assert len(naming(run.engine)) >= 12
    with run.engine.connect() as connection:
        for each in REGISTRY:
            found = connection.scalar(
                sa.text(f"SELECT count(*) FROM {each.table} t WHERE {each.whose}"), {"patient": patient}
            )
            assert found, each.key
    assert erase(run.engine, patient).outcome is Outcome.OK
    assert naming(run.engine) == {"message_block": ["3339988776"]}, "she said STOP there"
    with run.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM patient WHERE last_name = 'Rossi'")) == 1
        assert connection.scalar(sa.text("SELECT count(*) FROM appointment WHERE patient_id = :p"), {"p": patient}) == 1
        states = connection.execute(sa.text("SELECT state, reason FROM message ORDER BY id")).all()
        assert states == [("sent", None), ("withheld", "erased"), ("unknown", None), ("withheld", "erased")]
        assert not audit.verify(connection)
        line = connection.execute(sa.text("SELECT actor, detail ->> 'reason' FROM audit ORDER BY id DESC")).first()
        assert line == ("desk:anna", "Lo ha chiesto per iscritto")


def test_what_is_shown_names_data_sets_and_rules_and_no_patient(run: Import) -> None:
    patient = everywhere(run)
    with run.engine.begin() as connection:
        shown = erasing.plan_erasure(connection, patient, world.AS_OF)
    assert shown.preview
    keys = {table.key: {row[0].code for row in table.rows} for table in shown.tables}  # type: ignore[union-attr]
    assert keys["kept_by_law"] == {each.key for each in REGISTRY if each.law}
    assert keys["to_erase"] == {each.key for each in REGISTRY if each.deed is not Deed.KEEP} | {"plan_rows"}
    assert {reason.code for reason in shown.reasons} == {f"guard_{name}" for name in PAST_ALL}
    assert not [mark for mark in MARKS if mark in str(shown).lower()]


def test_a_plan_is_refused_without_a_word_and_where_something_came_since(run: Import) -> None:
    patient = everywhere(run)
    with run.engine.begin() as connection:
        shown = erasing.plan_erasure(connection, patient, world.AS_OF)
    assert shown.plan_id is not None
    unsaid = applied(run.engine, shown.plan_id, past=())
    assert [reason.code for reason in unsaid.reasons] == ["guard", "what_to_do"]
    with run.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO report (clinic_id, external_id, patient_id, title, published_at,"
                " updated_at) VALUES (:c, 'R2', :p, 'Nuovo', :at, :at)"
            ),
            {"c": run.clinic, "p": patient, "at": world.AS_OF},
        )
    moved = applied(run.engine, shown.plan_id)
    assert moved.outcome is Outcome.REFUSED
    assert {reason.code for reason in moved.reasons} == {"moved"}
    assert "patient" in naming(run.engine), "nothing was done"


def test_it_is_done_once_and_never_taken_back(run: Import) -> None:
    patient = everywhere(run)
    done = erase(run.engine, patient)
    assert done.plan_id is not None
    with run.engine.begin() as connection:
        back = reverse.undo(connection, done.plan_id, as_of=LATER, actor="desk:anna", reason="Ci ha ripensato lei")
        again = erasing.plan_erasure(connection, patient, LATER)
    assert (back.outcome, back.reasons[0].code) == (Outcome.REFUSED, "final")
    assert again.outcome is Outcome.NOTHING_TO_DO


def test_no_import_and_no_event_brings_her_back_and_the_rest_of_the_import_can_be_undone(run: Import) -> None:
    patient = everywhere(run)
    assert erase(run.engine, patient).outcome is Outcome.OK
    known = run(person("P2", **HERS), person("P1"))
    assert known.outcome is Outcome.NOTHING_TO_DO
    with run.engine.begin() as connection:
        assert claims.check(connection, run.clinic, [person("P2", **HERS)], LATER) == 0
        assert identity.linked(connection, run.clinic)["P2"] is None
    assert naming(run.engine) == {"message_block": ["3339988776"]}
    with run.engine.begin() as connection:
        first = connection.scalars(sa.text("SELECT id FROM plan WHERE kind = 'patient' ORDER BY id")).first()
        assert first is not None
        assert not is_altered(connection, plans.load(connection, first))
        back = reverse.undo(connection, first, as_of=LATER, actor="desk:anna", reason="Elenco sbagliato")
    assert (back.outcome, back.counts.retired) == (Outcome.OK, 1)


def test_her_file_holds_all_of_it_and_no_secret(run: Import) -> None:
    patient = everywhere(run)
    with run.engine.connect() as connection:
        found = exporting.everything(connection, patient)
    assert found.keys() == {each.key for each in REGISTRY}
    text = json.dumps(found)
    assert "hash" not in text
    assert "desk:anna" not in json.dumps(found["calls"])
    (booked, alone) = found["bookings"][1]
    assert booked["clinic"] == "Poliambulatorio BO01"
    assert alone["patient_id"] is None
    assert found["person"][1][0]["fiscal_code"] == HERS["fiscal_code"]
    with run.engine.connect() as connection, pytest.raises(LookupError):
        exporting.everything(connection, 999_999)


def test_every_column_that_could_name_somebody_is_in_the_registry_or_known_not_to(unwritten: sa.Engine) -> None:
    """A new column of text, JSON or bytes is decided about: registered in ``personal``, or listed beside this test."""
    with unwritten.connect() as connection:
        live = connection.execute(
            sa.text("""SELECT table_name, column_name FROM information_schema.columns
                       JOIN pg_class ON oid = CAST(format('%I.%I', table_schema, table_name) AS regclass)
                                        AND relkind = 'r'
                       WHERE table_schema = 'public' AND data_type IN ('text', 'character varying', 'json', 'jsonb',
                             'bytea', 'ARRAY', 'tsvector', 'USER-DEFINED', 'inet', 'xml')""")
        ).all()
    registered = {(each.table, column) for each in REGISTRY for column in each.columns}
    listed = {(table, column) for table, columns in NOT_PERSONAL.items() for column in columns}
    columns = {tuple(row) for row in live}
    undecided = sorted(f"{table}.{column}" for table, column in columns - registered - listed)
    assert not undecided, (
        f"may they speak of a person? Say it in clinic/patients/personal.py, or in not_personal.json: {undecided}"
    )
    assert listed - columns == set(), "gone from the schema"
    assert not {pair for pair in registered if pair[0] not in {row[0] for row in live}}
    assert not registered & listed
