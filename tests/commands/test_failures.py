"""Every failure that can be foreseen is one sentence that says what to do, in each language, and never a traceback."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster import cli
from polydesk_dagster.commands import installation, show
from polydesk_dagster.commands.installation import PLAYED_TOKEN, Installation
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.remote import Policy
from polydesk_dagster.runtime.state import probing
from polydesk_dagster.settings import Settings
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.told import LANGUAGES, teller

CLOSED = 1
"""A port at which nothing listens."""
ONCE = Policy(connect=2, read=2, request=2, attempts=1, total=5)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POLYDESK_DATABASE_URL", raising=False)
    yield tmp_path / "home"
    show.speak(LANGUAGES[0])


def _raised(number: int) -> Callable[[str], Any]:
    def loaded(_: str) -> Any:
        raise OSError(number, "as the system says it", "/somewhere")

    return loaded


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        ("no home", "esegui «polydesk up»"),
        ("no database", "controlla l'indirizzo in POLYDESK_DATABASE_URL"),
        ("empty database", "«polydesk db migrate»"),
        ("half configured", "impostale tutte o nessuna"),
        ("secrets that others read", "chmod 600"),
        (errno.EACCES, "Usa l'utente di Polydesk"),
        (errno.ENOSPC, "il disco è pieno (/somewhere). Libera spazio"),
        (errno.EROFS, "rendi scrivibile il disco"),
        (errno.ENOTDIR, "Controlla POLYDESK_HOME"),
        (errno.ENOENT, "Controlla il percorso"),
        (errno.EADDRINUSE, "scegli un'altra porta"),
        (errno.EIO, "se si ripete chiama l'assistenza"),
    ],
)
def test_a_command_says_what_to_do(
    what: str | int,
    remedy: str,
    home: Path,
    server: URL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    match what:
        case "no database":
            monkeypatch.setenv("POLYDESK_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{CLOSED}/polydesk")
        case "empty database":
            monkeypatch.setenv(
                "POLYDESK_DATABASE_URL", server.set(database="postgres").render_as_string(hide_password=False)
            )
        case "half configured":
            monkeypatch.setenv("POLYDESK_SMS_URL", "https://sms.example.it")
        case "secrets that others read":
            home.mkdir()
            (home / ".env").touch(0o644)
        case int(number):
            monkeypatch.setattr(cli, "loaded", _raised(number))
    for language in LANGUAGES:
        monkeypatch.setattr(sys, "argv", ["polydesk", "services", "--lang", language])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == (2 if what in {"half configured", "secrets that others read"} else 4)
        assert said.out == ""
        assert "Traceback" not in said.err
        assert "as the system says it" not in said.err
        if language == "it":
            assert remedy in " ".join(said.err.split())


def test_a_server_that_is_lost_while_a_command_works_is_told_of_and_not_the_operation(
    database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))

    def work() -> None:
        with (
            installation.opened() as here,
            here.engine.connect() as connection,
            here.engine.connect() as other,
        ):
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            other.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            connection.execute(sa.text("SELECT 1"))

    with pytest.raises(PolydeskError) as lost:
        work()
    assert lost.value.reason.code in {"refused_restarting", "database_broke"}


@pytest.fixture(scope="module")
def studiolab() -> Iterator[tuple[StudiolabSimulator, str]]:
    simulator = StudiolabSimulator()
    simulator.hold("BO01", {})
    with in_thread(simulator) as url:
        yield simulator, url.replace("/api/v1", "/BO01/api/v1")


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ({"kind": "status", "status": 401}, "controlla il token dell'integrazione"),
        ({"kind": "status", "status": 503}, "riprova più tardi"),
        ({"kind": "status", "status": 418}, "chiedi a chi lo gestisce"),
        ({"kind": "html"}, "controlla l'indirizzo"),
        (None, "controlla l'indirizzo e che il server sia acceso"),
    ],
    ids=["wrong token", "busy", "refused", "another page", "down"],
)
def test_a_studiolab_that_fails_says_what_to_do(
    studiolab: tuple[StudiolabSimulator, str], fault: dict[str, Any] | None, remedy: str
) -> None:
    simulator, url = studiolab
    if fault is None:
        url = f"http://127.0.0.1:{CLOSED}/api/v1"
    else:
        simulator.fail(path="/services", times=1, **fault)
    with Studiolab("BO01", url, DEMO_TOKEN, ONCE) as client, pytest.raises(PolydeskError) as failed:
        list(client.list("services"))
    assert remedy in teller("it").reason(failed.value.reason)


def test_a_gateway_that_is_down_says_what_to_do(home: Path) -> None:
    async def ask() -> Any:
        async with SmsGateway(f"http://127.0.0.1:{CLOSED}", "token", "Polydesk", patience=2) as gateway:
            return await gateway.look_up("probe-1")

    with pytest.raises(PolydeskError) as failed:
        probing._carried("sms", asyncio.run(ask()))
    assert "controlla l'indirizzo e che il server sia acceso" in teller("it").reason(failed.value.reason)
    assert Settings(home=home).embedded


def test_the_token_that_a_simulator_takes_is_not_called_missing(home: Path, unwritten: sa.Engine) -> None:
    """What `polydesk up` gives its own processes, a command beside it knows all the same."""
    played = Installation(Settings(home=home), unwritten)
    assert (played.has_token(PLAYED_TOKEN), played.token(PLAYED_TOKEN)) == (True, DEMO_TOKEN)
    assert (played.has_token("POLYDESK_STUDIOLAB_TOKEN_MI01"), played.token("POLYDESK_STUDIOLAB_TOKEN_MI01")) == (
        False,
        None,
    )
    real = Installation(Settings(home=home, database_url=SecretStr("postgresql://db/x")), unwritten)
    assert not real.has_token(PLAYED_TOKEN)


@pytest.mark.parametrize("command", [["integration", "BO01", "--on"], ["run", "generate_slots", "--clinic", "BO01"]])
def test_where_there_is_no_clinic_it_is_said_how_one_gets_in(
    unwritten: sa.Engine,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(unwritten.url))
    monkeypatch.setattr(sys, "argv", ["polydesk", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert (ended.value.code, "polydesk practice import FILE" in said, "ci sono" in said) == (2, True, False), said
