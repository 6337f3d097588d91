"""The command as a person and a program use it, on a real installation of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.database import embedded
from tests import warm
from tests.knowledge.world import short_documents
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.slow

CONFIGURED = ("DATABASE_URL", "CENTRAL_URL", "CENTRAL_TOKEN", "SMS_URL", "SMS_TOKEN", "SMS_SENDER", "SMTP_URL")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Installation:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.environment = {
            **{k: v for k, v in os.environ.items() if k.removeprefix("POLYDESK_") not in CONFIGURED},
            "POLYDESK_HOME": str(home),
            "POLYDESK_WEB_PORT": str(self.port),
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "polydesk_dagster.cli", *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return warm.completed(warm.POLYDESK, *arguments, environment={**self.environment, **environment})

    def json(self, *arguments: str) -> tuple[int, Any]:
        done = self.run(*arguments, "--json")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def processes(self) -> dict[psutil.Process, str]:
        """Everything that runs for this home, with its command line."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie counts as gone
                command = " ".join(process.cmdline())
                if process.pid != os.getpid() and (
                    str(self.home) in command or process.environ().get("POLYDESK_HOME") == str(self.home)
                ):
                    found[process] = command
        return found


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    yield from _installed()


@pytest.fixture
def fresh() -> Iterator[Installation]:
    """A home in which nothing was ever started."""
    yield from _installed()


def _installed() -> Iterator[Installation]:
    home = Path(tempfile.mkdtemp(prefix="polydesk-cli-", dir="/tmp"))
    home.chmod(0o755)
    yield Installation(home)
    for process in Installation(home).processes():
        process.kill()
    subprocess.run(["rm", "-rf", str(home)], check=False)


@pytest.fixture(scope="module")
def night(installation: Installation) -> dict[str, Any]:
    """The demonstration's night, run once for the tests that look at what it leaves."""
    status, result = installation.json("demo", "--size", "small")
    assert status == 0, result
    return dict(result)


def test_the_demo_runs_the_whole_night_well(night: dict[str, Any], installation: Installation) -> None:
    assert night["loaded"]
    assert night["well"]
    ran = {row["service"]: row["outcome"] for row in night["services"]}
    slots = next(row for row in night["services"] if row["service"] == "generate_slots")
    assert (slots["outcome"], slots["counts"]["failed"]) == ("partial", 0), "some bookings wait for a person"
    assert slots["counts"]["waiting"]
    assert set(ran.values()) <= {"ok", "nothing_to_do", "skipped", "partial"}
    assert not embedded.running(installation.home), "nothing is left running"


@pytest.mark.usefixtures("night")
def test_a_run_prints_one_object_and_a_second_changes_nothing(installation: Installation) -> None:
    status, first = installation.json("run", "generate_slots")
    assert status == 0
    assert set(first) == {
        "service", "clinic", "outcome", "counts", "reasons", "plan_id", "started_at", "seconds",
    }  # fmt: skip
    assert set(first["counts"]) == {"created", "updated", "retired", "skipped", "waiting", "failed", "unchanged"}
    status, second = installation.json("run", "generate_slots", "--clinic", "BO01")
    assert (status, second["outcome"], second["clinic"]) == (0, "nothing_to_do", "BO01")
    done = installation.run("run", "generate_slots")
    assert "niente da fare" in done.stdout
    assert "dagster" not in (done.stdout + done.stderr).lower(), "a receptionist reads this"


@pytest.mark.usefixtures("night")
def test_both_nights_of_the_clocks_change(installation: Installation) -> None:
    for instant in ("2027-03-27T23:00:00+01:00", "2027-10-30T23:00:00+02:00"):
        status, result = installation.json("run", "generate_slots", "--preview", "--as-of", instant)
        assert (status, result["outcome"]) == (0, "ok")
    status, result = installation.json("run", "generate_slots")
    assert result["counts"]["created"] == 0, "a preview writes nothing"


@pytest.mark.usefixtures("night")
def test_services_and_clinics(installation: Installation) -> None:
    status, rows = installation.json("services")
    assert status == 0
    assert [row["key"] for row in rows] == [service.key for service in SERVICES]
    slots = next(row for row in rows if row["key"] == "generate_slots")
    assert slots["last_outcome"] in {"partial", "ok", "nothing_to_do"}, "of the night, or of who ran it since"
    assert slots["next_run"]
    status, clinics = installation.json("clinics")
    assert "BO01" in {clinic["code"] for clinic in clinics}


@pytest.mark.usefixtures("night")
def test_wrong_usage_is_told_and_ends_with_two(installation: Installation) -> None:
    for arguments, word in (
        (("run", "generate_slot"), "generate_slots"),
        (("run", "generate_slots", "--as-of", "domani"), "RFC 3339"),
        (("run", "generate_slots", "--as-of", "2026-03-29T02:00:00"), "fuso"),
        (("run", "generate_slots", "--clinic", "XX99"), "BO01"),
        (("run", "generate_slots", "--everyone"), "--everyone"),
        (("integration", "XX99", "--on"), "BO01"),
        (("integration", "BO01", "--token-env", "il mio token"), "BO01: "),
        (("--lang", "fr", "services"), "it, en"),
    ):
        done = installation.run(*arguments)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert word in " ".join(done.stderr.replace("│", " ").split()), (arguments, done.stderr)


def test_wrong_configuration_is_refused_by_name(installation: Installation) -> None:
    done = installation.run("services", POLYDESK_SMS_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "POLYDESK_SMS_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("night")
def test_the_database_answers_at_the_address_that_is_printed(installation: Installation) -> None:
    url = installation.run("db", "url").stdout.strip()
    assert url.startswith("postgresql://")
    asked = installation.run("db", "psql", "-At", "-c", "SELECT count(*) > 0 FROM slot")
    assert asked.stdout.strip() == "t", asked.stderr
    assert installation.run("db", "migrate").returncode == 0
    assert installation.run("db", "stop").returncode == 0
    assert not embedded.running(installation.home)


@pytest.mark.usefixtures("night")
def test_a_patient_has_her_file_and_then_is_gone(installation: Installation, tmp_path: Path) -> None:
    asked = "SELECT min(patient_id) FROM appointment WHERE starts_at < now() AND status = 'completed'"
    patient = installation.run("db", "psql", "-At", "-c", asked).stdout.strip()
    file = tmp_path / "hers.json"
    status, _ = installation.json("patients", "export", patient, "-o", str(file))
    assert status == 0
    assert file.stat().st_mode & 0o077 == 0
    data = json.loads(file.read_text())["data"]
    assert data["person"]["rows"][0]["last_name"] != "—"
    assert data["bookings"]["kept"]
    status, shown = installation.json("patients", "erase", patient)
    assert (status, shown["outcome"]) == (0, "ok")
    plan = str(shown["plan_id"])
    assert installation.run("plan", "apply", plan).returncode != 0, "it asks for a word"
    guards = [part for each in shown["reasons"] for part in ("--past-guard", each["code"].removeprefix("guard_"))]
    done = installation.run("plan", "apply", plan, *guards, "--reason", "Lo ha chiesto per iscritto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "non si annulla" in installation.run("plan", "undo", plan).stdout
    status, _ = installation.json("patients", "export", patient, "-o", str(file))
    assert json.loads(file.read_text())["data"]["person"]["rows"][0]["last_name"] == "—"
    assert installation.run("patients", "erase", "999999999").returncode == 2


def test_a_configured_database_never_gets_the_demo(installation: Installation) -> None:
    done = installation.run("demo", POLYDESK_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")
    assert done.returncode == 2
    assert "POLYDESK_DATABASE_URL" in done.stderr


def _start(installation: Installation, log: Path) -> subprocess.Popen[bytes]:
    """Start ``up`` and wait until it says that it is ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            installation.command("up", "--size", "small"),
            env=installation.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until(lambda: "Polydesk è pronto" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return process


def _listening(installation: Installation) -> dict[str, set[int]]:
    """The ports that processes of this home listen at, by the module that each runs."""
    found: dict[str, set[int]] = {}
    for process, command in installation.processes().items():
        with contextlib.suppress(psutil.NoSuchProcess):
            ports = {each.laddr.port for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
            if ports:
                module = re.search(r"polydesk_dagster[.\w]*", command)
                found.setdefault(module[0] if module else command, set()).update(ports)
    return found


def _none_left(installation: Installation, but: str | None = None) -> bool:
    """Whether in the end nothing runs for this home but what has ``but`` in its command line."""

    def gone() -> bool:
        return all(but is not None and but in command for command in installation.processes().values())

    return until(gone, "something is left running")


def test_up_where_another_program_has_the_port_says_so_and_what_to_set(fresh: Installation) -> None:
    with socket.create_server(("127.0.0.1", fresh.port)):
        done = fresh.run("up", "--empty")
    assert done.returncode == 4
    assert f"127.0.0.1:{fresh.port}" in done.stderr.replace("\n", "")
    assert "POLYDESK_WEB_PORT" in done.stderr
    assert "pronto" not in done.stdout
    assert not embedded.exists(fresh.home), "it is said before anything is made"


def test_up_runs_its_first_night_serves_alone_survives_sigkill_and_leaves_nothing(
    fresh: Installation, tmp_path: Path
) -> None:
    installation = fresh
    short_documents(installation.home / "documents")
    first = _start(installation, tmp_path / "first.log")
    night = (tmp_path / "first.log").read_text()
    assert "generate_slots" in night
    assert "fallito" not in night, night
    assert "rifiutato" not in night, night
    with urllib.request.urlopen(f"http://127.0.0.1:{installation.port}/health/live", timeout=PATIENCE) as answer:
        assert answer.status == 200
    seen = [
        path for path in installation.home.rglob("*") if "postgres" not in path.parts and path.lstat().st_mode & 0o066
    ]
    assert not [path for path in seen if not path.is_symlink()], "simulators' files and logs are nobody else's either"
    assert installation.home.stat().st_mode & 0o066 == 0
    listening = _listening(installation)
    assert listening.pop("polydesk_dagster.web") == {installation.port}
    assert all(module.startswith("polydesk_dagster.demo") for module in listening), listening
    second = installation.run("up")
    assert second.returncode == 4
    assert "già avviato" in second.stderr
    status, result = installation.json("run", "generate_slots")
    assert (status, result["outcome"]) == (0, "nothing_to_do")
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    assert _none_left(installation, but="postgres")
    again = _start(installation, tmp_path / "again.log")
    again.send_signal(signal.SIGINT)
    assert again.wait(PATIENCE) == 0, (tmp_path / "again.log").read_text()
    assert _none_left(installation)
