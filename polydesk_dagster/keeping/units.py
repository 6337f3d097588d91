"""systemd's units for an installation on one machine: kept running, watched, copied every night."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name("systemd")


def write(home: Path, folder: Path, *, person: str) -> list[Path]:
    """Write the units for a home into ``folder``, for the account ``person``; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    command = shutil.which("polydesk", path=str(Path(sys.executable).parent)) or "polydesk"
    written = []
    for template in sorted(FOLDER.glob("polydesk*")):
        target = folder / template.name
        text = template.read_text()
        for name, value in (("@HOME@", str(home)), ("@COMMAND@", command), ("@USER@", person)):
            text = text.replace(name, value)
        target.write_text(text)
        target.chmod(0o644)
        written.append(target)
    return written
