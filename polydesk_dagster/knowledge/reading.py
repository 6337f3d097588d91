"""Documents opened in a process of their own, within bounds of time and size."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import polydesk_dagster
from polydesk_dagster.knowledge.formats import ocr
from polydesk_dagster.knowledge.formats.text import Loss, UnreadableError
from polydesk_dagster.knowledge.splitting import Passage
from polydesk_dagster.values import Value

LARGEST = 64 * 1024**2
"""Bytes of a file; a larger one is quarantined unread."""

PATIENCE = 60.0
"""Seconds of a processor that a document may take, and as many again for each ``A_STRETCH`` of it."""

PAGES_A_STRETCH, BYTES_A_STRETCH = 100, 8 * 1024**2

LEAST_PAGE = 400
"""Bytes that a page takes in its file: one that says to have more of them than it could hold lies."""

MOST_STRETCHES = 30.0
"""However large a document is."""

STANDSTILL = 20
"""Times as long that may pass on the wall's clock: a busy machine is slow, a process that waits for nothing is dead."""

LOOK = 0.5
"""Seconds between looks at what the process has used."""

_COUNT = re.compile(rb"/Count\s+(\d{1,6})\b")


class ReaderDiedError(Exception):
    """The reading process was killed, by itself or for taking too long. Trying again may help, a few times."""

    def __init__(self, code: str, **values: Value) -> None:
        super().__init__(code)
        self.code = code
        self.values = values


@dataclass(frozen=True, slots=True)
class Reading:
    """The passages of one document, and what of it is in none."""

    passages: tuple[Passage, ...]
    title: str | None
    losses: tuple[Loss, ...] = ()


class Reader:
    """A reading process, started when first needed and started again after it died. Use it in a ``with``."""

    def __init__(self, patience: float = PATIENCE, *, meaning: bool = False) -> None:
        """``meaning``: the packaged model is there, and weighs what sentences mean."""
        self._patience = patience
        self._meaning = meaning
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def read(self, data: bytes, suffix: str, *, cleared: bool = False) -> Reading:
        """The passages of ``data``, a file whose name ends with ``suffix`` (lower case, with its dot); ``cleared`` when
        a person has looked at this very content.

        Raises:
            UnreadableError: if there are none to have.
            ReaderDiedError: if the process did not survive it or took too long.
        """
        process = self._process or self._start()
        bound = self._patience * stretches(data)
        asked = {"suffix": suffix, "size": len(data), "cleared": cleared, "meaning": self._meaning}
        request = json.dumps(asked).encode() + b"\n" + data
        try:
            answer = json.loads(_exchange(process, request, bound))
        except TimeoutError:
            self._stop()
            raise ReaderDiedError("reader_slow", seconds=round(bound)) from None
        except (OSError, ValueError):
            self._stop()
            raise ReaderDiedError("reader_died") from None
        if "code" in answer:
            raise UnreadableError(answer["code"], **answer["values"])
        return Reading(
            tuple(
                Passage(text, tuple(headings), page, place and (place[0], place[1]))
                for text, headings, page, place in answer["passages"]
            ),
            answer["title"],
            tuple(Loss(code, count, tuple(pages), sure) for code, count, pages, sure in answer["losses"]),
        )

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _MAIN, str(Path(polydesk_dagster.__file__).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may quote the document
            env={"PATH": os.defpath, "HOME": os.devnull},  # it inherits nothing and keeps nothing
            bufsize=0,
        )
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process.wait()
            self._process = None


_MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from polydesk_dagster.knowledge.reader import main
main()
"""


def stretches(data: bytes) -> float:
    """How many times as long as a small document this one may take, by its size and the pages that it says to have."""
    pages = max((int(count) for count in _COUNT.findall(data)), default=0) if data.startswith(b"%PDF-") else 0
    told = 1 + len(data) / BYTES_A_STRETCH + min(pages, len(data) // LEAST_PAGE) / PAGES_A_STRETCH
    if pages and ocr.engine() is not None:
        told += min(pages, len(data) // LEAST_PAGE, ocr.MOST_PAGES) * ocr.SECONDS_A_PAGE / PATIENCE
    return min(told, MOST_STRETCHES)


def _exchange(process: subprocess.Popen[bytes], request: bytes, bound: float) -> bytes:
    """Send a request, return the line that answers it; ``bound`` is in seconds of a processor.

    Raises:
        TimeoutError: when they are used up, or nothing has moved for far longer.
        OSError: if the process went away.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    outgoing, incoming = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(outgoing, False)
    used, deadline = _seconds_used(process), time.monotonic() + STANDSTILL * bound
    rest = memoryview(request)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        readable, writable, _ = select.select([incoming], [outgoing] if rest else [], [], min(LOOK, bound))
        if time.monotonic() > deadline or (not readable and _seconds_used(process) - used > bound):
            raise TimeoutError
        if writable:
            rest = rest[os.write(outgoing, rest[: 1 << 16]) :]
        if readable:
            part = os.read(incoming, 1 << 20)
            if not part:
                raise BrokenPipeError
            answer += part
    return bytes(answer)


def _seconds_used(process: subprocess.Popen[bytes]) -> float:
    """Of a processor, by all its threads.

    Raises:
        OSError: if the process went away.
    """
    import psutil

    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        raise ProcessLookupError from None
    return float(times.user + times.system)
