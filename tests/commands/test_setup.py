"""``polydesk setup``: what it is told is checked and tried before anything is written."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dotenv import set_key
from sqlalchemy.engine import URL

from polydesk_dagster import cli
from polydesk_dagster.database.engine import create_engine, plain_url
from polydesk_dagster.keeping import setting_up
from polydesk_dagster.told import teller
from tests.runtime.outside import Outside, outside
from tests.waiting import PATIENCE

__all__ = ["outside"]  # a fixture
Said = Callable[..., tuple[int, Any]]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Calls the command with a file of these values; returns its exit status and its JSON, or what it refused."""
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POLYDESK_DATABASE_URL", raising=False)

    def call(values: dict[str, str], *options: str) -> tuple[int, Any]:
        file = tmp_path / "values.env"
        file.unlink(missing_ok=True)
        for name, value in values.items():
            set_key(file, name, value)
        monkeypatch.setattr(sys, "argv", ["polydesk", "setup", "--file", str(file), "--json", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), json.loads(said.out) if said.out else said.err

    return call


def _closed() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_what_answers_is_written_for_its_owner_alone(setup: Said, engine: sa.Engine, tmp_path: Path) -> None:
    given = {"POLYDESK_DATABASE_URL": plain_url(engine.url), "POLYDESK_STUDIOLAB_TOKEN_MI01": "it's #1"}
    status, said = setup(given, "--look")
    assert (status, said["written"], (tmp_path / "home").exists()) == (0, [], False)
    status, said = setup(given, "--units", str(tmp_path / "units"))
    assert (status, [each["why"] for each in said["tried"]]) == (0, [None])
    file = tmp_path / "home" / ".env"
    assert file.stat().st_mode & 0o077 == 0
    assert "POLYDESK_DATABASE_URL" in file.read_text()
    setup({"POLYDESK_WEB_PORT": "4000"})  # what was known stays
    assert "it\\'s #1" in file.read_text()
    _verified(tmp_path / "units", str(tmp_path / "home"))


def _verified(units: Path, home: str) -> None:
    texts = [path.read_text() for path in units.iterdir()]
    assert len(texts) == 3
    assert not [text for text in texts if "@" in text]
    assert any(f"POLYDESK_HOME={home}" in text for text in texts)
    if (tool := shutil.which("systemd-analyze")) is not None:
        done = subprocess.run([tool, "verify", *map(str, units.iterdir())], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if str(units) in line] == []
        assert done.returncode == 0


def test_what_does_not_answer_is_named_and_nothing_is_written(setup: Said, tmp_path: Path) -> None:
    given = {"POLYDESK_CENTRAL_URL": f"http://{_closed()}", "POLYDESK_CENTRAL_TOKEN": "geheim-1"}
    given["POLYDESK_OIDC_ISSUER"] = f"http://{_closed()}"
    given |= {"POLYDESK_OIDC_CLIENT_ID": "polydesk", "POLYDESK_OIDC_CLIENT_SECRET": "geheim-2"}
    status, said = setup(given)
    assert (status, said["written"]) == (3, [])
    assert [each["what"] for each in said["tried"] if each["why"]] == ["central", "POLYDESK_OIDC_ISSUER"]
    assert "geheim" not in json.dumps(said)
    assert not (tmp_path / "home").exists()
    status, said = setup(given, "--anyway")
    assert (status, said["written"]) == (0, [str(tmp_path / "home" / ".env")])


def test_who_is_told_when_something_is_wrong_gets_a_trial_and_a_sign_of_life(setup: Said, outside: Outside) -> None:
    where = outside.url.removeprefix("http://")
    given = {"POLYDESK_ALERT_URL": f"{outside.url}/hook", "POLYDESK_ALERT_TOKEN": "geheim"}
    given |= {"POLYDESK_ALERT_APPRISE": f"json://{where}/apprise", "POLYDESK_PING_URL": f"{outside.url}/ping"}
    status, said = setup(given, "--look")
    assert (status, [each["why"] for each in said["tried"]]) == (0, [None] * 3)
    assert sorted((method, path) for method, path, *_ in outside.asked) == [
        ("GET", "/ping"), ("POST", "/apprise"), ("POST", "/hook"),
    ]  # fmt: skip
    hook = next(body for _, path, _, body in outside.asked if path == "/hook")
    assert (hook["ok"], hook["findings"], "prova" in hook["text"]) == (True, [], True)
    status, said = setup({"POLYDESK_ALERT_APPRISE": "nonsense"}, "--look")
    assert (status, said["tried"][0]["why"]["code"]) == (3, "not_taken")


@pytest.mark.parametrize(
    ("given", "named", "status"),
    [
        ({"POLYDESK_SMS_URL": "https://sms.example"}, "POLYDESK_SMS_TOKEN", 2),
        ({"POLYDESK_WEB_PORT": "often"}, "POLYDESK_WEB_PORT", 2),
        ({"POLYDESK_SMSURL": "https://sms.example"}, "POLYDESK_SMSURL", 2),
    ],
    ids=["half", "wrong", "unknown"],
)
def test_what_is_wrong_is_refused_by_name(
    setup: Said, tmp_path: Path, given: dict[str, str], named: str, status: int
) -> None:
    found, said = setup(given)
    assert found == status
    assert named in said
    assert not (tmp_path / "home").exists()


def test_without_a_terminal_a_file_is_needed(
    setup: Said, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["polydesk", "setup"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "--file" in capsys.readouterr().err


def test_a_database_that_is_not_there_is_made_or_told_how(setup: Said, server: URL) -> None:
    missing = server.set(database="not_there_yet")
    status, said = setup({"POLYDESK_DATABASE_URL": plain_url(missing)}, "--look")
    assert (status, [each["why"] for each in said["tried"]]) == (0, [None])
    engine = create_engine(server.set(database="postgres"), pool_size=1)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("CREATE ROLE makes_nothing LOGIN"))
        try:
            given = plain_url(missing.set(username="makes_nothing"))
            status, said = setup({"POLYDESK_DATABASE_URL": given}, "--look")
        finally:
            connection.execute(sa.text("DROP ROLE makes_nothing"))
    engine.dispose()
    assert status == 3
    (tried,) = said["tried"]
    assert tried["why"]["code"] == "refused_missing"
    assert "CREATE DATABASE" in tried["why"]["values"]["sql"]


@pytest.mark.slow
def test_it_asks_on_a_terminal_and_enter_keeps_what_is_known(setup: Said, tmp_path: Path) -> None:
    setup({"POLYDESK_WEB_PORT": "4321"})
    answers = {"operator_mail": "turno@polydesk.example"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "polydesk_dagster.cli", "setup"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # without a terminal of its own it reads secrets from its input, too
    ) as asking:
        os.close(theirs)
        assert asking.stdout is not None
        for field in setting_up.ASKED:  # what is typed before it is asked is lost
            question, said = teller("it").text(f"command.setup.ask.{field}").encode(), b""
            while not (question in said and said.endswith(b": ")):
                said += os.read(asking.stdout.fileno(), 4096) or b"it ended" + question + b": "
            os.write(ours, f"{answers.get(field, '')}\n".encode())
        rest = asking.communicate(timeout=PATIENCE)[0]
    os.close(ours)
    assert asking.returncode == 0, rest
    written = (tmp_path / "home" / ".env").read_text()
    assert "POLYDESK_WEB_PORT='4321'" in written
    assert "POLYDESK_OPERATOR_MAIL='turno@polydesk.example'" in written


def test_what_is_checked_are_both_databases_and_every_address(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(engine.url))
    monkeypatch.setenv("POLYDESK_PING_URL", f"http://{_closed()}/ping")
    monkeypatch.setattr(sys, "argv", ["polydesk", "check", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    looked = json.loads(capsys.readouterr().out)["tried"]
    wrong = {each["what"]: each["why"]["code"] for each in looked if each["why"]}
    assert wrong.pop("POLYDESK_PING_URL") == "not_taken"
    assert (end.value.code, set(wrong.values())) == (1, {"made_by_migrating"}), "Dagster's database is not there yet"
    assert len(looked) > len(wrong) + 1
