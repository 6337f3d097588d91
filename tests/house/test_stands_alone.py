"""Tests and benchmarks need nothing beside the repository, and what they bring says where it is from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
MODULES = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


def test_no_module_looks_above_the_repository() -> None:
    above = [path for path in MODULES if not all(folder.is_relative_to(ROOT) for folder in _folders(path))]
    assert MODULES
    assert above == []


def _folders(path: Path) -> Iterator[Path]:
    """The folders above itself that a module names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and re.fullmatch(r".*__file__.*\.parents", ast.unparse(node.value)):
            yield path.parents[ast.literal_eval(node.slice)]


def test_every_file_of_data_has_its_source_and_licence() -> None:
    rows = [line.split("|") for line in (DATA / "README.md").read_text().splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    there = {str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file() and path.parent != DATA}
    assert told == there
    assert all(len(row) == 6 and row[3].strip() and row[4].strip() for row in rows)


def test_the_data_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 6_000_000
