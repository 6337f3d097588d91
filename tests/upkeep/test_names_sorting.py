from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydesk_dagster.clinic.upkeep.names import fold, sort_name, without_titles

ANY_NAME = st.text(
    st.sampled_from("aàbcdeèéiìloòrsuùzDLNRSÖß'’-. ") | st.characters(categories=["L", "M", "P", "Z"]), max_size=30
)


@pytest.mark.parametrize(
    ("last", "first", "expected"),
    [
        ("Rossi", "Mario", "ROSSI  MARIO"),
        ("Dott. Rossi", "Mario", "ROSSI  MARIO"),
        ("Rossi", "Dr.ssa Anna", "ROSSI  ANNA"),
        ("Prof.ssa Dott.ssa De Luca", "Anna", "DELUCA  ANNA"),
        ("Dott.ssa Prof. D'Angelo", "Ugo", "DANGELO  UGO"),
        ("prof dr  von Braun", "Eva", "VONBRAUN  EVA"),
        ("D’ANGELO", "ugo", "DANGELO  UGO"),
        ("d' angelo", "Ugo", "DANGELO  UGO"),
        ("Dell'Acqua", "Zoe", "DELLACQUA  ZOE"),
        ("Dalla Chiesa", "Rita", "DALLACHIESA  RITA"),
        ("De' Medici", "Lorenzo", "DEMEDICI  LORENZO"),
        ("Lo Cascio", "Totò", "LOCASCIO  TOTO"),
        ("La", "Kim", "LA  KIM"),
        ("Di", "Wei", "DI  WEI"),
        ("De La Cruz", "Ana", "DELACRUZ  ANA"),
        ("Rossi-Bianchi", "Ada", "ROSSI BIANCHI  ADA"),
        ("Rossi  Bianchi", "Ada", "ROSSI BIANCHI  ADA"),
        ("Rossi De Luca", "Ada", "ROSSI DELUCA  ADA"),
        ("Nicolo'", "Gianni", "NICOLO  GIANNI"),
        ("Nicolò", "Gianni", "NICOLO  GIANNI"),
        ("Müller", "Jürgen", "MULLER  JURGEN"),
        ("Groß", "Ilse", "GROSS  ILSE"),
        ("Ing", "Li", "ING  LI"),
        ("Ing. Verdi", "Ivo", "VERDI  IVO"),
        ("Avv. Sig.ra Neri", "Pia", "NERI  PIA"),
        ("Drago", "Elio", "DRAGO  ELIO"),
        ("Proface", "Elio", "PROFACE  ELIO"),
        ("Medici", "Elio", "MEDICI  ELIO"),
        ("La Rosa, dott.", "Nino", "LAROSA  NINO"),
        ("Rossi Dr.ssa", "Anna", "ROSSI  ANNA"),
        ("Neri", "Pia, Prof. Dott.ssa", "NERI  PIA"),
        ("Rossi (dott.ssa)", "Anna", "ROSSI  ANNA"),
        ("Rossi Ing.", "Ivo", "ROSSI  IVO"),
        ("Rossi Ing", "Li", "ROSSI ING  LI"),
        ("van der Berg", "Jan", "VANDERBERG  JAN"),
        ("zur Mühlen", "Eva", "ZURMUHLEN  EVA"),
        ("Dott.", "", "DOTT"),
        ("", "Anna", "ANNA"),
        ("", "", ""),
    ],
)
def test_sort_name(last: str, first: str, expected: str) -> None:
    assert sort_name(last, first) == expected


def test_a_list_reads_like_a_telephone_book() -> None:
    book = [
        ("D'Agostino", "Lia"), ("Dalla Torre", "Ugo"), ("De Luca", "Anna"), ("Deluca", "Bruno"), ("De Rosa", "Ivo"),
        ("Della Rocca", "Pia"), ("Di Stefano", "Elsa"), ("La Rosa", "Nino"), ("Lo Cascio", "Rita"), ("Nicolò", "Ada"),
        ("Nicolosi", "Ada"), ("Rossi", "Zeno"), ("Rossi Bianchi", "Ada"), ("Rossini", "Gioachino"), ("Urso", "Eva"),
    ]  # fmt: skip
    book.reverse()
    ordered = sorted(book, key=lambda person: sort_name(*person))
    assert ordered == [
        ("D'Agostino", "Lia"), ("Dalla Torre", "Ugo"), ("Della Rocca", "Pia"), ("De Luca", "Anna"), ("Deluca", "Bruno"),
        ("De Rosa", "Ivo"), ("Di Stefano", "Elsa"), ("La Rosa", "Nino"), ("Lo Cascio", "Rita"), ("Nicolò", "Ada"),
        ("Nicolosi", "Ada"), ("Rossi", "Zeno"), ("Rossi Bianchi", "Ada"), ("Rossini", "Gioachino"), ("Urso", "Eva"),
    ]  # fmt: skip


@given(ANY_NAME)
def test_folding_is_idempotent_and_blind_to_case_accents_and_apostrophes(name: str) -> None:
    folded = fold(name)
    assert fold(folded) == folded
    assert folded == folded.strip()
    assert "  " not in folded


@given(ANY_NAME, ANY_NAME)
def test_titles_never_take_the_whole_name(last: str, first: str) -> None:
    assert bool(without_titles(last)) == bool(last.strip())
    if fold(last) or fold(first):
        assert sort_name(last, first)


@pytest.mark.parametrize("title", ["Dott.", "dott.ssa", "Dr.", "DR.SSA", "Prof.", "Prof.ssa", "Prof. Dott.", "Avv."])
def test_titles_make_no_difference_to_real_surnames(title: str, shared_data: Path) -> None:
    with gzip.open(shared_data / "nomi" / "wikipedia_cognomi_top100.csv.gz", "rt", encoding="utf-8-sig") as rows:
        surnames = [value for row in csv.reader(rows) for value in row if value[:1].isalpha()]
    assert len(surnames) > 90
    for surname in surnames:
        assert sort_name(f"{title} {surname}", "Anna") == sort_name(surname, "Anna")
        assert sort_name(surname.upper(), "ANNA") == sort_name(surname, "Anna")
