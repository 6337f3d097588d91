"""How another Python of ours is started: with what is installed, and nothing of the folder where the operator stands.

Python looks for every module in the working directory first when it is given ``-m`` or ``-c``: a ``json.py`` that lies
there would become ours. Processes that such a one starts or forks keep the flag.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

_MODULE = (sys.executable, "-P", "-m")


def module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module as a program."""
    return [*_MODULE, name, *arguments]


def module_of(command: Sequence[str]) -> list[str] | None:
    """The module and its arguments of such a command line; None of any other."""
    start = len(_MODULE)
    return list(command[start:]) if tuple(command[:start]) == _MODULE else None


def spare_first() -> None:
    """Put a place that holds no module before all where this process looks for them. Dagster leaves out the first while
    it loads code, which it takes for the program's own folder; here it would be the first of PYTHONPATH."""
    programs = str(Path(sys.executable).parent)
    if sys.flags.safe_path and sys.path[:1] != [programs]:
        sys.path.insert(0, programs)
