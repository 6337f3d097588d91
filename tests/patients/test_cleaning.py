"""What a patient's record says, brought into one form: codes, telephones, and what no record may say."""

from __future__ import annotations

from datetime import date
from typing import Any

import phonenumbers
import pytest
from codicefiscale import codicefiscale
from hypothesis import given, settings
from hypothesis import strategies as st

from polydesk_dagster.changes.kind import Reject
from polydesk_dagster.changes.why import read
from polydesk_dagster.clinic.patients.cleaning import e164, fingerprint, prepare
from polydesk_dagster.clinic.patients.fiscal_codes import (
    birth_part,
    check_letter,
    code_of,
    first_name_part,
    last_name_part,
)
from polydesk_dagster.sources.records import Patient
from polydesk_dagster.told import teller
from polydesk_dagster.wire import sort_records
from tests.patients.world import MARIO, person


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=15, max_size=15))
def test_the_check_letter_is_the_librarys(code: str) -> None:
    assert check_letter(code) == codicefiscale.encode_cin(code)


@given(st.one_of(st.text("AEIOUBCDXYZaeioubcdfxyz", max_size=8), st.text("aeBCß'È ,&;-éñ7", max_size=6)))
@settings(deadline=None)
def test_the_letters_of_a_name_are_the_librarys(name: str) -> None:
    assert last_name_part(name) == codicefiscale.encode_lastname(name)
    assert first_name_part(name) == codicefiscale.encode_firstname(name)


@given(st.lists(st.one_of(st.none(), st.text("ABab 'È-.`\t1ß", max_size=6)), min_size=5, max_size=5))
@settings(max_examples=80, deadline=None)
def test_who_somebody_is_is_hashed_alike_by_the_short_way_and_the_long(said: list[str | None]) -> None:
    item = dict(zip(("fiscal_code", "last_name", "first_name", "birth_date", "sex"), said, strict=True))
    # A character that only the long way takes, and that leaves no trace in what is compared.
    longer = {name: None if text is None else text + "\u0301" for name, text in item.items()}
    assert fingerprint(item) == fingerprint(longer)


@given(
    st.tuples(st.text("ABab '-.`è", max_size=8), st.text("CeE -", max_size=8)),
    st.dates(date(1900, 1, 1), date(2025, 12, 31)),
    st.sampled_from("MF"),
    st.sampled_from(["H501", "A944", "Z330"]),
)
@settings(max_examples=80, deadline=None)
def test_a_persons_own_code_is_the_librarys_and_she_is_hashed_as_the_same(
    names: tuple[str, str], born: date, sex: str, place: str
) -> None:
    last, first = (f"R{name}" for name in names)
    day = born.isoformat()
    code = code_of(last, first, sex, day, place)
    assert code[:15] == last_name_part(last) + first_name_part(first) + birth_part(day, sex) + place
    assert code[15] == codicefiscale.encode_cin(code[:15])
    fields = {"last_name": last, "first_name": first, "sex": sex, "birth_date": day, "birth_place": place}
    for written in (code, code.lower(), f" {code[:6]} {code[6:]}"):
        item = person("P1", fiscal_code=written, **fields)
        row = prepare(item)
        assert (row[1:4], row[16], row[-2:]) == ((code, code, "CF"), str(fingerprint(item)), (None, None))


@given(st.dates(date(1900, 1, 1), date(2040, 12, 31)), st.sampled_from("MF"))
@settings(max_examples=50, deadline=None)
def test_the_birth_part_is_the_librarys(day: date, sex: str) -> None:
    assert birth_part(day.isoformat(), sex) == codicefiscale.encode_birthdate(day.strftime("%d/%m/%Y"), sex)


@pytest.mark.parametrize("variant", codicefiscale.decode(MARIO["fiscal_code"])["omocodes"][::9])
def test_every_omocodia_variant_folds_to_the_same_person(variant: str) -> None:
    row = prepare(person("P1", fiscal_code=variant))
    assert (row[1], row[2], row[-1]) == (variant, MARIO["fiscal_code"], None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fiscal_code": "RSSMRA80A01H501X"}, "lettera di controllo"),
        ({"fiscal_code": "PIPPO"}, "forma"),
        ({"last_name": "Bianchi"}, "cognome"),
        ({"first_name": "Luigi"}, "nome"),
        ({"sex": "F"}, "sesso"),
        ({"birth_date": "1980-01-02"}, "data di nascita"),
        ({"birth_place": "F205"}, "luogo di nascita"),
        ({"fiscal_code": None, "birth_date": None}, "senza codice fiscale"),
    ],
)
def test_a_code_that_cannot_be_this_persons_is_a_doubt(fields: dict[str, Any], said: str) -> None:
    row = prepare(person("P1", **fields))
    assert row[-2] == "invalid"
    assert said in teller().value(read(row[-1]))


def test_codes_of_foreigners_and_spellings() -> None:
    assert prepare(person("P1", fiscal_code="STP1234567890123"))[3] == "STP"
    assert prepare(person("P1", fiscal_code=" eni1234567890123 "))[1:4] == (
        "ENI1234567890123", "ENI1234567890123", "ENI",
    )  # fmt: skip
    assert prepare(person("P1", fiscal_code="rss mra 80a01 h501 u"))[1] == MARIO["fiscal_code"]
    assert prepare(person("P1", last_name="Nicolo'\ufeff ", fiscal_code=None))[4] == "Nicolo'"


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("333 123 4567", "+393331234567"),
        ("+39 333.1234567", "+393331234567"),
        ("0039 051/234567", "+39051234567"),
        ("051-234567", "+39051234567"),
        ("+41 44 668 18 00", "+41446681800"),
        ("12", None),
        ("casa della nonna", None),
    ],
)
def test_telephones_in_one_form(typed: str, known: str | None) -> None:
    assert e164(typed) == known


@given(st.from_regex(r"3[2-9][0-9]{8}", fullmatch=True))
@settings(max_examples=50, deadline=None)
def test_what_looks_like_a_mobile_is_one_for_the_library(typed: str) -> None:
    assert phonenumbers.is_valid_number(number := phonenumbers.parse(typed, "IT"))
    assert e164(typed) == phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


@given(st.from_regex(r"(19|20|00)[0-9]{2}-[01][0-9]-[0-3][0-9]", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_a_day_is_one_of_the_calendar(said: str) -> None:
    try:
        known: str | None = date.fromisoformat(said).isoformat()
    except ValueError:
        known = None
    if known is None:
        with pytest.raises(Reject):
            prepare(person("P1", birth_date=said))
    else:
        assert prepare(person("P1", birth_date=said))[7] == known


@pytest.mark.parametrize(
    "fault",
    [{"last_name": None}, {"id": " "}, {"birth_date": "31/02/1980"}, {"birth_date": "1980-02-31"}, {"sex": "X"},
     {"birth_place": "Roma"}, {"sex": ["M"]}, {"id": ["P1"]}, {"birth_date": {}}, {"address": 7},
     {"updated_at": None}, {"deceased_on": "ieri"}, {"sex": "MF"}, {"birth_date": "1980-W01-1"},
     {"id": "P" * 256}, {"last_name": "Rossi" * 60}],
)  # fmt: skip
def test_what_the_wire_model_rejects_is_rejected_here(fault: dict[str, Any]) -> None:
    item = person("P1", **fault)
    assert sort_records(Patient, [item]).rejected
    with pytest.raises(Reject):
        prepare(item)


def test_a_blank_date_is_an_absent_one_and_nobody_dies_before_birth() -> None:
    assert prepare(person("P1", birth_date=" ", deceased_on="\ufeff2020-01-01 "))[7::8] == (None, "2020-01-01")
    assert prepare(person("P1", deceased_on=MARIO["birth_date"]))[15] == MARIO["birth_date"]
    with pytest.raises(Reject, match="died_before_birth"):
        prepare(person("P1", deceased_on="1979-12-31"))


def test_what_is_no_text_at_all_is_rejected() -> None:
    with pytest.raises(Reject):
        prepare(person("P1", first_name="\ud800"))
