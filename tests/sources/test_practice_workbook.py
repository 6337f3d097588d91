"""A practice's workbook: what is exported comes back as nothing to do, and what people write gets in or is named."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.clinic.messages.factory import FACTORY
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.practice import exporting, importing, reading, undoing
from polydesk_dagster.sources.practice.cells import DOMAINS
from polydesk_dagster.sources.practice.importing import Import
from polydesk_dagster.sources.practice.sheets import SHEETS
from polydesk_dagster.told import teller, workbook
from polydesk_dagster.told.catalogue import LANGUAGES
from tests.world import AS_OF

Rows = Sequence[Sequence[Any]]


def spreadsheets() -> Any:
    import openpyxl

    return openpyxl


def book(sheets: Mapping[str, Rows]) -> bytes:
    made = spreadsheets().Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
        page = made.create_sheet(title)
        for row in rows:
            page.append(list(row))
    held = io.BytesIO()
    made.save(held)
    return held.getvalue()


def planned(engine: sa.Engine, data: bytes, *, as_of: datetime = AS_OF, file: str | None = None) -> Import:
    with engine.begin() as connection:
        read = reading.read(data, workbook.words(), importing.clinics(connection))
        return importing.plan(connection, read, as_of=as_of, origin=f"test-{hash(data)}", snapshot="test", file=file)


def applied(
    engine: sa.Engine, data: bytes, *, as_of: datetime = AS_OF, file: str | None = None
) -> tuple[Import, Report]:
    found = planned(engine, data, as_of=as_of, file=file)
    with engine.begin() as connection:
        return found, importing.apply(connection, found, as_of=as_of, actor="desk:test")


def said(found: Import) -> list[str]:
    t = teller("it")
    return [t.reason(problem.reason) for problem in found.problems]


def all_of(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


CLINICS = [["Codice *", "Nome *", "Comune *", "Regione"], ["BO01", "Poliambulatorio Reno", "A944", "Emilia-Romagna"]]
LOCATIONS = [["Clinica", "Nome"], ["BO01", "Centro"]]
DOCTORS = [["Clinica", "Titolo", "Cognome", "Nome"], ["BO01", "Dott.ssa", "Bianchi", "Anna"]]
SERVICES = [
    ["Clinica", "Codice", "Nome", "Durata (minuti)", "Prezzo"],
    ["BO01", "CARD", "Visita cardiologica", 20, 130],
    ["BO01", "ECG", "Elettrocardiogramma", 20, "45,50 €"],
]
AGENDAS = [
    ["Clinica", "Sede", "Nome", "Medico", "Prestazione", "Risorsa", "Prestazioni", "Minuti per appuntamento"],
    ["BO01", "Centro", "Cardiologia", "Bianchi Anna", None, None, "CARD; ECG", 20],
]
TURNS = [
    ["Clinica", "Agenda", "Giorno", "Dalle", "Alle"],
    ["BO01", "Cardiologia", "lunedì", time(9), time(12)],
    ["BO01", "Cardiologia", "Giovedì", "14:00", "18.30"],
]
WHOLE = {
    "Cliniche": CLINICS,
    "Sedi": LOCATIONS,
    "Medici": DOCTORS,
    "Prestazioni": SERVICES,
    "Agende": AGENDAS,
    "Turni": TURNS,
}


def test_from_an_empty_installation_to_bookable_slots(engine: sa.Engine) -> None:
    found, report = applied(engine, book(WHOLE))
    assert said(found) == []
    assert report.outcome is Outcome.OK
    assert slots.generate(engine, AS_OF).outcome is Outcome.OK
    days = all_of(engine, "SELECT extract(isodow FROM local_date), count(*) > 0 FROM slot GROUP BY 1 ORDER BY 1")
    assert days == [(1, True), (4, True)]
    prices = [("CARD", Decimal("130.00")), ("ECG", Decimal("45.50"))]
    assert all_of(engine, "SELECT code, price FROM service ORDER BY code") == prices
    assert planned(engine, book(WHOLE)).plans == ()


def test_a_practice_that_has_no_list_of_municipalities_yet_writes_their_names(engine: sa.Engine) -> None:
    """And no region, unless it knows another name for it."""
    clinics = [
        ["Codice", "Nome", "Comune", "Regione"],
        ["BO01", "Reno", "bologna", "Emilia-Romagna"],
        ["BZ01", "Talfer", "Bozen", None],
        ["XX01", "Castro", "Castro", "Puglia"],  # there are two
    ]
    found, report = applied(engine, book({"Cliniche": clinics, "Sedi": [["Clinica", "Nome"], ["XX01", "Centro"]]}))
    assert report.counts.created == 2
    assert all_of(engine, "SELECT code, municipality_code, region FROM clinic ORDER BY 1") == [
        ("BO01", "A944", "Emilia-Romagna"),
        ("BZ01", "A952", "Trentino-Alto Adige"),
    ]
    assert "scrivere il codice catastale" in said(found)[0]
    assert said(found)[1].endswith("«XX01» non è in Polydesk, e in questo file la sua riga manca o va corretta")


def test_rows_that_stand_for_themselves_are_named_before_those_that_only_lack_them(engine: sa.Engine) -> None:
    agendas = [AGENDAS[0], *(["BO01", "Centro", f"A{n}", "Bianchi Anna", *AGENDAS[1][4:]] for n in range(3))]
    turns = [TURNS[0], ["BO01", "A0", "lunedì mattina", time(9), time(12)]]
    doctors = [[*DOCTORS[0], "E-mail"], [*DOCTORS[1], "senza chiocciola"]]
    found = planned(engine, book(WHOLE | {"Medici": doctors, "Agende": agendas, "Turni": turns}))
    assert [(problem.sheet, problem.line) for problem in found.problems] == [
        ("doctors", 2), ("turns", 2), ("agendas", 2), ("agendas", 3), ("agendas", 4),
    ]  # fmt: skip


@pytest.mark.slow
def test_what_is_renamed_in_one_sheet_may_be_called_as_before_in_the_others(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    ((doctor,),) = all_of(engine, "SELECT id FROM specialist")
    ((location,),) = all_of(engine, "SELECT id FROM location")
    renamed = WHOLE | {
        "Medici": [["Numero", *DOCTORS[0]], [doctor, "BO01", "Dott.ssa", "De Rossi", "Anna"]],
        "Sedi": [["Numero", *LOCATIONS[0]], [location, "BO01", "Stazione"]],
    }
    found, report = applied(engine, book(renamed))
    assert said(found) == []
    assert (report.counts.updated, report.counts.created, report.counts.retired) == (2, 0, 0)
    assert planned(engine, book(renamed)).problems != ()  # now nobody is called so any more
    another = [["BO01", "Dott.ssa", "Bianchi", "Anna"]]
    ours = [["Numero", *DOCTORS[0]], [doctor, "BO01", "Dott.ssa", "Neri", "Anna"], [None, *another[0]]]
    agendas = [AGENDAS[0], ["BO01", "Stazione", "Cardiologia", "Bianchi Anna", *AGENDAS[1][4:]]]
    found, _ = applied(engine, book({"Medici": ours, "Agende": agendas}))
    assert said(found) == []
    query = "SELECT last_name FROM agenda a JOIN specialist s ON s.id = a.specialist_id"
    assert all_of(engine, query) == [("Bianchi",)]  # whoever is called so now


WRONG = [
    ("Turni", ["BO01", "Cardiologia", "lunedi santo", time(9), time(12)], "«Giorno»: «lunedi santo» non è tra: lunedì"),
    ("Turni", ["BO01", "Cardiologia", "lunedì", "25:00", time(12)], "«Dalle»: «25:00» non è un'ora"),
    ("Turni", ["BO01", "Neurologia", "lunedì", time(9), time(12)], "«Agenda»: «Neurologia» non è in Polydesk"),
    ("Turni", ["BO02", "Cardiologia", "lunedì", time(9), time(12)], "«Clinica»: «BO02» non è in Polydesk"),
    ("Turni", ["BO01", "Cardiologia", None, time(9), time(12)], "«Giorno»: la cella è vuota"),
    ("Prestazioni", ["BO01", "X", "Y", 0, 10], "«Durata (minuti)»: «0» non è un numero intero da 1 a 480"),
    ("Prestazioni", ["BO01", "X", "Y", 20, 33.333], "«Prezzo»: «33.333» non è un importo"),
    ("Prestazioni", ["BO01", "X", "Y", 20, 1e9], "«Prezzo»: «1000000000.00» non è un prezzo: il limite è 100.000,00"),
    ("Prestazioni", ["BO01", "X", "Y", 20, "390.515.550.000"], "«Prezzo»: «390515550000.00» non è un prezzo"),
    ("Prestazioni", ["BO01", "X", "Y", 20, "1.300,5"], None),
    ("Prestazioni", ["BO01", "X", "Y", 20, 33.300000000000004], None),
    ("Cliniche", ["bo02", "Nuova", "Borgo Inesistente"], "«Comune»: il comune «Borgo Inesistente» non è tra quelli"),
    ("Agende", ["BO01", "Centro", "Due", "Bianchi Anna", "ECG", None, None, 20], "una sola delle tre celle"),
    ("Agende", ["BO01", "Centro", "Due", "Rossi Ugo", None, None, None, 20], "«Medico»: «Rossi Ugo» non è in Polydesk"),
    ("Agende", ["BO01", "Centro", "Due", "dott.ssa bianchi anna", None, None, None, 20], None),
    ("Agende", ["BO01", "Centro", "Due", None, None, None, None, 20], "una sola delle tre celle"),
    (
        "Agende",
        ["BO01", "Centro", "Due", None, "ECG", None, "ECG; NO", 20],
        "in quella clinica non c'è «NO»",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sheet", "row", "expected"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_row_is_named_with_its_sheet_row_and_column_and_the_rest_goes_on(
    engine: sa.Engine, sheet: str, row: list[Any], expected: str | None
) -> None:
    rows = {**WHOLE, sheet: [*WHOLE[sheet], row]}
    found, report = applied(engine, book(rows))
    if expected is None:
        assert said(found) == []
        assert report.outcome is Outcome.OK
        return
    (told,) = said(found)
    assert told.startswith(f"foglio {sheet}, riga {len(rows[sheet])}")
    assert expected in told
    assert report.outcome is Outcome.PARTIAL
    assert report.counts.waiting == 1
    assert all_of(engine, "SELECT count(*) FROM agenda_rule") == [(2,)]


def test_a_list_as_people_keep_it(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    made = spreadsheets().load_workbook(io.BytesIO(book({"Orari ambulatorio 2027": []})))
    page = made.active
    page["A1"] = "Poliambulatorio Reno: orari dal 7 gennaio"
    page.merge_cells("A1:F1")
    page["D3"] = "Orario"
    page.merge_cells("D3:E3")
    for place, title in enumerate(["CLINICA", "agenda", "Giorno", "dalle", "alle", "Stanza preferita"], 1):
        page.cell(4, place, title)
    page["A5"] = "BO01"
    page.merge_cells("A5:A6")
    page["B5"] = "Cardiologia"
    page.merge_cells("B5:B6")
    for line, (day, start, end) in enumerate([("mar", "8", "13"), ("ven.", 0.375, time(12, 40))], 5):
        for place, value in enumerate((day, start, end), 3):
            page.cell(line, place, value)
    page["A8"] = "* il venerdì solo su appuntamento"
    held = io.BytesIO()
    made.save(held)
    found, report = applied(engine, held.getvalue())
    assert said(found) == []
    assert found.notes == 1
    assert [teller("it").reason(each) for each in report.reasons] == [
        "foglio Turni: la colonna «Stanza preferita» non è tra quelle conosciute ed è stata saltata"
    ]
    rules = all_of(engine, "SELECT weekday, starts_at, ends_at FROM agenda_rule WHERE weekday IN (2, 5) ORDER BY 1")
    assert rules == [(2, time(8), time(13)), (5, time(9), time(12, 40))]


def test_a_column_that_is_missing_leaves_what_we_hold(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    short = [["Clinica", "Codice", "Nome", "Durata (minuti)"], ["BO01", "CARD", "Visita cardiologica", 30]]
    _, report = applied(engine, book({"Prestazioni": short}))
    assert report.counts.updated == 1
    held = all_of(engine, "SELECT duration_minutes, price FROM service WHERE code = 'CARD'")
    assert held == [(30, Decimal("130.00"))]


def test_what_studiolab_keeps_is_not_the_workbooks(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE service SET external_id = 'S1' WHERE code = 'CARD'"))
    rows = [
        ["Clinica", "Codice", "Nome", "Durata (minuti)", "Prezzo", "Prenotabile online"],
        ["BO01", "CARD", "Visita", 20, 130, "sì"],
        ["BO01", "ECG", "Elettrocardiogramma", 20, 45.5, "sì"],
    ]
    found, report = applied(engine, book({"Prestazioni": rows}))
    assert said(found) == ["foglio Prestazioni, riga 2: questi dati arrivano da studiolab: si cambiano là"]
    assert report.outcome is Outcome.PARTIAL
    rows[1][2] = "Visita cardiologica"
    _, report = applied(engine, book({"Prestazioni": rows}))
    assert report.outcome is Outcome.OK
    assert all_of(engine, "SELECT bool_and(bookable_online) FROM service") == [(True,)]


def test_a_column_that_slipped_stops_the_whole_file(engine: sa.Engine) -> None:
    header, first = SERVICES[:1], [["BO01", f"S{n}", f"Prestazione {n}", 20, 100] for n in range(20)]
    applied(engine, book({**WHOLE, "Prestazioni": [*SERVICES, *first]}))
    slipped = [[*row[:4], 5] for row in first]
    _, report = applied(engine, book({"Prestazioni": [*header, *slipped], "Sedi": [*LOCATIONS, ["BO01", "Nuova"]]}))
    assert report.outcome is Outcome.REFUSED
    assert all_of(engine, "SELECT count(*) FROM location") == [(1,)]
    assert all_of(engine, "SELECT min(price) FROM service") == [(Decimal("45.50"),)]


@pytest.mark.parametrize("slots_made", [False, True])
def test_what_is_in_use_stays_when_an_import_is_taken_back(engine: sa.Engine, slots_made: bool) -> None:
    found, _ = applied(engine, book(WHOLE))
    if slots_made:
        slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        back = undoing.undo(connection, found, as_of=AS_OF, actor="desk:test", reason="era una prova soltanto")
    assert back.outcome is (Outcome.PARTIAL if slots_made else Outcome.OK)
    for table in ("location", "specialist", "service", "agenda", "agenda_rule", "slot"):
        assert all_of(engine, f"SELECT count(*) FROM {table}") == [(0,)], table
    # What generated its slots is on record for the clinic, which stays and is named.
    assert all_of(engine, "SELECT count(*) FROM clinic") == [(int(slots_made),)]


def test_a_superuser_does_not_lose_the_role_by_a_file(engine: sa.Engine) -> None:
    people = [["E-mail", "Nome e cognome", "Ruolo", "Cliniche"], ["capo@example.org", "Carla Neri", "superuser", None]]
    applied(engine, book({**WHOLE, "Utenti": people}))
    head, carla = people
    for role, count in (("accettazione", 1), ("responsabile", 1), ("superuser", 0)):
        found, _ = applied(engine, book({"Utenti": [head, [carla[0], "Carla Neri Verdi", role, "BO01"]]}))
        assert len([why for why in said(found) if "«Ruolo»: chi è superuser" in why]) == count, role
        assert all_of(engine, "SELECT role FROM app_user WHERE email = 'capo@example.org'") == [("superuser",)]


def test_a_closure_and_a_user_and_a_text(engine: sa.Engine) -> None:
    more = {
        "Chiusure": [["Clinica", "Nome", "Dal", "Al"], [None, "Natale", date(2026, 12, 25), "26/12/2026"]],
        "Utenti": [
            ["E-mail", "Nome e cognome", "Ruolo", "Cliniche"],
            ["anna@example.org", "Anna Verdi", "accettazione", "BO01"],
            ["capo@example.org", "Carla Neri", "responsabile", None],
            ["ugo@example.org", "Ugo Blu", "accettazione", None],
        ],
        "Testi": [
            ["Tipo", "Variante", "Canale", "Testo"],
            ["Promemoria", "completo", "SMS", "{{ clinica }}: {% for a in %}"],
        ],
    }
    found, report = applied(engine, book({**WHOLE, **more}))
    without_clinic, broken = sorted(said(found), reverse=True)
    assert without_clinic.startswith("foglio Utenti, riga 4, «Cliniche»: chi ha questo ruolo lavora in almeno una")
    assert broken.startswith("foglio Testi, riga 2")
    assert report.outcome is Outcome.PARTIAL
    assert all_of(engine, "SELECT layer, name, date_to FROM closure") == [("chain", "Natale", date(2026, 12, 26))]
    assert all_of(engine, "SELECT email, role, whole_chain, state FROM app_user ORDER BY email") == [
        ("anna@example.org", "desk", False, "never_invited"),
        ("capo@example.org", "manager", True, "never_invited"),
    ]
    more["Testi"][1][3] = "{{ clinica }}: {{ nome }}, domani alle {{ appuntamenti[0].ora }}."
    more["Chiusure"].append([None, "Ponte", date(2026, 12, 7), None])
    _, report = applied(engine, book({**WHOLE, **more}))
    assert report.counts.created == 2
    versions = all_of(engine, "SELECT layer, kind, channel FROM message_template_version")
    assert versions == [("chain", "reminder", "sms")]
    assert set(DOMAINS["message_kind"]) == {each.kind for each in FACTORY}, "a text of any kind comes back from a file"


def test_a_closed_day_has_no_free_slot_as_soon_as_its_closure_is_in(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    slots.generate(engine, AS_OF)
    free = "SELECT count(*) FROM slot WHERE state = 'free' AND local_date IN ('2026-03-12', '2026-03-16')"
    before = all_of(engine, free)
    closures = [
        ["Clinica", "Agenda", "Nome", "Dal", "Ogni anno"],
        ["BO01", None, "Patrono", date(2024, 3, 12), "sì"],
        ["BO01", "Cardiologia", "Congresso", date(2026, 3, 16), None],
    ]
    found, report = applied(engine, book({**WHOLE, "Chiusure": closures}))
    assert (said(found), report.counts.created) == ([], 2)
    assert all_of(engine, free) == [(0,)]
    with engine.begin() as connection:
        undoing.undo(connection, found, as_of=AS_OF, actor="desk:test", reason="erano dell'anno scorso")
    assert all_of(engine, free) == before != [(0,)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"not a workbook", "workbook_unreadable"),
        (book({"Foglio1": [["a", "b"]]}), "workbook_of_another_kind"),
        (book({"Turni": []}), "workbook_of_another_kind"),
    ],
)
def test_what_is_no_workbook_of_ours_is_said(data: bytes, code: str) -> None:
    with pytest.raises(PermanentError) as refused:
        reading.read(data, workbook.words())
    assert refused.value.reason.code == code


def test_headings_of_a_sheet_differ_in_every_language() -> None:
    for language in LANGUAGES:
        for sheet in SHEETS:
            titles = [exporting.heading(teller(language), sheet, column) for column in sheet.columns]
            assert len(titles) == len(set(titles)), (language, sheet.key)
    for sheet in SHEETS:
        assert set(workbook.words().headings[sheet.key].values()) == {column.key for column in sheet.columns}


@pytest.mark.slow
def test_the_way_between_two_locations_comes_in_goes_out_and_is_taken_back(engine: sa.Engine) -> None:
    clinics = [*CLINICS, ["RE01", "Poliambulatorio Secchia", "H223", "Emilia-Romagna"]]
    locations = [["Clinica", "Nome"], ["BO01", "Centro"], ["BO01", "Mazzini"], ["RE01", "Ponte"]]
    titles = ["Clinica", "Sede", "Clinica di arrivo", "Sede di arrivo", "Minuti di spostamento"]
    ways = [
        ["BO01", "Mazzini", None, "Centro", 20], ["RE01", "Ponte", "BO01", "Centro", 60],
        ["BO01", "Centro", None, "Centro", 5], ["BO01", "Centro", None, "Altrove", 5],
    ]  # fmt: skip
    whole = {"Cliniche": clinics, "Sedi": locations, "Spostamenti": [titles, *ways]}
    found, _ = applied(engine, book(whole))
    assert [line.partition("»: ")[2] for line in said(found)] == [
        "è la stessa sede", "«Altrove» non è in Polydesk, e in questo file la sua riga manca o va corretta"
    ]  # fmt: skip
    kept = """SELECT least(a.name, b.name), greatest(a.name, b.name), minutes
              FROM travel JOIN location a ON a.id = from_location
              JOIN location b ON b.id = to_location ORDER BY minutes"""
    assert all_of(engine, kept) == [("Centro", "Mazzini", 20), ("Centro", "Ponte", 60)]
    held = io.BytesIO()
    with engine.connect() as connection:
        exporting.export(connection, held, teller("it"))
    assert planned(engine, held.getvalue()).plans == ()
    turned = {**whole, "Spostamenti": [titles, ["BO01", "Centro", "BO01", "Mazzini", 0]]}
    changed, _ = applied(engine, book(turned))
    assert all_of(engine, kept)[0] == ("Centro", "Mazzini", 0)
    with engine.begin() as connection:
        undoing.undo(connection, changed, as_of=AS_OF, actor="desk:test", reason="prova")
    assert all_of(engine, kept)[0] == ("Centro", "Mazzini", 20)
