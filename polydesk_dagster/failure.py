"""How a connection, or what was read over one, failed: one of a closed list that people are told in their language.

The name of a class says it to whoever knows the library; its cause, however deep, says it to whoever is to mend it.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from polydesk_dagster.values import Term

_NO_WAY = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "no_name"),
    (ssl.SSLCertVerificationError, "certificate"),
    (ssl.SSLError, "tls"),
    (ConnectionRefusedError, "refused"),
    (TimeoutError, "timed_out"),
    (ConnectionResetError, "cut"),
    (ConnectionAbortedError, "cut"),
    (BrokenPipeError, "cut"),
    (EOFError, "cut"),
)


def failure(error: BaseException, otherwise: str) -> Term:
    """How it failed, by what it arose from: a term of ``failure``, or of a file or folder one of ``errno``.
    ``otherwise`` is what is said where that tells nothing more."""
    for each in _causes(error):
        for kind, code in _KINDS:
            if isinstance(each, kind):
                return Term("failure", code)
        if isinstance(each, OSError) and each.errno is not None:
            if each.errno in _NO_WAY:
                return Term("failure", "no_way")
            return Term("errno", errno.errorcode.get(each.errno, str(each.errno)))
    return Term("failure", otherwise)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
