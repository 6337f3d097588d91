"""Temporary files: old ones into quarantine, later gone; nothing through a link, nothing outside the folder."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from polydesk_dagster.clinic import temporary
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from tests.world import AS_OF

HOUR = timedelta(hours=1)


def make(path: Path, age: timedelta, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    at = (AS_OF - age).timestamp()
    os.utime(path, (at, at))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tmp"
    root.mkdir()
    return root


def test_an_old_file_is_quarantined_and_a_week_later_deleted(root: Path) -> None:
    old = make(root / "referti" / "vecchio.pdf", 25 * HOUR)
    young = make(root / "nuovo.pdf", 23 * HOUR)
    report = temporary.tidy(root, AS_OF)
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 1)
    assert not old.exists()
    assert young.exists()
    (day,) = (root / ".quarantine").iterdir()
    (kept,) = (path for path in day.iterdir() if path.name != ".list.jsonl")
    assert kept.read_text() == "x"
    assert json.loads((day / ".list.jsonl").read_text())["was"] == "referti/vecchio.pdf"
    assert temporary.tidy(root, AS_OF).outcome is Outcome.NOTHING_TO_DO
    assert temporary.tidy(root, AS_OF + 6 * 24 * HOUR).counts.retired == 0
    assert temporary.tidy(root, AS_OF + 7 * 24 * HOUR, preview=True).counts.retired == 1
    assert temporary.tidy(root, AS_OF + 7 * 24 * HOUR).counts.retired == 1
    assert not kept.exists()


def test_a_preview_moves_nothing(root: Path) -> None:
    old = make(root / "a", 25 * HOUR)
    assert temporary.tidy(root, AS_OF, preview=True).counts.updated == 1
    assert old.exists()
    assert not (root / ".quarantine").exists()


def test_what_a_running_job_or_a_program_uses_stays(root: Path) -> None:
    newer = make(root / "in corso", 30 * HOUR)
    opened = make(root / "aperto", 50 * HOUR)
    with opened.open():
        report = temporary.tidy(root, AS_OF, in_use_since=AS_OF - 31 * HOUR)
    assert (report.counts.updated, report.counts.skipped) == (0, 1)
    assert newer.exists()
    assert opened.exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_is_never_followed(root: Path, tmp_path: Path, kind: str) -> None:
    target = make(tmp_path / "cartelle cliniche" / "referto.pdf", 500 * HOUR)
    (root / "scorciatoia").symlink_to(target if kind == "file" else target.parent)
    report = temporary.tidy(root, AS_OF)
    assert report.counts.updated == 0
    assert "scorciatoia" in report.reasons[0].message
    assert target.exists()


@pytest.mark.parametrize("inside", ["..", "../fuori", "/etc", "a/../../fuori", "", ".quarantine"])
def test_a_path_outside_the_root_is_refused_by_name(root: Path, inside: str) -> None:
    with pytest.raises(PermanentError, match="fuori da") as refusal:
        temporary.tidy(root, AS_OF, inside=inside)
    assert f"«{inside}»" in str(refusal.value)


def test_a_link_on_the_way_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    target = make(tmp_path / "fuori" / "b" / "importante", 500 * HOUR)
    (root / "a").symlink_to(tmp_path / "fuori")
    with pytest.raises(PermanentError, match="«a» non è una cartella vera"):
        temporary.tidy(root, AS_OF, inside="a/b")
    assert target.exists()


def test_a_root_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "altrove"
    link.symlink_to(root)
    make(root / "a", 50 * HOUR)
    with pytest.raises(PermanentError, match="altrove"):
        temporary.tidy(link, AS_OF)


def test_a_root_that_is_not_there_has_nothing_to_tidy(tmp_path: Path) -> None:
    assert temporary.tidy(tmp_path / "manca", AS_OF).outcome is Outcome.NOTHING_TO_DO
