"""The message catalogues of a language, read from its ``.po`` files as one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from gettext import GNUTranslations
from io import BytesIO
from pathlib import Path

LANGUAGES = ("it", "en", "de")
"""The languages that Polydesk speaks; the first where none is asked for."""

FOLDER = Path(__file__).parent / "locale"


def accepted(header: str) -> str:
    """The first of our languages that an ``Accept-Language`` takes; Italian where it takes none."""
    asked = (each.partition(";")[0].strip().partition("-")[0].lower() for each in header.split(","))
    return next((each for each in asked if each in LANGUAGES), LANGUAGES[0])


@cache
def catalogue(language: str) -> GNUTranslations:
    """All messages of ``language``, one of ``LANGUAGES``.

    Reading the files costs more than a short command does, so what they come to is kept beside them, as Python keeps
    its bytecode: under a name that says of which files it is, and not at all where the folder is not ours to write.
    """
    files = sorted((FOLDER / language).glob("*.po"))
    kept = FOLDER / language / "__pycache__" / f"{_stamp(files)}.mo"
    with suppress(OSError), kept.open("rb") as file:
        return GNUTranslations(file)
    compiled = _compiled(language, files)
    with suppress(OSError):
        kept.parent.mkdir(exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_bytes(compiled)
        draft.replace(kept)
        for older in kept.parent.glob("*.mo"):
            if older != kept:
                older.unlink(missing_ok=True)
    return GNUTranslations(BytesIO(compiled))


def _stamp(files: Sequence[Path]) -> str:
    seen = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _compiled(language: str, files: Sequence[Path]) -> bytes:
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    whole = Catalog(language)
    whole.mime_headers = [("Plural-Forms", "nplurals=2; plural=(n != 1);")]  # as in the files: the same in all three
    for path in files:
        with path.open("rb") as file:
            for message in read_po(file, language):
                if message.id:
                    whole.add(message.id, message.string)
    compiled = BytesIO()
    write_mo(compiled, whole)
    return compiled.getvalue()
