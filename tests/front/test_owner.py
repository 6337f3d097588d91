"""`polydesk ask` where the installation runs: answered over a socket of the home, to the letter as by itself."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from polydesk_dagster import nearby
from polydesk_dagster import settings as configuration
from polydesk_dagster.cli import app
from polydesk_dagster.front.assistant import owner
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.resources.meaning import search
from tests.knowledge.world import Shelf
from tests.waiting import PATIENCE

PROGRAM = """
import sys
from polydesk_dagster.cli import main
sys.argv[0] = "polydesk"
try:
    main()
finally:
    assert not {"lancedb", "sqlalchemy"} & set(sys.modules)
"""
"""The command, which has loaded nothing that takes long."""

NO_QUESTIONS = (b"", b"[]\n", b"{}\n", b"\xff\n", b"x" * 70_000 + b"\n", b'{"search": "", "as_of": 7}\n')


@pytest.fixture
def shelf(engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    shelf = Shelf(engine, tmp_path)
    shelf.topics()
    shelf.blue()
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with TemporaryDirectory() as home:  # pytest's is too long for a socket's path
        monkeypatch.setenv("POLYDESK_HOME", home)
        monkeypatch.setenv("POLYDESK_DATABASE_URL", url)
        monkeypatch.setenv("POLYDESK_DOCUMENTS", str(shelf.library.folder))
        monkeypatch.setenv("POLYDESK_KNOWLEDGE_URI", shelf.library.uri)
        monkeypatch.setenv("POLYDESK_EMBEDDINGS_MODEL", "none")
        yield shelf


def path() -> Path:
    return nearby.sockets(configuration.load().home) / owner.NAME


def asked(*words: str) -> str:
    """What the command prints in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, "ask", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_ourselves(*words: str) -> str:
    return CliRunner().invoke(app, ["ask", *words]).output


@pytest.mark.slow
def test_the_running_installation_answers_the_command_and_nobody_sees_a_difference(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ("dove si parcheggia?", "--as-of", "2026-03-10T09:00:00Z")
    alone, in_json = by_ourselves(*question), by_ourselves(*question, "--json")
    assert json.loads(in_json)["passages"]
    answered: list[Library] = []

    def library() -> Library:
        answered.append(shelf.library)
        return shelf.library

    with owner.answering(path(), shelf.engine, library, search(configuration.load())):
        assert stat.S_IMODE(path().stat().st_mode) == 0o600
        assert stat.S_IMODE(path().parent.stat().st_mode) == 0o700
        assert asked(*question) == alone
        assert json.loads(asked(*question, "--json")) == json.loads(in_json)
        assert len(answered) == 2
        monkeypatch.setenv("POLYDESK_DOCUMENTS", str(shelf.library.folder.parent))
        assert by_ourselves(*question) == alone
        assert len(answered) == 2, "who asks under other settings is answered by himself"


def test_what_is_no_question_harms_nobody(shelf: Shelf) -> None:
    with owner.answering(path(), shelf.engine, lambda: shelf.library, "s"):
        for sent in NO_QUESTIONS:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(str(path()))
                with suppress(BrokenPipeError):  # it went after the longest that a request may be
                    client.sendall(sent)
                    client.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    assert client.makefile("rb").readline() in {b"", b'{"answer": null}\n'}
        given = {"search": "s", "question": "parcheggio", "clinic": None, "role": None, "limit": 3, "as_of": None}
        assert nearby.ask(path(), given)["answer"]["relevant"]


def test_where_no_socket_can_be_made_the_process_runs_all_the_same(tmp_path: Path, engine: sa.Engine) -> None:
    nowhere = tmp_path / "missing" / "ask"
    with owner.answering(nowhere, engine, lambda: Library(tmp_path, str(tmp_path)), "s"):
        assert not nowhere.exists()
