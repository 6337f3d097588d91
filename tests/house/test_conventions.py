"""What people are told about working here is so."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.waiting import PATIENCE

LOCK = "requirements.lock"
ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]


@pytest.mark.parametrize("guide", GUIDES, ids=[guide.name for guide in GUIDES])
def test_what_a_guide_names_is_there(guide: Path) -> None:
    text = guide.read_text()
    paths = re.findall(r"`((?:polydesk_dagster|tests|docs)/[\w./]+[\w/])`", text)
    links = [str((guide.parent / link).relative_to(ROOT)) for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    assert [name for name in [*paths, *links] if not (ROOT / name).exists()] == []


def test_pre_commit_runs_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == commands


def test_the_licence_is_named_where_packages_look() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_the_lock_holds_names_versions_and_hashes_and_whatever_is_declared() -> None:
    lines = (ROOT / LOCK).read_text().splitlines()
    named = [match for line in lines if (match := re.fullmatch(r"([\w.-]+)==\S+(?: ; [^\\]+)? \\", line))]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line)]
    assert len(named) + len(hashes) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    wanted = {_normal(re.split(r"[\[<>=~!; ]", each)[0]) for each in declared}
    assert wanted <= {_normal(match[1]) for match in named}


def test_the_lock_of_a_deployment_is_a_part_of_the_other_without_what_only_developers_need() -> None:
    whole, part = (
        set(re.split(r"\n(?=\S)", file.read_text().strip())) for file in (ROOT / LOCK, ROOT / "deploy" / LOCK)
    )
    versions = {each.partition(" ")[0] for each in whole}
    assert {each.partition(" ")[0] for each in part} <= versions
    names = {_normal(each.partition("==")[0]) for each in part}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {_normal(re.split(r"[\[<>=~!; ]", each)[0]) for each in project["project"]["dependencies"]} <= names
    assert not {"pytest", "pyrefly", "ruff", "playwright", "uv"} & names


def _normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _bounds(call: ast.Call) -> Iterator[float]:
    """The seconds that a call says by itself how long it waits."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    first = call.args[:1] if name in {"communicate", "join", "result", "settimeout", "wait"} else []
    for value in [*first, *(each.value for each in call.keywords if each.arg in {"patience", "timeout"})]:
        if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
            yield float(value.value)


def test_no_test_knows_how_fast_a_machine_is() -> None:
    """What is to come is waited for as long as all tests do; a moment is for what must not come, or is given up."""
    read = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
    calls = ((path, node) for path, tree in read.items() for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert [
        f"{path}:{call.lineno}" for path, call in calls if any(5 <= bound < PATIENCE for bound in _bounds(call))
    ] == []
