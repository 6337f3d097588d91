"""The home is its owner's alone, whatever it was before."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from polydesk_dagster import home
from polydesk_dagster.errors import ConfigurationError
from tests.waiting import PATIENCE


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_is_closed_to_everybody_else_even_if_it_was_open(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir(mode=0o755)
    for folder in (home.make(tmp_path / "new"), home.make(old)):
        assert _mode(folder) == (0o711 if os.geteuid() == 0 else 0o700)
        assert not _mode(folder) & 0o066


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_home_of_another_account_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "hers"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigurationError):
        home.make(folder)


def test_what_the_command_writes_is_for_its_account_alone(tmp_path: Path) -> None:
    code = """
import os, sys
from polydesk_dagster import cli
sys.argv = ["polydesk", "--help"]
try:
    cli.main()
finally:
    open(os.environ["WRITTEN"], "w").close()
"""
    written = tmp_path / "written"
    environment = {**os.environ, "WRITTEN": str(written)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=PATIENCE)
    assert _mode(written) == 0o600
