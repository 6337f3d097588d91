"""The proof behind a verification: single-use tokens and codes, counted tries, and replays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import holds, verification
from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.bookings.unverified import Answer, Reply
from polydesk_dagster.clinic.bookings.verification import CODE_LIFE, MOST, TRIES, Channel, Issued
from polydesk_dagster.clinic.upkeep import retention
from polydesk_dagster.told import LANGUAGES, teller
from tests import world
from tests.bookings.world import held_by_another
from tests.world import AS_OF, rome

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
START = rome("2026-03-12", "09:00")
NIGHTS = {"forward": datetime(2026, 3, 29, 0, 55, tzinfo=UTC), "back": datetime(2026, 10, 25, 0, 55, tzinfo=UTC)}
"""Five minutes before the clocks of Rome change."""


@pytest.fixture(autouse=True)
def _cheap_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "WORK", 2)


@pytest.fixture
def practice(engine: sa.Engine) -> world.Practice:
    with engine.begin() as connection:
        return world.practice(connection)


def book(engine: sa.Engine, practice: world.Practice, start: datetime = START, **fields: Any) -> int:
    """A stranger's booking of just now, with two hours to verify it."""
    with engine.begin() as connection:
        given = {
            "status": "unverified",
            "channel": "online",
            "created_at": AS_OF,
            "verification_expires_at": AS_OF + 2 * HOUR,
            "contact_email": "chi@example.org",
            "contact_phone": "+393471234567",
            **fields,
        }
        slot = world.slot(connection, practice.agenda, start)
        return world.appointment(connection, slot, service_id=practice.service, patient_id=None, **given)


def issue(engine: sa.Engine, booking: int, channel: Channel, as_of: datetime = AS_OF) -> Issued:
    with engine.begin() as connection:
        return verification.issue(connection, appointment_id=booking, channel=channel, as_of=as_of)


def by_token(engine: sa.Engine, practice: world.Practice, token: str, as_of: datetime = AS_OF) -> Reply:
    with engine.begin() as connection:
        return verification.verify_by_token(connection, token=token, patient_id=practice.patient, as_of=as_of)


def by_code(engine: sa.Engine, practice: world.Practice, booking: int, code: str, as_of: datetime = AS_OF) -> Reply:
    with engine.begin() as connection:
        return verification.verify_by_code(
            connection, appointment_id=booking, code=code, patient_id=practice.patient, as_of=as_of
        )


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def status(engine: sa.Engine, booking: int) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT status FROM appointment WHERE id = :id"), {"id": booking}))


def change(engine: sa.Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def test_every_answer_has_its_sentence() -> None:
    for language in LANGUAGES:
        assert all(teller(language).knows(f"answer.booking.{answer}") for answer in Answer)
    assert "ancora 3 volte" in teller("it").text("answer.booking.wrong_code", count=3)
    assert "ancora una volta" in teller("it").text("answer.booking.wrong_code", count=1)


def test_no_secret_is_stored_or_printed(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    made = [issue(engine, booking, "email"), issue(engine, booking, "phone")]
    assert [each.contact for each in made] == ["chi@example.org", "+393471234567"]
    assert len(made[0].secret) >= 43
    assert (len(made[1].secret), made[1].secret.isdigit()) == (6, True)
    with engine.connect() as connection:
        stored = connection.execute(sa.text("SELECT CAST(v.* AS text) FROM verification v")).scalars().all()
        hashes = connection.scalars(sa.text("SELECT secret_hash FROM verification WHERE channel = 'phone'")).all()
    for each in made:
        assert not any(each.secret in row for row in stored)
        assert each.secret not in repr(each)
        assert each.contact not in repr(each)
    assert holds.hashed(made[1].secret) not in {bytes(each) for each in hashes}, "a bare hash of six digits is no hash"


def test_a_guess_at_a_stored_code_is_dear(
    engine: sa.Engine, practice: world.Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    made = issue(engine, book(engine, practice), "phone")
    with engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT secret_hash, salt FROM verification")).one()
    guessed = hashlib.scrypt(made.secret.encode(), salt=bytes(kept.salt), n=2**14, r=8, p=1, dklen=32)
    assert guessed == bytes(kept.secret_hash)


@pytest.mark.parametrize("channel", ["email", "phone"])
def test_either_channel_suffices_and_asking_again_answers_the_same(
    engine: sa.Engine, practice: world.Practice, channel: Channel
) -> None:
    booking = book(engine, practice)
    made = {each: issue(engine, booking, each).secret for each in ("email", "phone")}

    def ask(which: str, after: timedelta) -> Reply:
        if which == "email":
            return by_token(engine, practice, made["email"], AS_OF + after)
        code = made["phone"]
        return by_code(engine, practice, booking, f" {code[:3]} {code[3:]} ", AS_OF + after)

    first = ask(channel, MINUTE)
    assert (first.answer, first.appointment_id) == (Answer.BOOKED, booking)
    assert status(engine, booking) == "booked"
    assert ask(channel, MINUTE) == first
    assert ask(channel, 24 * HOUR) == first, "a lost response is repaired however late"
    other = "phone" if channel == "email" else "email"
    assert ask(other, 2 * MINUTE).answer is Answer.BOOKED
    with engine.connect() as connection:
        row = connection.execute(sa.text("SELECT verified_at, patient_id FROM appointment")).one()
    assert (row.verified_at, row.patient_id) == (AS_OF + MINUTE, practice.patient)


def test_a_newer_secret_voids_the_older_of_its_channel(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    old, code = issue(engine, booking, "email").secret, issue(engine, booking, "phone").secret
    new = issue(engine, booking, "email").secret
    assert by_token(engine, practice, old).answer is Answer.REPLACED
    assert status(engine, booking) == "unverified"
    newer = issue(engine, booking, "phone").secret
    if newer != code:
        assert by_code(engine, practice, booking, code).answer is Answer.WRONG_CODE
    assert by_code(engine, practice, booking, newer).answer is Answer.BOOKED
    assert by_token(engine, practice, new).answer is Answer.BOOKED


def test_five_wrong_codes_end_a_code(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    code = issue(engine, booking, "phone").secret
    replies = [by_code(engine, practice, booking, wrong(code)) for _ in range(TRIES)]
    assert [(each.answer, each.tries_left) for each in replies] == [
        *((Answer.WRONG_CODE, left) for left in (4, 3, 2, 1)),
        (Answer.TOO_MANY_TRIES, 0),
    ]
    assert by_code(engine, practice, booking, code).answer is Answer.TOO_MANY_TRIES, "also the right one"
    assert status(engine, booking) == "unverified"
    assert by_code(engine, practice, booking, issue(engine, booking, "phone").secret).answer is Answer.BOOKED


def test_the_fifth_try_may_still_be_right(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    code = issue(engine, booking, "phone").secret
    for _ in range(TRIES - 1):
        assert by_code(engine, practice, booking, wrong(code)).answer is Answer.WRONG_CODE
    assert by_code(engine, practice, booking, code).answer is Answer.BOOKED


@pytest.mark.parametrize("guess", ["", "12345", "1234567", "abcdef", "１２３４５６", "'; --", "\x00"])
def test_what_is_no_code_is_a_wrong_one(engine: sa.Engine, practice: world.Practice, guess: str) -> None:
    booking = book(engine, practice)
    issue(engine, booking, "phone")
    assert by_code(engine, practice, booking, guess).answer is Answer.WRONG_CODE


@pytest.mark.parametrize("night", NIGHTS)
def test_a_code_lives_ten_minutes_also_where_the_clock_jumps(
    engine: sa.Engine, practice: world.Practice, night: str
) -> None:
    now = NIGHTS[night]
    booking = book(
        engine, practice, now + 24 * HOUR, created_at=now, verification_expires_at=now + 2 * HOUR
    )  # fmt: skip
    made = issue(engine, booking, "phone", now)
    assert made.expires_at == now + CODE_LIFE
    late = by_code(engine, practice, booking, made.secret, now + CODE_LIFE)
    assert late.answer is Answer.EXPIRED
    assert by_code(engine, practice, booking, wrong(made.secret), now + CODE_LIFE).answer is Answer.EXPIRED
    in_time = now + CODE_LIFE - timedelta(seconds=1)
    assert by_code(engine, practice, booking, made.secret, in_time).answer is Answer.BOOKED


def test_looking_changes_nothing_and_says_what_a_post_would_find(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    old = issue(engine, booking, "email").secret
    token = issue(engine, booking, "email").secret

    def look(secret: str, as_of: datetime = AS_OF) -> Reply:
        with engine.begin() as connection:
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))
            return verification.look(connection, token=secret, as_of=as_of)

    assert look(token) == look(token) == Reply(Answer.READY, appointment_id=booking)
    assert look(old).answer is Answer.REPLACED
    assert look("mai visto") == Reply(Answer.UNKNOWN)
    assert look(token, START).answer is Answer.TOO_LATE
    assert by_token(engine, practice, token).answer is Answer.BOOKED
    assert look(token).answer is Answer.BOOKED


def test_what_was_never_given_is_unknown(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    token = issue(engine, booking, "email").secret
    assert by_token(engine, practice, token[:-1]).answer is Answer.UNKNOWN
    assert by_code(engine, practice, booking, "123456").answer is Answer.UNKNOWN
    assert by_code(engine, practice, 99_999, "123456").answer is Answer.UNKNOWN
    code = issue(engine, booking, "phone").secret
    assert by_token(engine, practice, code).answer is Answer.UNKNOWN, "a code is no token"


def test_a_token_brings_an_expired_booking_back_and_is_spent_only_then(
    engine: sa.Engine, practice: world.Practice
) -> None:
    booking = book(engine, practice)
    token = issue(engine, booking, "email").secret
    later = AS_OF + 3 * HOUR
    bookings.expire_unverified(engine, later)
    with engine.begin() as connection:
        slot = connection.scalar(sa.text("SELECT slot_id FROM appointment"))
        held_by_another(connection, slot, later)
    taken = by_token(engine, practice, token, later)
    assert (taken.answer, taken.appointment_id) == (Answer.TAKEN, booking)
    assert by_token(engine, practice, token, later).answer is Answer.TAKEN
    assert by_token(engine, practice, token, later + HOUR).answer is Answer.BOOKED, "the hold in its way has expired"
    assert by_token(engine, practice, token, START + HOUR).answer is Answer.BOOKED


def test_a_link_ends_before_its_booking_can(engine: sa.Engine, practice: world.Practice) -> None:
    far = book(engine, practice, rome("2026-05-12"))
    made = issue(engine, far, "email")
    assert made.expires_at == AS_OF + verification.TOKEN_LIFE
    assert by_token(engine, practice, made.secret, AS_OF + verification.TOKEN_LIFE).answer is Answer.EXPIRED
    near = book(engine, practice, START)
    made = issue(engine, near, "email")
    assert made.expires_at == START
    assert by_token(engine, practice, made.secret, START).answer is Answer.TOO_LATE


@pytest.mark.parametrize(("used", "answer"), [(True, Answer.USED), (False, Answer.GONE)], ids=["used", "unused"])
def test_a_cancelled_booking_is_not_booked_again_by_its_old_link(
    engine: sa.Engine, practice: world.Practice, used: bool, answer: Answer
) -> None:
    booking = book(engine, practice)
    token, code = issue(engine, booking, "email").secret, issue(engine, booking, "phone").secret
    if used:
        by_token(engine, practice, token)
        by_code(engine, practice, booking, code)
    change(engine, "DELETE FROM seat")
    change(
        engine, "UPDATE appointment SET status = 'cancelled', cancelled_at = :at, patient_id = :patient",
        at=AS_OF, patient=practice.patient,
    )  # fmt: skip
    assert by_token(engine, practice, token).answer is answer
    assert by_code(engine, practice, booking, code).answer is answer
    assert issue(engine, booking, "email").answer is Answer.GONE
    assert status(engine, booking) == "cancelled"


def test_nothing_is_issued_where_nothing_can_come_of_it(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice, contact_phone="  ")
    assert issue(engine, booking, "phone").answer is Answer.NO_CONTACT
    change(engine, "UPDATE appointment SET contact_phone = NULL")
    assert issue(engine, booking, "phone").answer is Answer.NO_CONTACT
    assert issue(engine, 99_999, "email").answer is Answer.GONE
    assert issue(engine, booking, "email", START).answer is Answer.TOO_LATE
    made = [issue(engine, booking, "email") for _ in range(MOST + 1)]
    assert [each.answer for each in made] == [*[Answer.ISSUED] * MOST, Answer.TOO_MANY_SECRETS]
    assert by_token(engine, practice, made[MOST - 1].secret).answer is Answer.BOOKED
    assert issue(engine, booking, "email").answer is Answer.BOOKED


def at_once(number: int, ask: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(ask, range(number)))


def test_tries_at_once_are_all_counted(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    code = issue(engine, booking, "phone").secret
    replies = at_once(12, lambda _: by_code(engine, practice, booking, wrong(code)))
    assert sorted(each.tries_left for each in replies) == [0] * 8 + [1, 2, 3, 4]
    assert Counter(each.answer for each in replies) == {Answer.WRONG_CODE: 4, Answer.TOO_MANY_TRIES: 8}
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT tries FROM verification")) == TRIES
    assert by_code(engine, practice, booking, code).answer is Answer.TOO_MANY_TRIES


def test_a_double_click_books_once(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    token, code = issue(engine, booking, "email").secret, issue(engine, booking, "phone").secret
    bookings.expire_unverified(engine, AS_OF + 2 * HOUR)
    change(engine, "UPDATE verification SET expires_at = :at WHERE channel = 'phone'", at=START)

    def ask(n: int) -> Reply:
        now = AS_OF + 2 * HOUR + n * timedelta(seconds=1)
        if n % 2:
            return by_code(engine, practice, booking, code, now)
        return by_token(engine, practice, token, now)

    assert {each.answer for each in at_once(8, ask)} == {Answer.BOOKED}
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE appointment_id = :id"), {"id": booking}) == 1


def test_secrets_asked_for_at_once_leave_one_that_works(engine: sa.Engine, practice: world.Practice) -> None:
    booking = book(engine, practice)
    made = at_once(8, lambda _: issue(engine, booking, "email"))
    assert Counter(each.answer for each in made) == {Answer.ISSUED: MOST, Answer.TOO_MANY_SECRETS: 3}
    answers = Counter(by_token(engine, practice, each.secret).answer for each in made if each.secret)
    assert answers == {Answer.BOOKED: 1, Answer.REPLACED: MOST - 1}


def test_secrets_go_with_their_booking_or_a_month_after_their_time(engine: sa.Engine, practice: world.Practice) -> None:
    never, stands = book(engine, practice, START), book(engine, practice, START + HOUR)
    tokens = [issue(engine, each, "email").secret for each in (never, stands)]
    by_token(engine, practice, tokens[1])
    bookings.expire_unverified(engine, AS_OF + 3 * HOUR)
    retention.clean(engine, AS_OF + timedelta(days=8))
    assert by_token(engine, practice, tokens[0]).answer is Answer.UNKNOWN
    assert by_token(engine, practice, tokens[1]).answer is Answer.BOOKED
    retention.clean(engine, START + timedelta(days=31))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM verification")) == 0
    assert by_token(engine, practice, tokens[1]).answer is Answer.UNKNOWN
    assert status(engine, stands) == "booked"
