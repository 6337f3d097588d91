"""The command as such: what it imports, how it is helped with, how it ends when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import cli
from polydesk_dagster.changes.why import kept
from polydesk_dagster.commands import show
from polydesk_dagster.outcome import Counts, Outcome, Report
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.values import Reason
from tests import world
from tests.web.test_services import ran

HEAVY = ("sqlalchemy", "alembic", "dagster", "psycopg", "pydantic", "httpx", "starlette", "pandas")
WHY = "messaggi provati con la direzione"


@pytest.fixture(autouse=True)
def italian() -> None:
    show.speak("it")


def _said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit status, and what was said on the two outputs."""
    monkeypatch.setattr(sys, "argv", ["polydesk", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["--lang", "de", "-h"]])
def test_help_imports_nothing_that_works(arguments: list[str]) -> None:
    looking = f"""
import sys
from collections.abc import Iterator
from polydesk_dagster import cli
sys.argv = ["polydesk", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", looking], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_is_in_the_help_of_every_language_and_can_be_imported() -> None:
    for name in cli.COMMANDS:
        assert cli.loaded(name).name == name
        assert all(teller(language).knows(f"command.{name}") for language in LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_option_says_what_it_is_for_in_every_language(language: str) -> None:
    def without(command: Any, path: str) -> Iterator[str]:
        for parameter in command.params:
            if not parameter.help or parameter.help.startswith("help."):
                yield f"{path} {parameter.name}"
        for name, each in getattr(command, "commands", {}).items():
            if not each.help or each.help.startswith("help."):
                yield f"{path} {name}"
            yield from without(each, f"{path} {name}")

    show.speak(language)
    try:
        assert [each for name in cli.COMMANDS for each in without(cli.loaded(name), name)] == []
    finally:
        show.speak(LANGUAGES[0])


def test_help_speaks_the_language_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text, _ = _said(monkeypatch, capsys, "-h", "--lang", "en")
    assert status == 0
    assert "Lets a service start by itself" in text
    assert "--lang" in text
    assert "--install-completion" in text
    status, text, _ = _said(monkeypatch, capsys, "run", "--help", "--lang", "en")
    assert status == 0
    assert "Shows what would change, without changing it." in text
    assert "Mostra" not in text
    status, text, _ = _said(monkeypatch, capsys, "plan", "-h")
    assert status == 0
    assert "undo" in text


class TestFailures:
    """One sentence and the exit status, never a traceback."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        home = tmp_path / "home"
        monkeypatch.setenv("POLYDESK_HOME", str(home))
        monkeypatch.delenv("POLYDESK_DATABASE_URL", raising=False)
        return home

    @pytest.mark.parametrize(
        "arguments",
        [
            ["services"],
            ["plan", "list"],
            ["clinics"],
            ["doctor"],
            ["run", "generate_slots"],
            ["users", "list"],
            ["db", "url"],
        ],
    )
    def test_without_an_installation_nothing_is_built_in_passing(
        self, arguments: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, out, said = _said(monkeypatch, capsys, *arguments)
        assert (status, out) == (4, "")
        assert "polydesk up" in said
        assert not home.exists()

    @pytest.mark.parametrize("arguments", [["services"], ["plan", "list"], ["pause", "send_reminders"]])
    def test_a_database_that_is_down(
        self, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("POLYDESK_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/polydesk")
        if arguments[0] == "pause":
            arguments = [*arguments, "--until", "2999-01-01", "--reason", WHY]
        status, out, said = _said(monkeypatch, capsys, *arguments)
        assert (status, out) == (4, "")
        assert "non risponde" in said

    def test_the_doctor_says_that_the_database_is_down(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("POLYDESK_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/polydesk")
        status, out, _ = _said(monkeypatch, capsys, "doctor", "--json")
        assert status == 1
        findings = {(each["code"], each["ok"]) for each in json.loads(out)["findings"]}
        assert ("database", False) in findings

    def test_a_home_that_cannot_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "file" / "home"))
        status, _, said = _said(monkeypatch, capsys, "db", "migrate")
        assert status == 4
        assert said.startswith("Non riesco: una cartella del percorso è un file")

    def test_a_missing_permission(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def refused(_: str) -> Any:
            raise PermissionError(13, "Permission denied", "/somewhere")

        monkeypatch.setattr(cli, "loaded", refused)
        status, _, said = _said(monkeypatch, capsys, "services")
        assert status == 4
        assert said.startswith("Non riesco: il permesso manca (/somewhere). Usa l'utente di Polydesk")

    def test_ctrl_c_while_a_module_is_imported(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Interrupted:
            def __set_name__(self, owner: type, name: str) -> None:
                raise KeyboardInterrupt

        def importing(_: str) -> Any:
            return type("Model", (), {"field": Interrupted()})

        monkeypatch.setattr(cli, "loaded", importing)
        assert _said(monkeypatch, capsys, "services") == (130, "", "Interrotto.\n")

    @pytest.mark.parametrize("inside", [True, False])
    def test_ctrl_c(self, inside: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def interrupted(*_: object, **__: object) -> Any:
            raise KeyboardInterrupt

        if inside:
            monkeypatch.setattr(cli, "loaded", interrupted)
        else:
            monkeypatch.setattr(cli, "app", interrupted)
        assert _said(monkeypatch, capsys, "services") == (130, "", "Interrotto.\n")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["nothing"], "Il comando «nothing» non esiste"),
            (["services", "--nothing"], "L'opzione --nothing non esiste."),
            (["pause", "send_reminders", "--reason", WHY], "Manca --until."),
            (["plan", "show", "uno"], "ID: non è un numero intero."),
            (["plan"], "list"),
            (["--lang", "fr", "services"], "--lang fr: questa lingua non c'è; scegli it, en o de. Aiuto:"),
            (["services", "--lang"], "questa lingua non c'è"),
            (["--lang", "en", "services", "--nothing"], "There is no option --nothing. Help: polydesk services --help"),
            (["--lang", "de", "pause"], "fehlt"),
        ],
    )
    def test_wrong_usage_is_told_in_the_language_that_is_asked_for(
        self, arguments: list[str], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, out, said = _said(monkeypatch, capsys, *arguments)
        assert status == 2
        assert word in " ".join((out + said).split())
        assert "Traceback" not in said


class TestActivity:
    """On a database of one's own: what goes live, is paused and goes on, as the command says it."""

    @pytest.fixture(autouse=True)
    def configured(self, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
        monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))

    @pytest.fixture
    def say(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
        return lambda *arguments: _said(monkeypatch, capsys, *arguments)

    @staticmethod
    def _states(say: Any) -> dict[str, Any]:
        status, out, _ = say("services", "--json")
        assert status == 0
        return {row["key"]: row for row in json.loads(out)}

    def test_nothing_starts_before_somebody_says_so(self, say: Any) -> None:
        states = self._states(say)
        assert states["send_reminders"]["activity"]["mode"] == "not_live"
        assert states["send_reminders"]["next_run"] is None
        assert states["clear_caches"]["activity"]["mode"] == "on_demand"
        assert "non ancora attivato" in say("services")[1]

    def test_going_live_pausing_and_resuming(self, say: Any) -> None:
        assert say("go-live", "send_reminders", "--reason", WHY)[0] == 0
        assert self._states(say)["send_reminders"]["next_run"] is not None
        until = (datetime.now(UTC) + timedelta(days=2)).isoformat()
        status, out, _ = say("pause", "send_reminders", "--until", until, "--reason", "gestore SMS in manutenzione")
        assert (status, "in pausa fino al" in out) == (0, True)
        paused = self._states(say)["send_reminders"]
        assert paused["activity"]["mode"] == "paused"
        assert paused["activity"]["reason"] == "gestore SMS in manutenzione"
        assert paused["next_run"] > until
        assert say("resume", "send_reminders", "--reason", "manutenzione finita")[0] == 0
        assert self._states(say)["send_reminders"]["activity"]["mode"] == "on"
        status, out, _ = say("resume", "send_reminders", "--reason", "manutenzione finita", "--json")
        assert (status, json.loads(out)["resumed"]) == (0, False)

    def test_of_clinics_that_ended_alike_one_is_named_and_the_others_are_counted(
        self, say: Any, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "250")
        with engine.begin() as connection:
            for code in ("BO01", "MI01", "NA01", "RM01"):
                world.integration(connection, world.clinic(connection, code), "http://s")
        failed = Report(Outcome.FAILED, Counts(failed=1))
        for code in ("MI01", "NA01", "RM01"):
            ran(engine, "sync_prices", failed, code)
        ran(engine, "import_patients", failed, "NA01")
        _, out, _ = say("services")
        lines = {key: line for line in out.splitlines() for key in ("sync_prices", "import_patients") if key in line}
        assert "MI01 e altre 2: fallito" in lines["sync_prices"]
        assert "NA01: fallito" in lines["import_patients"]

    def test_one_clinic_is_paused_where_a_service_runs_clinic_by_clinic(self, say: Any, engine: sa.Engine) -> None:
        with engine.begin() as connection:
            world.clinic(connection, clinic := "BO01")
        assert say("go-live", "sync_prices", "--reason", WHY)[0] == 0
        here = ("sync_prices", "--clinic", clinic, "--reason", WHY)
        status, out, _ = say("pause", *here, "--until", "2099-01-01")
        assert (status, f"({clinic})" in out) == (0, True)
        said = self._states(say)["sync_prices"]["activity"]
        assert (said["mode"], said["paused"][clinic]["reason"]) == ("on", WHY)
        assert json.loads(say("resume", *here, "--json")[1])["resumed"] is True
        assert self._states(say)["sync_prices"]["activity"]["paused"] == {}

    def test_everything_goes_live_at_once(self, say: Any) -> None:
        status, out, _ = say("go-live", "--all", "--reason", WHY, "--json")
        assert status == 0
        states = self._states(say)
        assert {key for key, row in states.items() if row["next_run"]} == set(json.loads(out)["live"])

    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            (["go-live", "--reason", WHY], 2),
            (["go-live", "send_reminders", "--all", "--reason", WHY], 2),
            (["go-live", "send_reminders"], 2),
            (["go-live", "send_reminders", "--reason", "boh"], 2),
            (["go-live", "clear_caches", "--reason", WHY], 2),
            (["go-live", "nothing", "--reason", WHY], 2),
            (["pause", "send_reminders", "--until", "domani", "--reason", WHY], 2),
            (["pause", "send_reminders", "--until", "2099-01-01", "--reason", WHY, "--clinic", "BO01"], 2),
            (["pause", "sync_prices", "--until", "2099-01-01", "--reason", WHY, "--clinic", "NOPE"], 2),
            (["pause", "send_reminders", "--until", "2020-01-01", "--reason", WHY], 2),
        ],
    )
    def test_what_makes_no_sense_changes_nothing(self, say: Any, arguments: list[str], status: int) -> None:
        assert say(*arguments)[0] == status
        assert self._states(say)["send_reminders"]["activity"]["mode"] == "not_live"

    def test_a_token_in_the_dotenv_is_one_for_the_doctor_as_for_the_services(
        self, say: Any, engine: sa.Engine, tmp_path: Path
    ) -> None:
        with engine.begin() as connection:
            for code in ("MI01", "RM01"):
                clinic = world.clinic(connection, code)
                world.integration(connection, clinic, "http://s", token_env=f"POLYDESK_STUDIOLAB_TOKEN_{code}")
        dotenv = tmp_path / ".env"
        dotenv.touch(mode=0o600)
        dotenv.write_text("POLYDESK_STUDIOLAB_TOKEN_MI01=x\n")
        _, out, _ = say("doctor", "--json")
        findings = {each["subject"]: each for each in json.loads(out)["findings"] if each["code"] == "studiolab"}
        assert {clinic: each["ok"] for clinic, each in findings.items()} == {"MI01": True, "RM01": False}
        assert "POLYDESK_STUDIOLAB_TOKEN_RM01" in findings["RM01"]["message"]

    def test_the_doctor_says_whether_somebody_outside_is_told_and_never_where(
        self, say: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def told() -> list[tuple[str, str]]:
            _, out, _ = say("doctor", "--json")
            assert "geheim" not in out
            return [(e["how"], e["message"]) for e in json.loads(out)["findings"] if e["code"].startswith("alert_")]

        assert [how for how, _ in told()] == ["missing", "missing"]
        monkeypatch.setenv("POLYDESK_ALERT_URL", "https://hook.example/geheim")
        monkeypatch.setenv("POLYDESK_PING_URL", "https://ping.example/geheim")
        monkeypatch.setenv("POLYDESK_PING_MINUTES", "15")
        assert [how for how, _ in told()] == ["configured", "configured"]
        assert "15 minuti" in told()[1][1]

    def test_clinics_say_how_their_studiolab_is(
        self, say: Any, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POLYDESK_STUDIOLAB_TOKEN_MI01", "x")
        since = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
        why = Reason("remote_silent", {"system": Reason("system_source", {"of": "MI01"})})
        with engine.begin() as connection:
            for code in ("MI01", "RM01", "TO01"):
                clinic = world.clinic(connection, code)
                if code != "TO01":
                    world.integration(connection, clinic, "http://s", token_env=f"POLYDESK_STUDIOLAB_TOKEN_{code}")
                if code == "MI01":
                    connection.execute(
                        sa.text("""
                            INSERT INTO event_cursor (clinic_id, failures, down_since, quiet_until, down_reason)
                            VALUES (:clinic, 3, :since, :since, :why)"""),
                        {"clinic": clinic, "since": since, "why": kept(why)},
                    )
        status, out, _ = say("clinics", "--json")
        assert status == 0
        links = {row["code"]: (row["link"], row["since"]) for row in json.loads(out)}
        assert links == {
            "MI01": ("unreachable", since.isoformat()),
            "RM01": ("token_missing", None),
            "TO01": ("absent", None),
        }
        _, out, _ = say("clinics")
        assert "nessuna lettura riuscita dal 10/03/2026 09:00" in out
        assert "nessuna risposta entro il tempo massimo" in " ".join(out.split())
        status, out, _ = say("doctor", "--json")
        findings = {each["subject"]: each["ok"] for each in json.loads(out)["findings"] if each["code"] == "studiolab"}
        assert (status, findings) == (1, {"MI01": False, "RM01": False})
        for language in LANGUAGES:
            _, out, _ = say("doctor", "--json", "--lang", language)
            said = [each["message"] for each in json.loads(out)["findings"]]
            assert not [each for each in said if each.startswith(("finding.", "state.", "reason."))]
