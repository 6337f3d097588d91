"""What is wrong with one row or one sheet of a practice's workbook is that row's or that sheet's matter."""

from __future__ import annotations

import io
from datetime import date, time
from decimal import Decimal

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import registry, show
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources.practice import importing, reading
from polydesk_dagster.told import teller, workbook
from tests.sources.test_practice_workbook import (
    AGENDAS,
    CLINICS,
    DOCTORS,
    LOCATIONS,
    SERVICES,
    TURNS,
    WHOLE,
    Rows,
    all_of,
    applied,
    book,
    planned,
    said,
    spreadsheets,
)
from tests.world import AS_OF


@pytest.mark.parametrize("wrong", [1, 8])
def test_wrong_rows_of_a_small_sheet_wait_and_the_rest_goes_on(engine: sa.Engine, wrong: int) -> None:
    turns = [TURNS[0], *(["BO01", "Cardiologia", "lunedì", "di mattina", time(12)] for _ in range(wrong))]
    found, report = applied(engine, book(WHOLE | {"Turni": turns}))
    assert report.outcome is Outcome.PARTIAL
    assert report.counts.waiting == wrong
    assert [each.code for each in report.reasons] == []
    assert said(found) == [
        f"foglio Turni, riga {line}, «Dalle»: «di mattina» non è un'ora: scriverla come 09:30"
        for line in range(2, wrong + 2)
    ]
    assert all_of(engine, "SELECT count(*) FROM agenda") == [(1,)]
    _, again = applied(engine, book(WHOLE))
    assert (again.outcome, again.counts.created) == (Outcome.OK, 2)


def test_a_file_of_wrong_rows_alone_is_refused_and_is_not_in_step(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    with engine.begin() as connection:
        found = planned(engine, book({"Turni": [TURNS[0], ["BO01", "Cardiologia", "mai", time(9), time(12)]]}))
        shown = importing.shown(connection, found)
        report = importing.apply(connection, found, as_of=AS_OF, actor="desk:test")
    assert [each.outcome for each in (shown, report)] == [Outcome.PARTIAL, Outcome.REFUSED]
    assert report.counts.waiting == shown.counts.waiting == 1
    assert len(report.tables) == 1


def test_a_shape_that_changed_is_told_with_sheet_and_file(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    turns = [["BO01", "Cardiologia", "martedì", f"{n}:00", time(23)] for n in range(22)]
    turns[4:10] = [[*turn[:3], "di mattina", "di sera"] for turn in turns[4:10]]
    data = book({"Turni": [TURNS[0], *turns], "Sedi": [*LOCATIONS, ["BO01", "Nuova"]]})
    found, report = applied(engine, data, file="turni.xlsx")
    assert report.outcome is Outcome.REFUSED
    why, todo = (teller("it").reason(each) for each in report.reasons)
    assert why.startswith("file turni.xlsx, foglio Turni: Il piano")
    assert "6 record illeggibili su 22: la forma dei dati è cambiata?" in why
    assert f"polydesk practice apply {found.number} --past-guard source_shape --reason '…'" in todo
    with engine.begin() as connection:
        past = {"past_guards": ["source_shap"], "reason": "turni letti con la direzione"}
        mistyped = importing.apply(connection, found, as_of=AS_OF, actor="desk:anna", **past)
    assert (mistyped.outcome, mistyped.reasons[0].code) == (Outcome.REFUSED, "guard_unknown")
    assert "source_shape" in teller("it").reason(mistyped.reasons[0])
    with engine.begin() as connection:
        (told,) = importing.shown(connection, found).reasons[:1]
        assert teller("it").reason(told).startswith("file turni.xlsx, foglio Turni: 6 record")
        (told,) = importing.shown(connection, importing.load(connection, found.number or 0)).reasons[:1]
        assert teller("it").reason(told).startswith("foglio Turni: 6 record")


def test_a_doctor_twice_with_a_slip_waits_and_nobody_else(engine: sa.Engine) -> None:
    doctors = [*DOCTORS, ["BO01", "Dr.", "Verdi", "Ugo"], ["BO01", "Prof.", "Verdi", "Ugo"]]
    found, report = applied(engine, book(WHOLE | {"Medici": doctors}))
    assert report.outcome is Outcome.PARTIAL
    assert said(found) == [
        "foglio Medici, riga 3: è la stessa voce della riga 4, con altri dati: lasciarne una sola",
        "foglio Medici, riga 4: è la stessa voce della riga 3, con altri dati: lasciarne una sola",
    ]
    assert all_of(engine, "SELECT last_name FROM specialist") == [("Bianchi",)]
    assert all_of(engine, "SELECT count(*) FROM agenda_rule") == [(2,)]


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("own", [True, False])
def test_rows_that_name_no_clinic_are_of_the_only_one(engine: sa.Engine, blank: bool, own: bool) -> None:
    """By the file's own sheet of clinics, or where that is not in it by ours; the column may be there, and blank."""
    if not own:
        applied(engine, book({"Cliniche": CLINICS}))
    sheets = {
        title: [["Clinica" if number == 0 else None, *row[1:]] if blank else row[1:] for number, row in enumerate(rows)]
        for title, rows in WHOLE.items()
        if title != "Cliniche"
    }
    found, report = applied(engine, book(({"Cliniche": CLINICS} if own else {}) | sheets))
    assert (said(found), report.outcome) == ([], Outcome.OK)
    applied_as_written = "SELECT count(*) FROM agenda_rule r JOIN agenda a ON a.id = r.agenda_id JOIN clinic c ON true"
    assert all_of(engine, applied_as_written) == [(len(TURNS) - 1,)]
    again, _ = applied(engine, book(WHOLE))
    assert not again.does


@pytest.mark.parametrize("second", [["MO02", "Poliambulatorio Secchia", "F257", "Emilia-Romagna"], ["MO02", None, "?"]])
def test_rows_that_name_no_clinic_wait_where_there_are_two(engine: sa.Engine, second: list[str | None]) -> None:
    """Also where of the second only its code is readable."""
    lacking = [row[1:] for row in DOCTORS]
    found, _ = applied(engine, book({"Cliniche": [*CLINICS, second], "Medici": lacking}))
    assert any(each.startswith("foglio Medici, riga 1: manca la colonna «Clinica»") for each in said(found))
    assert all_of(engine, "SELECT count(*) FROM specialist") == [(0,)]


def test_a_sheet_that_lacks_a_column_waits_with_what_refers_to_it(engine: sa.Engine) -> None:
    lacking = [[*row[:2], *row[3:]] for row in AGENDAS]
    found, report = applied(engine, book(WHOLE | {"Agende": lacking, "Turni": TURNS, "Note": [[]], "Chiusure": []}))
    remedy = "aggiungerla come nel modello di `polydesk practice template` e importare di nuovo il file"
    assert said(found)[0] == (f"foglio Agende, riga 1: manca la colonna «Nome», e il foglio è stato saltato: {remedy}")
    unknown = "«Cardiologia» non è in Polydesk, e in questo file la sua riga manca o va corretta"
    assert said(found)[1:] == [f"foglio Turni, riga {line}, «Agenda»: {unknown}" for line in (2, 3)]
    assert (report.outcome, report.counts.waiting) == (Outcome.PARTIAL, 3)
    assert all_of(engine, "SELECT count(*) FROM service") == [(len(SERVICES) - 1,)]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"Turni": [row[:3] for row in TURNS]}, "foglio Turni, riga 1: mancano 2 colonne (Dalle e Alle), e il foglio"),
        ({"Turni": [["* orari da rivedere"]]}, "foglio Turni, riga 1: mancano 5 colonne (Clinica, Agenda, Giorno, "),
        ({"Turns": TURNS}, "il foglio Turni c'è due volte ed è stato saltato: lasciarne uno e importare di nuovo"),
    ],
)
def test_a_sheet_that_cannot_be_taken_is_one_thing_that_is_wrong(more: dict[str, Rows], told: str) -> None:
    found = reading.read(book(WHOLE | more | {"Foglio9": []}), workbook.words())
    (turns,) = (each for each in found.sheets if each.sheet.key == "turns")
    ((why,), others) = (turns.unreadable, [len(each.records) for each in found.sheets if each is not turns])
    assert teller("it").reason(why.why).startswith(told)
    assert (turns.records, others, found.passed) == ([], [1, 1, 1, 2, 1], ())


def test_a_sheet_that_is_too_long_waits_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_ROWS", len(TURNS))
    found = {each.sheet.key: each for each in reading.read(book(WHOLE), workbook.words()).sheets}
    assert (len(found["turns"].records), found["turns"].unreadable) == (2, []), "as long as may be"
    longer = book(WHOLE | {"Turni": [*TURNS, TURNS[1]]})
    found = {each.sheet.key: each for each in reading.read(longer, workbook.words()).sheets}
    ((why,), others) = (found.pop("turns").unreadable, [len(each.records) for each in found.values()])
    assert teller("it").reason(why.why).startswith("il foglio Turni ha più di 3 righe")
    assert others == [1, 1, 1, 2, 1]


def test_a_price_list_and_a_list_of_holidays_are_read_as_they_are_kept(engine: sa.Engine) -> None:
    """Without our titles, with headings of their own, merged ones, and notes below."""
    applied(engine, book(WHOLE))
    made = spreadsheets().load_workbook(io.BytesIO(book({"Listino": [], "Festivi 2027": []})))
    prices, holidays = made["Listino"], made["Festivi 2027"]
    prices["A1"] = "Listino in vigore dal 1° gennaio"
    prices.merge_cells("A1:D1")
    for row in (["Clinica", "Codice", "Descrizione", "Tariffa"], ["BO01", "CARD", "Prima visita", "135,00 €"]):
        prices.append(row)
    prices.append(["BO01", "HOLTER", "Holter delle 24 ore", 90])
    prices.append(["I prezzi sono esenti IVA"])
    for line in (["Data", "Festività"], [date(2027, 1, 6), "Epifania"], ["24/6/27", "San Giovanni"]):
        holidays.append(line)
    held = io.BytesIO()
    made.save(held)
    found, report = applied(engine, held.getvalue())
    why = "la voce è nuova e nel foglio manca questa colonna: aggiungerla, o togliere la riga"
    assert said(found) == [f"foglio Prestazioni, riga 4, «Durata (minuti)»: {why}"]
    assert (report.counts.created, report.counts.updated, found.passed) == (2, 1, ())
    prices_now = all_of(engine, "SELECT name, price, duration_minutes FROM service WHERE code = 'CARD'")
    assert prices_now == [("Prima visita", Decimal("135.00"), 20)]
    assert all_of(engine, "SELECT name, date_from FROM closure ORDER BY 2") == [
        ("Epifania", date(2027, 1, 6)),
        ("San Giovanni", date(2027, 6, 24)),
    ]


def test_what_belongs_to_clinics_that_wait_is_a_row_of_its_own(engine: sa.Engine) -> None:
    """However alike it is: whose clinic, seat or agenda is not known is not what another's is."""
    codes = ["CL01", "CL02", "CL03"]
    slots = [["Clinica", "Agenda", "Giorno", "Dalle", "Alle"], ["", "Cardiologia", "lun-mer", time(9), time(12)]]
    texts = [["Clinica", "Tipo", "Variante", "Canale", "Testo"], ["", "Promemoria", "completo", "SMS", "{{ clinica }}"]]
    closures = [["Clinica", "Nome", "Dal"], ["", "Patrono", date(2027, 6, 24)]]
    alike = {
        "Sedi": LOCATIONS, "Medici": DOCTORS, "Prestazioni": SERVICES, "Agende": AGENDAS, "Turni": slots,
        "Chiusure": closures, "Gruppi": [["Clinica", "Nome"], ["", "Cuore"]], "Testi": texts,
    }  # fmt: skip
    sheets: dict[str, Rows] = {
        title: [rows[0], *([code, *row[1:]] for code in codes for row in rows[1:])] for title, rows in alike.items()
    }
    clinics = [CLINICS[0], *([code, "Reno", "Borgo che non c'è"] for code in codes)]
    found = planned(engine, book({"Cliniche": clinics, **sheets}))
    t = teller("it")
    with engine.connect() as connection:
        rows = {
            plan.kind.removeprefix("practice_"): [
                t.value(row.key) for row in show.rows(connection, plan, registry.kind(plan.kind))
            ]
            for plan in found.plans
        }
    of_each = {
        "clinic": [""],
        "location": [" · Centro"],
        "doctor": [" · Bianchi Anna"],
        "service": [" · CARD · Visita cardiologica", " · ECG · Elettrocardiogramma"],
        "group": [" · Cuore"],
        "agenda": [" · Centro · Cardiologia"],
        "turn": [f" · Cardiologia · {day} 09:00" for day in ("lunedì", "martedì", "mercoledì")],
        "closure": [" · Patrono"],
    }
    expected = {kind: sorted(code + rest for code in codes for rest in rests) for kind, rests in of_each.items()}
    expected["text"] = [f"Promemoria, completo, SMS, italiano ({code})" for code in codes]
    assert {kind: sorted(each) for kind, each in rows.items()} == expected
