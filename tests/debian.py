"""Programs of Debian's that a few tests need: found, or installed where that can be, which is as root."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_WHERE = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def program(*names: str, package: str) -> str | None:
    """Where the first of ``names`` is, of which ``package`` brings one; None where there is none to be had."""
    if (found := _found(names)) is not None or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return found
    with (Path(tempfile.gettempdir()) / "polydesk-tests-apt.lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "-y", "-qq", "--no-install-recommends", package]
        for command in (["update", "-qq"], install) if _found(names) is None else ():
            subprocess.run(["apt-get", *command], check=False, capture_output=True, timeout=600, env=quiet)
    return _found(names)


def _found(names: tuple[str, ...]) -> str | None:
    return next((found for name in names if (found := shutil.which(name, path=_WHERE))), None)
