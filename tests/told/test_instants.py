"""An instant is told in somebody's zone by ``told`` alone; elsewhere a bare clock time says whose clock it is."""

from __future__ import annotations

from pathlib import Path

import polydesk_dagster

PACKAGE = Path(polydesk_dagster.__file__).parent
ELSEWHERE = (
    "told/",
    "knowledge/formats/",  # cells of spreadsheets, which have no zone
    "clinic/messages/",  # what patients are written, in their clinic's zone
    "runtime/child.py",  # a log
)


def test_no_clock_time_is_written_by_hand() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for suffix in ("*.py", "*.html")
        for path in sorted(PACKAGE.rglob(suffix))
        if not str(path.relative_to(PACKAGE)).startswith(ELSEWHERE)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "%H" in line
    ]
    assert found == []
