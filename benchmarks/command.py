"""What it costs to ask the command: its CPU beside that of a Python which does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness import Bench, Figure

TIMES = 9
GOALS: Mapping[str, float] = {"--help": 0.25, "services": 0.6}
"""Seconds of CPU that a person would not notice, by what is asked."""


def figures(bench: Bench) -> Iterator[Figure]:
    with bench.engine() as engine, TemporaryDirectory(prefix="polydesk-command-") as home:
        url = engine.url.render_as_string(hide_password=False)
        environment = {**os.environ, "POLYDESK_HOME": home, "POLYDESK_DATABASE_URL": url}
        nothing = _cpu([sys.executable, "-c", "pass"], environment, bench.size(TIMES))
        for asked, goal in GOALS.items():
            command = [sys.executable, "-m", "polydesk_dagster.cli", asked]
            ours = _cpu(command, environment, bench.size(TIMES))
            yield Figure("command", f"polydesk {asked}, CPU", ours, nothing, "s", goal / nothing)


def _cpu(command: list[str], environment: Mapping[str, str], times: int) -> float:
    """The median of the CPU seconds that a process takes, after one run that warms the disk."""
    spent = []
    for _ in range(times + 1):
        process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{command[-1]} ended with {process.returncode}")
        spent.append(used.ru_utime + used.ru_stime)
    return median(spent[1:])
