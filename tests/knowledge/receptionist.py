"""A receptionist's set: sheets of real outpatient services, and how patients and her colleagues ask for them.

The sheets are entries of a region's tariff decree, one a file, under one letterhead and neutral names, as laboratories
publish theirs. The questions were written without looking at what any search returns; each names the codes that answer.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

CHAPTERS = ("45.1", "45.2", "57.3", "87", "88.2", "88.7", "88.9", "89", "90", "93.0", "95")
"""Of the national list: endoscopy, radiology, ultrasound, magnetic resonance, visits, laboratory, eyes and ears."""

DEPTH = 10

Question = tuple[str, frozenset[str]]
"""What is asked, and the codes of the sheets that answer it."""


def sheets(data: Path) -> Iterator[tuple[str, str]]:
    """Code and Markdown of each sheet."""
    with gzip.open(data / "listino" / "umbria_nomenclatore_v05_2024-09-17.csv.gz", "rt", encoding="utf-8-sig") as lines:
        for row in csv.DictReader(lines):
            code = row["CODICE_NOMENCLATORE"]
            if code.startswith(CHAPTERS):
                told = {
                    "Codice": code,
                    "Denominazione": " ".join(row["DENOMINAZIONE_COMPLETA"].split()),
                    "Branca": ", ".join(filter(None, (row[f"BRANCA_{place}"] for place in range(1, 5)))),
                    "Tariffa": f"{float(row['TARIFFA']):.2f} €".replace(".", ","),
                    "Note": row["NOTA"],
                }
                lines_of = "\n".join(f"{name}: {value}\n" for name, value in told.items() if value)
                yield code, f"# Scheda della prestazione\n\n{lines_of}"


def questions(data: Path) -> tuple[list[Question], list[Question]]:
    """The development and the test half."""
    with (data / "qa" / "receptionist_questions.tsv").open(encoding="utf-8") as lines:
        every = [(row["question"], frozenset(row["codes"].split())) for row in csv.DictReader(lines, delimiter="\t")]
    return every[0::2], every[1::2]


def absent(data: Path) -> list[str]:
    """Questions of the test half about examinations that no sheet treats."""
    with (data / "qa" / "absent_examinations.tsv").open(encoding="utf-8") as lines:
        return [row["question"] for row in csv.DictReader(lines, delimiter="\t") if row["half"] == "test"]


def reciprocal_rank(found: list[str], right: frozenset[str]) -> float:
    """1 ÷ the place of the first right sheet among the first ten, 0 if there is none."""
    return next((1 / place for place, code in enumerate(found[:DEPTH], 1) if code in right), 0.0)


def plain_bm25(uri: str, data: Path, asked: list[Question]) -> list[float]:
    """How plain BM25 with an Italian stemmer ranks over the same passages."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import FTS

    every = list(sheets(data))
    rows = {"code": [code for code, _ in every], "text": [text for _, text in every]}
    table = lancedb.connect(uri).create_table("plain", pa.table(rows))
    table.create_index("text", config=FTS(language="Italian"))

    def found(question: str) -> list[str]:
        search = table.search(question, query_type="fts").select(["code", "_score"]).limit(DEPTH)
        return list(search.to_arrow()["code"].to_pylist())

    return [reciprocal_rank(found(question), right) for question, right in asked]
