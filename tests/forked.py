"""Processes that share a session's tests, forked from one that has imported them all.

Started anew each would import what tests import and collect it, in a fresh clone compile it too: 7 to 15 seconds of
processor time, for every process the same. What execnet starts instead (``python=`` of its specification) hands its
three streams to a fork of the process that did it once, and ends with that.
"""

from __future__ import annotations

import gc
import os
import random
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@contextmanager
def forked(arguments: Sequence[str]) -> Iterator[str]:
    """The command of a Python that has collected what pytest's ``arguments`` ask for; it lasts as long as this."""
    me = [sys.executable, "-P", __file__]
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address := f"{folder}/fork")
        listener.listen(socket.SOMAXCONN)
        with subprocess.Popen(
            [*me, str(listener.fileno()), *arguments], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
        ):
            yield shlex.join([*me, address])


def _hand_over(address: str) -> None:
    """The other end is the fork's alone: it closes when that ends, however it does; and that ends when this does."""
    with socket.socket(socket.AF_UNIX) as fork:
        fork.connect(address)
        socket.send_fds(fork, [b"."], [0, 1, 2])
        fork.recv(1)


def _serve(listener: socket.socket, arguments: Sequence[str]) -> None:
    import pytest

    # What fails fails in the fork too, and is said there.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        pytest.main([*arguments, "-n", "0", "--collect-only"], [_Collecting()])
    if (warm := sys.modules.get("tests.warm")) is not None:
        warm.share()
    gc.collect()
    gc.freeze()
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            _become(connection)
            return
        connection.close()


class _Collecting:
    def pytest_configure(self, config: Any) -> None:
        config.option.update_snapshots = False  # where no test runs none is used, and all would be removed


def _become(connection: socket.socket) -> None:
    """What ``python -c`` does with the line that execnet sends first; the connection stays open until the end."""
    for number, stream in enumerate(socket.recv_fds(connection, 1, 3)[1]):
        os.dup2(stream, number)
        os.close(stream)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.argv = os.fdopen(0), ["-c"]
    sys.modules["__main__"] = main = types.ModuleType("__main__")  # spawned processes import that of their parent
    exec(eval(sys.stdin.readline()), vars(main))


def _end_with(connection: socket.socket) -> None:
    connection.recv(1)
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever hands out the tests has it too, and ends them
    where, *rest = sys.argv[1:]
    if where.isdecimal():
        _serve(socket.socket(fileno=int(where)), rest)
    else:
        _hand_over(where)
