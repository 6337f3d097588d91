"""SIGKILL anywhere in blue and yellow: questions go on being answered from whole documents, a second run completes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.outcome import Outcome
from tests.kill_world import let_go
from tests.knowledge.world import Shelf
from tests.warm import Program

# The process kills itself at the nth passing of a step that writes, before or after it.
SCRIPT = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from sqlalchemy.engine import make_url
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.knowledge import contents, generations, indexing, intake
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.store import Store

url, folder, uri, action, step, when = sys.argv[1:]
owner = next(place for place in (Store, intake, contents, generations) if hasattr(place, step))
real = getattr(owner, step)

def deadly(*args, **named):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args, **named)
    os.kill(os.getpid(), signal.SIGKILL)

intake.FLUSH_DOCUMENTS = 4
setattr(owner, step, deadly)
getattr(indexing, action)(
    create_engine(make_url(url)), datetime(2026, 3, 10, 9, tzinfo=UTC), Library(Path(folder), uri),
    past_guard=indexing.GUARD,
)
"""

STEPS = [
    ("refresh", "add", "before"),
    ("refresh", "add", "after"),
    ("refresh", "flush", "after"),
    ("refresh", "let_go", "after"),
    ("refresh", "delete", "before"),
    ("refresh", "delete", "after"),
    ("refresh", "merge", "before"),
    ("rebuild", "create", "after"),
    ("rebuild", "add", "after"),
    ("rebuild", "index", "after"),
    ("rebuild", "swap", "before"),
    ("rebuild", "swap", "after"),
]


@pytest.fixture
def shelf(engine: sa.Engine, tmp_path: Path) -> Shelf:
    shelf = Shelf(engine, tmp_path)
    shelf.topics()
    shelf.blue()
    return shelf


def _killed(shelf: Shelf, action: str, step: str, when: str) -> None:
    url = shelf.engine.url.render_as_string(hide_password=False)
    ended = Program(SCRIPT, url, str(shelf.library.folder), shelf.library.uri, action, step, when)
    assert ended.wait() == -signal.SIGKILL
    let_go(shelf.engine)


@pytest.mark.slow
@pytest.mark.parametrize(("action", "step", "when"), STEPS)
def test_killed_at_a_step(shelf: Shelf, action: str, step: str, when: str) -> None:
    shelf.write("prelievo.md", "# Prelievo\n\nIl prelievo ora si esegue anche di sabato mattina, su appuntamento.")
    shelf.write("nuovo.txt", "Il bar al piano terra serve colazioni senza glutine dalle sette.")
    (shelf.library.folder / "parcheggio.md").unlink()
    _killed(shelf, action, step, when)
    answered = shelf.ask("come si esegue il prelievo: digiuno, acqua, sabato mattina?")
    assert answered[0] == "prelievo.md"
    assert shelf.ask("dieta senza scorie prima della colonscopia")[0] == "colonscopia.md"
    assert shelf.blue().outcome in {Outcome.OK, Outcome.NOTHING_TO_DO}
    assert shelf.ask("colazioni senza glutine")[0] == "nuovo.txt"
    assert shelf.ask("parcheggio sotterraneo gratuito") == []
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    shelf.whole()
    if action == "rebuild":
        shelf.yellow()
        shelf.whole()


@pytest.mark.slow
def test_killed_at_any_instant_while_questions_are_asked(shelf: Shelf) -> None:
    """A real run is killed after ever longer times; no question is ever left without its document."""
    script = SCRIPT.replace("setattr(owner, step, deadly)", "")
    url = shelf.engine.url.render_as_string(hide_password=False)
    for number, wait in enumerate((0.1, 0.4, 0.8, 1.2, 1.6)):
        shelf.write("prelievo.md", f"# Prelievo\n\nIl prelievo di sangue a digiuno, avviso numero {number}.")
        action = ("rebuild", "refresh")[number % 2]
        arguments = [url, str(shelf.library.folder), shelf.library.uri, action, "add", "before"]
        process = Program(script, *arguments)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and process.running:
            assert "prelievo.md" in shelf.ask("prelievo di sangue a digiuno")
            time.sleep(0.02)
        if process.running:
            process.kill()
        process.wait()
        let_go(shelf.engine)
        assert "prelievo.md" in shelf.ask("prelievo di sangue a digiuno")
    shelf.blue()
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    shelf.whole()
