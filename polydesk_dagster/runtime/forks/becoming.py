"""One of our processes made as a fork of a process that has imported what it needs, instead of as a new Python.

It shares with the fork server, and with everything else that was forked from it, the memory of all that was imported,
and it need not import it again. Whoever asks is the fork server's own parent, and becomes the parent of what is made:
it must be a subreaper (:func:`adopt_orphans`). Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from polydesk_dagster.runtime import pythons

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 10.0
"""Seconds that a fork may take to be there; the fork server may have to load changed code first."""
_PARTED_SECONDS = 5.0
TAKEN = b"taken\n"
"""What whoever asked for a fork answers once it knows the process: one that nobody knows of ends."""


class NoForkError(Exception):
    """There is nobody to fork from, or it cannot be forked; the message is for a log."""


def adopt_orphans(*, yes: bool) -> None:
    """Whether what descends from this process and loses its parent becomes this process's child; its to wait for."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def end_with_parent() -> None:
    """Have this process asked to end once its parent is gone, however that went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def reap(known: set[int], before: set[int]) -> set[int]:
    """Wait for those adopted that have ended and that nobody knows. Returns those seen dead now that were not dead
    ``before``: they are waited for at the next look, if nobody has done so by then."""
    try:
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    if dead is None or dead.si_pid in known:
        return set()
    if dead.si_pid not in before:
        return {dead.si_pid}
    with contextlib.suppress(ChildProcessError):
        os.waitpid(dead.si_pid, os.WNOHANG)
    return set()


@dataclass(slots=True)
class Forked:
    """A process of ours that we did not start ourselves; of ``subprocess.Popen`` what keeping a process alive needs."""

    pid: int
    stdout: IO[bytes]
    """The end of a pipe from which what it writes is read."""
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status as ``Popen`` has it, or None while it lives."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                self.returncode = 1
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises ``subprocess.TimeoutExpired`` as ``Popen`` does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.02)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def forked(path: Path, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Forked:
    """What ``command`` (of ``pythons.module``) would start, as a fork of the fork server at
    ``path``, with its output in a pipe.

    Raises:
        NoForkError: it has to be started as a process of its own.
    """
    if (program := pythons.module_of(command)) is None:
        raise NoForkError("another program")
    words = {"do": "become", "name": name, "command": program, "environment": dict(environment)}
    reading, writing = os.pipe()
    try:
        pid = _asked(path, json.dumps(words).encode() + b"\n", writing)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Forked(pid, open(reading, "rb", buffering=0))  # noqa: PTH123 - whoever keeps the process closes it


def _asked(path: Path, words: bytes, output: int) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                client.connect(str(path))
                socket.send_fds(client, [words[:1]], [output])
                client.sendall(words[1:])
                answer = client.makefile("rb").readline()
                if answer and "pid" in (said := json.loads(answer)):
                    client.sendall(TAKEN)
                    return int(said["pid"])
            except OSError as error:
                raise NoForkError(type(error).__name__) from None
        if answer:
            raise NoForkError(str(said.get("problem")))
        if time.monotonic() > deadline:
            raise NoForkError("it goes before it answers")
        time.sleep(0.05)  # it went to load changed code


def _be_called(name: str, words: Sequence[str]) -> None:
    """Let who lists the processes of the machine see this name and these words, as far as there is room for them: they
    are written where the kernel looks for what a process was started with."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name[:15].encode(), 0, 0, 0)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(map(os.fsencode, words))[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


@dataclass(frozen=True, slots=True)
class Become:
    """The life of such a fork: called in a grandchild of the fork server, whose parent ends at once."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    owner: int
    client: socket.socket

    def __call__(self) -> bool:
        """Be that program until its end. Returns whether it ended well; raises what it raises."""
        if not self._adopted():
            return False
        _be_called(self.name, pythons.module(*self.command))
        os.environ.clear()
        os.environ.update(self.environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for handler in logging.root.handlers[:]:
            logging.root.removeHandler(handler)
        logging.root.setLevel(logging.WARNING)
        module, *arguments = self.command
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code in {None, 0}
        return True

    def _adopted(self) -> bool:
        """Whether our asker is our parent now, and has taken us."""
        deadline = time.monotonic() + _PARTED_SECONDS
        while os.getppid() != self.owner:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        end_with_parent()
        with self.client:
            self.client.settimeout(_PATIENCE)
            self.client.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
            taken = self.client.recv(len(TAKEN), socket.MSG_WAITALL) == TAKEN
        return taken and os.getppid() == self.owner
