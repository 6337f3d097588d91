"""Temporary files: old ones into quarantine, later gone; nothing through a link, nothing outside the folder."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polydesk_dagster.clinic.upkeep import temporary
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller

HOUR = timedelta(hours=1)
AS_OF = datetime.now(UTC) + timedelta(days=60)
"""So late that what a test makes now is old, unless it says otherwise."""


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
    assert (report.reasons[0].code, report.reasons[0].count) == ("links", 1)
    assert "scorciatoia" not in str(report), "a file's name may be a patient's"
    assert target.exists()


@pytest.mark.parametrize("inside", ["..", "../fuori", "/etc", "a/../../fuori", "", ".quarantine"])
def test_a_path_outside_the_root_is_refused_by_name(root: Path, inside: str) -> None:
    report = temporary.tidy(root, AS_OF, inside=inside)
    assert report.outcome is Outcome.REFUSED
    assert f"«{inside}» è fuori dalla cartella" in teller("it").reason(report.reasons[0])


def test_a_link_on_the_way_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    target = make(tmp_path / "fuori" / "b" / "importante", 500 * HOUR)
    (root / "a").symlink_to(tmp_path / "fuori")
    report = temporary.tidy(root, AS_OF, inside="a/b")
    assert report.outcome is Outcome.REFUSED
    assert "«a» non è una cartella vera" in teller("it").reason(report.reasons[0])
    assert target.exists()


def test_a_root_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "altrove"
    link.symlink_to(root)
    make(root / "a", 50 * HOUR)
    report = temporary.tidy(link, AS_OF)
    assert report.outcome is Outcome.REFUSED
    assert "altrove" in teller("it").reason(report.reasons[0])
    assert (root / "a").exists()


def test_a_root_that_is_not_there_has_nothing_to_tidy(tmp_path: Path) -> None:
    assert temporary.tidy(tmp_path / "manca", AS_OF).outcome is Outcome.NOTHING_TO_DO


@pytest.mark.parametrize(
    "name", ["è" * 127, os.fsdecode(b"referto_\xe8.pdf"), "a" * 255], ids=["long", "latin", "plain"]
)
def test_whatever_bytes_its_name_is_a_file_is_moved_and_can_be_put_back(root: Path, name: str) -> None:
    make(root / "referti" / name, 25 * HOUR)
    assert temporary.tidy(root, AS_OF).counts.updated == 1
    (day,) = (root / ".quarantine").iterdir()
    line = json.loads((day / ".list.jsonl").read_text())
    (day / line["name"]).rename(root / Path(line["was"]).name)
    assert (root / name).read_text() == "x"


def test_two_long_names_that_end_alike_stay_two_files(root: Path) -> None:
    for first in "ab":
        make(root / (first + "x" * 240), 25 * HOUR, first)
    assert temporary.tidy(root, AS_OF).counts.updated == 2
    (day,) = (root / ".quarantine").iterdir()
    assert {path.read_text() for path in day.iterdir() if path.name != ".list.jsonl"} == {"a", "b"}


def test_a_file_that_cannot_be_moved_is_counted_and_the_rest_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        make(root / name, 25 * HOUR)
    listed, moved = os.listdir, os.rename

    def listing(folder: int) -> list[str]:
        names = listed(folder)
        if "b" in names:
            os.unlink("b", dir_fd=folder)
        return names

    def rename(name: str, *args: object, **kwargs: object) -> None:
        if name == "a":
            raise PermissionError(13, "vietato")
        moved(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "listdir", listing)
    monkeypatch.setattr(os, "rename", rename)
    report = temporary.tidy(root, AS_OF)
    assert (report.outcome, report.counts.updated, report.counts.failed) == (Outcome.PARTIAL, 2, 1)
    assert (report.reasons[0].code, report.reasons[0].count) == ("unmovable", 1)
    assert listed(root) == [".quarantine", "a"] or listed(root) == ["a", ".quarantine"]


def test_a_file_that_was_just_unpacked_is_young_whatever_its_date(root: Path) -> None:
    unpacked = root / "estratto.csv"
    unpacked.write_text("x")
    os.utime(unpacked, (1, 1))
    assert temporary.tidy(root, datetime.now(UTC)).counts.changed == 0
    assert unpacked.exists()


def test_old_empty_folders_go_and_young_ones_stay(root: Path) -> None:
    make(root / "vuota" / "prima" / "file", 25 * HOUR)
    young = root / "nuova"
    young.mkdir()
    at = (AS_OF - HOUR).timestamp()
    os.utime(young, (at, at))
    assert temporary.tidy(root, AS_OF).counts.retired == 2
    assert sorted(path.name for path in root.iterdir()) == [".quarantine", "nuova"]


def test_folders_without_end_are_one_failure_and_the_rest_goes_on(root: Path) -> None:
    make(root / "a.csv", 25 * HOUR)
    make(root / "z.csv", 25 * HOUR)
    handle = os.open(root, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("m", dir_fd=handle)
        below = os.open("m", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    try:
        report = temporary.tidy(root, AS_OF)
    finally:
        subprocess.run(["rm", "-rf", str(root / "m")], check=True)
    assert (report.outcome, report.counts.updated, report.counts.failed) == (Outcome.PARTIAL, 2, 1)
    assert [(reason.code, reason.count) for reason in report.reasons] == [("too_deep", 1)]
