"""How one process of an installation asks another: a unix socket in a folder that the home's owner alone enters."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polydesk_dagster.errors import PermanentError

_PATH_LIMIT = 100
"""A unix socket's path holds 107 bytes; the longest name we put under the folder is shorter than the rest."""

_ANSWER_SECONDS = 60.0


def sockets(within: Path) -> Path:
    """The folder of the unix sockets of ``within``, made private; a short one elsewhere if the path is long.

    Raises:
        PermanentError: if the short folder belongs to somebody else.
    """
    folder = within / "run"
    if len(os.fsencode(folder)) + 32 > _PATH_LIMIT:
        digest = hashlib.sha256(os.fsencode(within)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"polydesk-{os.getuid()}-{digest}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermanentError("folder_of_another", folder=str(folder))
    folder.chmod(0o700)
    return folder


def ask(
    path: Path,
    request: Mapping[str, object],
    timeout: float = _ANSWER_SECONDS,
    wait: Callable[[socket.socket], object] = lambda _: None,
) -> Mapping[str, Any]:
    """One request to whoever listens at ``path``, and the answer: a line of JSON each way. ``wait`` returns once an
    answer comes, for who knows better than by ``timeout`` how long that may take.

    Raises:
        TimeoutError: no answer in time.
        OSError: nobody listens, or it went before it had answered.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(str(path))
        client.sendall(json.dumps(request).encode() + b"\n")
        wait(client)
        with client.makefile("rb") as stream:
            line = stream.readline()
    if not line:
        raise ConnectionResetError
    answer: Mapping[str, Any] = json.loads(line)
    return answer
