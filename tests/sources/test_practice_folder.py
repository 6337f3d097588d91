"""The folder of workbooks: a dropped file makes a plan, never a change, whatever is dropped and however."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import definitions
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.jobs.practice import LOOK
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.sensors.practice import SETTLED, dropped
from polydesk_dagster.sources.practice import exporting, importing, reading
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason

CLINIC = {
    "Cliniche": [
        ("Codice *", "Nome *", "Comune *", "Regione"),
        ("BO01", "Poliambulatorio Reno", "Bologna", "Emilia-Romagna"),
    ]
}


def written(file: Path, sheets: dict[str, list[tuple[Any, ...]]] | None = None) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in (sheets or CLINIC).items():
        page = book.create_sheet(title)
        for row in rows:
            page.append(row)
    book.save(file)
    return file


class Folder:
    """The folder, the sensor that watches it and what its runs come to."""

    def __init__(self, engine: sa.Engine, path: Path, instance: dg.DagsterInstance) -> None:
        self.engine, self.path, self.instance = engine, path, instance
        self.cursor: str | None = None
        self.repository = definitions.defs.get_repository_def()

    def look(self) -> list[dict[str, Any]]:
        """What the sensor asks for: the config of each run."""
        with dg.build_sensor_context(
            self.instance, self.cursor, repository_def=self.repository, resources={"polydesk": PolydeskResource()}
        ) as context:
            said = list(self.repository.get_sensor_def("practice_folder")(context))  # type: ignore[call-overload]
            self.cursor = context.cursor
        return [each.run_config for each in said if isinstance(each, dg.RunRequest)]

    def run(self, config: dict[str, Any]) -> bool:
        job = definitions.defs.resolve_job_def(LOOK)
        return job.execute_in_process(config, instance=self.instance, raise_on_error=False).success

    def run_apart(self, config: dict[str, Any]) -> bool:
        """Beside others: what is in memory of Dagster's is not for several threads."""
        job = definitions.defs.resolve_job_def(LOOK)
        return job.execute_in_process(config, raise_on_error=False).success

    def names(self) -> list[str]:
        return [config["ops"]["practice__workbook_preview"]["config"]["file"] for config in self.look()]

    def said(self) -> str:
        with self.engine.connect() as connection:
            (reason,) = connection.scalar(sa.text("SELECT reasons FROM service_run ORDER BY id DESC LIMIT 1"))
        return teller("it").reason(Reason.from_dict(reason))

    def count(self, table: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0)


@pytest.fixture
def folder(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    monkeypatch.setattr(PolydeskResource, "now", lambda _: datetime.now(UTC) + 2 * SETTLED)
    path = tmp_path / "practice"
    path.mkdir()
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Folder(engine, path, instance)


def test_a_dropped_workbook_makes_a_plan_and_no_change(folder: Folder) -> None:
    file = written(folder.path / "struttura.xlsx")
    (config,) = folder.look()
    assert folder.run(config)
    assert (folder.count("plan"), folder.count("clinic")) == (1, 0)
    assert folder.look() == [], "once"
    file.write_bytes(file.read_bytes())
    assert folder.names() == ["struttura.xlsx"], "dropped again it is looked at again"
    assert folder.run(config)
    assert folder.count("clinic") == 0


def test_one_that_nobody_has_filled_in_is_said_to_be_that(folder: Folder) -> None:
    with (folder.path / "modello.xlsx").open("wb") as file:
        exporting.template(file, teller("it"))
    (config,) = folder.look()
    assert folder.run(config)
    assert folder.said() == "il file non ha ancora nessuna riga sotto le intestazioni: riempirlo e ripetere"


def test_what_is_no_workbook_is_passed_over_or_told(folder: Folder) -> None:
    for name in ("~$struttura.xlsx", ".struttura.xlsx", "struttura.xlsx.part", "Thumbs.db", "note.txt"):
        (folder.path / name).write_bytes(b"x")
    (folder.path / "cartella.xlsx").mkdir()
    (folder.path / "nessuna.xlsx").symlink_to(folder.path / "non c'è")
    assert folder.look() == []
    written(folder.path / "STRUTTURA.XLSX")
    for name, data in (
        ("vecchia.xls", b"\xd0\xcf\x11\xe0" * 200),
        ("turni.csv", b"a;b\n"),
        ("finta.xlsx", b"%PDF-1.7"),
    ):
        (folder.path / name).write_bytes(data)
    configs = folder.look()
    assert [folder.run(config) for config in configs] == [True, False, False, False]
    assert folder.said() == ("il file non si apre: non è una cartella di lavoro Excel (.xlsx), o è rovinato")
    assert (folder.count("plan"), folder.count("clinic")) == (1, 0)
    assert folder.count("service_run WHERE outcome = 'refused'") == 3, "a person's mistake is no failure of ours"


def test_files_that_are_dropped_together_are_all_looked_at(folder: Folder) -> None:
    """Also while somebody imports: looking is in nobody's way."""
    for number in range(3):
        written(folder.path / f"{number}.xlsx")
    with exclusive(folder.engine, importing.SERVICE, None), ThreadPoolExecutor(3) as pool:
        assert list(pool.map(folder.run_apart, folder.look())) == [True] * 3
    assert (folder.count("plan"), folder.count("clinic")) == (3, 0)


def test_half_a_file_is_told_and_the_whole_one_is_looked_at_when_it_has_come(folder: Folder) -> None:
    file = written(folder.path / "struttura.xlsx")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (config,) = folder.look()
    assert not folder.run(config)
    file.write_bytes(whole)
    (config,) = folder.look()
    assert folder.run(config)
    assert folder.count("plan") == 1


def test_a_file_rests_by_our_clock_whatever_its_author_s_says(tmp_path: Path) -> None:
    file = written(tmp_path / "a.xlsx")
    now = datetime.now(UTC)
    assert dropped(tmp_path, now) == {}, "somebody may be writing it still"
    tomorrow = (now + timedelta(days=1)).timestamp()
    os.utime(file, (tomorrow, tomorrow))  # of a machine whose clock is wrong
    found = dropped(tmp_path, now + 2 * SETTLED)
    assert list(found) == ["a.xlsx"]
    file.chmod(0o640)
    assert dropped(tmp_path, now + 2 * SETTLED) != found, "also what may be read only now is looked at"


def test_a_file_that_is_replaced_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.xlsx")
    fstat = os.fstat

    def replaced(number: int) -> os.stat_result:
        about = fstat(number)
        written(tmp_path / "b.xlsx").replace(file)
        return about

    monkeypatch.setattr(os, "fstat", replaced)
    with pytest.raises(PermanentError, match="workbook_being_written"):
        reading.content(file)


def test_what_may_not_be_read_or_is_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.xlsx")
    monkeypatch.setattr(reading, "LARGEST", 1024)
    with file.open("r+b") as opened:
        opened.truncate(8 * 1024**3)  # a hole: nobody reads eight gigabytes
    with pytest.raises(PermanentError, match="workbook_too_large"):
        reading.content(file)
    with pytest.raises(PermanentError, match="workbook_gone"):
        reading.content(tmp_path / "b.xlsx")

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermanentError, match="workbook_not_ours"):
        reading.content(file)
