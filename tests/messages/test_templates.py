from __future__ import annotations

import time as clock
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.messages import sandbox, templates
from polydesk_dagster.clinic.messages.factory import FACTORY
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import can_receive_texts
from polydesk_dagster.clinic.messages.kinds import KINDS, PASSING, PREPARATION, REMINDER, Kind
from polydesk_dagster.clinic.messages.reset import reset
from polydesk_dagster.clinic.messages.templates import lint, write
from polydesk_dagster.clinic.messages.text import mask_address, plain, readable_number, segments
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests import world
from tests.messages.world import AS_OF

told = teller("it").reason
HOURS = Hours(
    clinic_id=1,
    code="BO01",
    zone=ZoneInfo("Europe/Rome"),
    reminder_time=time(10),
    reminder_last=timedelta(hours=3),
    preparation_time=time(10),
    preparation_lead_days=2,
    preparation_last=timedelta(hours=12),
    just_booked=timedelta(hours=24),
    quiet_from=time(21),
    quiet_to=time(8),
    person_daily_cap=3,
    portal_url="https://portale.example",
    holidays=frozenset({date(2026, 4, 6), date(2026, 12, 25), date(2026, 12, 26)}),
    rest_days=True,
)


@pytest.mark.parametrize(
    ("text", "encoding", "units", "count"),
    [
        ("a" * 160, "GSM-7", 160, 1),
        ("a" * 161, "GSM-7", 161, 2),
        ("à è é ì ò ù É", "GSM-7", 13, 1),
        ("€" * 80, "GSM-7", 160, 1),
        ("€" * 81, "GSM-7", 162, 2),
        ("a" * 152 + "€" + "a" * 152, "GSM-7", 306, 3),
        ("È", "UCS-2", 1, 1),
        ("’" + "a" * 69, "UCS-2", 70, 1),
        ("’" + "a" * 70, "UCS-2", 71, 2),
        ("😀" * 35, "UCS-2", 70, 1),
    ],
)
def test_segments(text: str, encoding: str, units: int, count: int) -> None:
    found = segments(text)
    assert (found.encoding, found.units, found.segments) == (encoding, units, count)


def test_a_character_that_would_double_the_sms_is_written_plainly() -> None:
    assert plain("È permessa l’acqua – 2 l…") == "E' permessa l'acqua - 2 l..."
    assert plain("Şule, è permessa l’acqua") == "Şule, è permessa l’acqua"
    assert write(None, "{{ a }}", {"a": "È l’ora"}).body == "E' l'ora"
    assert write("Oggetto", "{{ a }}", {"a": "È l’ora"}).body == "È l’ora\n"
    assert [readable_number(n) for n in ("+390515550000", "+43512123456", "interno 7")] == [
        "+39 051 555 0000", "+43 512 123456", "interno 7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("it", "Casa: Ada, per l'appuntamento di domani, ore 9:00: Digiuno. Ore 10:00 (U. N.): Acqua. Tel. 051"),
        ("de", "Casa: Ada, zu Ihrem Termin am domani, 9:00 Uhr: Digiuno. 10:00 Uhr (U. N.): Acqua. Tel. 051"),
    ],
)
def test_a_preparation_of_two_appointments_reads_as_sentences(language: str, text: str) -> None:
    (shipped,) = (t for t in FACTORY if t[:4] == ("preparation", "plain", "sms", language))
    both = [
        {"ora": "9:00", "iniziali": "", "preparazione": "Digiuno."},
        {"ora": "10:00", "iniziali": "U. N.", "preparazione": "Acqua."},
    ]
    context = {"clinica": "Casa", "nome": "Ada", "giorno": "domani", "telefono": "051", "appuntamenti": both}
    assert write(None, shipped.body, context).body == text


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.key)
def test_every_kind_is_sent_by_somebody_in_words_of_its_own(kind: Kind) -> None:
    said = {(text.channel, text.language) for text in FACTORY if text.kind == kind.key}
    silent = {(channel, language) for channel in kind.channels for language in ("it", "de")} - said
    assert not silent, f"no text of {kind.key} in clinic/messages/factory.py: {sorted(silent)}"
    variants = {text.variant for text in FACTORY if text.kind == kind.key}
    unknown = {variant for variant in variants if (kind.key, variant) not in templates._SAMPLES}
    assert not unknown, f"which variables may its texts use? clinic/messages/templates.py: {kind.key} {unknown}"
    by = kind.key in {REMINDER.key, PREPARATION.key, *PASSING}
    assert by, f"{kind.key} is neither planned (clinic/messages/planning.py) nor in kinds.PASSING: nobody would send it"


def test_the_factory_texts_pass_their_own_lint() -> None:
    for template in FACTORY:
        assert lint(template.kind, template.variant, template.channel, template.subject, template.body) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{{ clinica }}: {{ nomme }}", "variabile sconosciuta: nomme"),
        ("{{ clinica }} {{ appuntamenti[0].referto }}", "variabile sconosciuta: referto"),
        ("{{ clinica }} {% if %}", "errore di sintassi alla riga 1"),
        ("{{ clinica }}: esame oncologico", "«oncolog»"),
        ("{{ nome }}, venga domani", "non dice chi scrive: usa {{ clinica }}"),
        ("{{ clinica.__class__.__mro__ }}{{ clinica }}", "«__mro__» non si può usare"),
        ("{{ clinica }}{% for a in range(10**9) %}x{% endfor %}", "«for» non si può usare"),
        ("{{ clinica }} 😀 è domani", "UCS-2"),
        ("{{ clinica }}: {{ nome|dictsort }}", "«| dictsort» non si può usare"),
        ("{{ clinica }} {{ 'x' * 300000000 }}", "«mul» non si può usare"),
        ("{{ clinica }} {{ nome ~ nome }}", "«concat» non si può usare"),
        ("{{ clinica }} {{ nome.center(10) }}", "«call» non si può usare"),
        ("{{ clinica }} {{ nome | center(1000000000) }}", "«| center» non si può usare"),
        ("{{ clinica }}" + "{% for a in appuntamenti %}" * 9 + "x" + "{% endfor %}" * 9, "«for in for»"),
        ("{{ clinica }}{% set x = 1 %}", "«assign» non si può usare"),
        ("{{ clinica }} {{ " + "(" * 900 + "1" + ")" * 900 + " }}", "errore di sintassi"),
        ("{{ clinica }} " + "a" * 8_000, "supera 8000 caratteri"),
        ("{{ clinica }} {{ appuntamenti }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ appuntamenti[0] }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ appuntamenti|first }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ appuntamenti|upper }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ risposte }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ risposte|title }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ nome.upper }}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ none }}", "che un paziente non può leggere"),
        ("{{ clinica }} {% if not risposte %}{{ appuntamenti }}{% endif %}", "che un paziente non può leggere"),
        ("{{ clinica }} {% if not telefono %}{{ appuntamenti }}{% endif %}", "che un paziente non può leggere"),
        ("{{ clinica }} {{ appuntamenti[1].ora }}", "un appuntamento numero 2 non c'è sempre"),
        ("{{ clinica }} {% if appuntamenti|length > 1 %}{{ nome.lower }}{% endif %}", "non può leggere"),
        ("{{ clinica }}: {{ nome }}, l'aspettiamo", "non dice il giorno: usa {{ giorno }}"),
        ("{{ clinica }} {{ giorno }} {{ appuntamenti[0].ora }}", "legge solo del primo"),
    ],
)
def test_lint(body: str, said: str) -> None:
    assert any(said in told(finding.reason) for finding in lint("reminder", "plain", "sms", None, body))


def test_what_a_text_may_use_is_told_as_it_is_written_there() -> None:
    for template in FACTORY:
        for way in (used := templates.usable(template.kind, template.variant)):
            found = lint(template.kind, template.variant, template.channel, template.subject, "{{ clinica }} " + way)
            assert not [finding for finding in found if finding.error], way
        assert len(used) == len(templates.example(template.kind, template.variant))


def test_a_text_costs_what_it_works_and_not_what_the_machine_makes_it_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "PATIENCE", 0.05)
    waits, works = _Value(lambda: clock.sleep(0.1)), _Value(lambda: sum(range(30_000_000)))
    assert sandbox.render("{{ a }}{{ a }}.", {"a": waits}) == "……."
    for source, value in (("{{ a }}.", works), ("{{ a }}", "x" * 10_001)):
        with pytest.raises(sandbox.BrokenTemplateError, match="template_endless"):
            sandbox.render(source, {"a": value})


class _Value(str):
    """What a text is filled in with, and what happens meanwhile."""

    __slots__ = ("meanwhile",)

    def __new__(cls, meanwhile: Callable[[], object]) -> _Value:
        made = super().__new__(cls, "…")
        made.meanwhile = meanwhile
        return made

    def __str__(self) -> str:
        self.meanwhile()
        return "…"


def test_a_neutral_text_cannot_name_the_service() -> None:
    findings = lint("reminder", "neutral", "sms", None, "{{ clinica }} {{ appuntamenti[0].prestazione }}")
    assert [finding.error for finding in findings] == [True]


def test_numbers_and_masks() -> None:
    assert [can_receive_texts(n) for n in ("+393331234567", "+39051123456", "+41791234567", "+4930123456", "12")] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert mask_address("mario@example.org") == "m…@e…"
    assert mask_address("+393331234567") == "+39…67"


def test_brought_forward_over_rest_days_and_quiet_hours() -> None:
    easter_tuesday = date(2026, 4, 7)  # told on Saturday: Monday is a holiday, Sunday is Sunday
    assert HOURS.brought_forward(easter_tuesday - timedelta(days=1), time(10)) == world.rome("2026-04-04", "10:00")
    assert HOURS.brought_forward(date(2026, 3, 11), time(22)) == world.rome("2026-03-11", "20:30")
    assert HOURS.brought_forward(date(2026, 3, 11), time(7)) == world.rome("2026-03-10", "20:30")
    assert HOURS.last_day_due(world.rome("2026-04-04", "10:00"), 1, time(10)) == easter_tuesday
    assert HOURS.last_day_due(world.rome("2026-04-03", "23:59"), 1, time(10)) == date(2026, 4, 4)
    assert HOURS.next_allowed(world.rome("2026-12-24", "21:30")) == world.rome("2026-12-28", "08:00")


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)), st.integers(0, 10), st.times())
def test_hours_hold_everywhere(moment: datetime, lead: int, at: time) -> None:
    instant = moment.replace(tzinfo=UTC)
    allowed = HOURS.next_allowed(instant)
    assert allowed >= instant
    assert HOURS.may_send(allowed)
    day = instant.date()
    forward = HOURS.brought_forward(day, at)
    assert not HOURS.rests(HOURS.local_day(forward))
    assert forward <= HOURS.instant(day, at) + timedelta(hours=1)
    assert HOURS.last_day_due(instant, lead, at) <= HOURS.last_day_due(instant + timedelta(hours=5), lead, at)


def test_reset_shows_applies_and_undoes(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        clinic = world.clinic(connection)
        rows = [
            {"layer": "chain", "clinic_id": None, "kind": "reminder", "body": "{{ clinica }} catena"},
            {"layer": "clinic", "clinic_id": clinic, "kind": "reminder", "body": "{{ clinica }} nostro"},
        ]
        world.insert(
            connection,
            "message_template",
            [{**row, "variant": "plain", "channel": "sms", "language": "it"} for row in rows],
        )
    shown = reset(engine, AS_OF, Press())
    assert (shown.outcome, shown.counts.retired, shown.plan_id is not None) == (Outcome.OK, 2, True)
    (rows_told,) = shown.tables
    told = [[teller(language).value(cell) for cell in row] for language in ("it", "de") for row in rows_told.rows]
    assert "Promemoria, completo, SMS, italiano (tutta la catena)".casefold() in told[0][2].casefold()
    assert "BO01" in told[1][2]
    assert (told[0][-1], told[2][-1]) == ("torna al testo di fabbrica", "kehrt zum Werkstext zurück")
    assert reset(engine, AS_OF, Press("perché no")).outcome is Outcome.REFUSED
    reason = "testi sbagliati dopo la migrazione"
    with engine.connect() as connection:
        typed = world.typed(connection, Press(reason, "RIPRISTINA 2"))
    done = reset(engine, AS_OF, typed)
    assert (done.outcome, done.counts.retired) == (Outcome.OK, 2)
    in_force = sa.text("SELECT body FROM message_template WHERE retired_at IS NULL ORDER BY id")
    with engine.begin() as connection:
        assert connection.scalars(in_force).all() == []
        assert done.plan_id is not None
        back = changes.undo(connection, done.plan_id, as_of=AS_OF, actor="desk:prova", reason=reason)
        assert back.counts.changed == 2
        assert connection.scalars(in_force).all() == ["{{ clinica }} catena", "{{ clinica }} nostro"]


def test_samples_show_the_text_but_not_the_person(engine: sa.Engine) -> None:
    from polydesk_dagster.clinic.messages.samples import samples
    from tests.messages.world import booked, states

    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(
            connection, practice, "09:30", patient_id=world.patient(connection, first_name="Zeno", last_name="Wolff")
        )
    with engine.connect() as connection:
        sms, email = samples(connection, "reminder", AS_OF, "BO01")
    assert "Z. W., le ricordiamo" in sms.body
    assert sms.size is not None
    assert sms.size.segments == 1
    assert "Gentile Z. W." in email.body
    assert "Wolff" not in sms.body + email.body
    assert states(engine) == []
