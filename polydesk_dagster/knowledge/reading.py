"""Documents opened in a process of their own, within bounds of time and size; text that a person must see first."""

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

from polydesk_dagster.knowledge import reader
from polydesk_dagster.knowledge.reader import UnreadableError
from polydesk_dagster.knowledge.splitting import Page

LARGEST = 64 * 1024**2
"""Bytes of a file; a larger one is quarantined unread."""

PATIENCE = 60.0
"""Seconds that one document may take."""


class ReaderDiedError(Exception):
    """The reading process was killed, by itself or for taking too long. Trying again may help, a few times."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Reading:
    """The text of one document."""

    pages: tuple[Page, ...]
    title: str | None


class Reader:
    """A reading process, started when first needed and started again after it died. Use it in a ``with``."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def read(self, data: bytes, suffix: str) -> Reading:
        """The text of ``data``, a file whose name ends with ``suffix`` (lower case, with its dot).

        Raises:
            UnreadableError: if there is none to have.
            ReaderDiedError: if the process did not survive it or took too long.
        """
        process = self._process or self._start()
        deadline = time.monotonic() + self._patience
        request = json.dumps({"suffix": suffix, "size": len(data)}).encode() + b"\n" + data
        try:
            answer = json.loads(_exchange(process, request, deadline))
        except (OSError, ValueError):
            self._stop()
            raise ReaderDiedError(
                "reader_died", "la lettura si interrompe: il file manda in errore il lettore"
            ) from None
        except TimeoutError:
            self._stop()
            raise ReaderDiedError("reader_slow", f"la lettura non finisce in {self._patience:.0f} secondi") from None
        if "code" in answer:
            raise UnreadableError(answer["code"], answer["message"])
        return Reading(tuple(Page(text, number) for number, text in answer["pages"]), answer["title"])

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(reader.__file__))],
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


def _exchange(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes:
    """Send a request, return the line that answers it.

    Raises:
        TimeoutError: at the deadline.
        OSError: if the process went away.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    outgoing, incoming = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(outgoing, False)
    rest = memoryview(request)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        left = deadline - time.monotonic()
        readable, writable, _ = select.select([incoming], [outgoing] if rest else [], [], max(0.0, left))
        if not readable and not writable:
            raise TimeoutError
        if writable:
            rest = rest[os.write(outgoing, rest[: 1 << 16]) :]
        if readable:
            part = os.read(incoming, 1 << 20)
            if not part:
                raise BrokenPipeError
            answer += part
    return bytes(answer)


_FISCAL_CODE = re.compile(
    r"(?<![A-Z0-9])[A-Z]{6}[0-9LMNPQRSTUV]{2}[ABCDEHLMPRST][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z](?![A-Z0-9])",
    re.IGNORECASE,
)
_HEALTH_CARD = re.compile(r"(?<!\d)80380\d{15}(?!\d)")
_ORDERS = re.compile(
    r"ignora\w*\s+(?:tutte\s+)?(?:le\s+)?(?:precedenti\s+istruzioni|istruzioni\s+(?:precedenti|ricevute|di\s+sistema))"
    r"|(?:ignore|disregard|forget)\s+(?:all\s+|any\s+|the\s+|your\s+)*(?:previous|prior|above|earlier)\s+"
    r"(?:instructions|prompts?|messages)|<\|im_(?:start|end)\|>|\[/?INST\]|(?:prompt\s+di\s+sistema|system\s+prompt)\s*:",
    re.IGNORECASE,
)


def objection(text: str) -> UnreadableError | None:
    """Why a person should look at this text before anybody is given it: a patient's identity, or orders to whoever
    reads it. None if nothing was found."""
    people = sum(1 for found in _FISCAL_CODE.finditer(text) if _has_check_letter(found.group()))
    people += len(_HEALTH_CARD.findall(text))
    if people:
        what = "un codice" if people == 1 else f"{people} codici"
        return UnreadableError("personal_data", f"contiene {what} di persone (codice fiscale o tessera sanitaria)")
    if _ORDERS.search(text):
        return UnreadableError("instructions", "contiene frasi che danno ordini all'assistente")
    return None


def _has_check_letter(code: str) -> bool:
    from codicefiscale import codicefiscale

    return bool(codicefiscale.encode_cin(code[:15].upper()) == code[15].upper())
