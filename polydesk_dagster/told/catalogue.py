"""The message catalogues of a language, read from its ``.po`` files as one."""

from __future__ import annotations

from functools import cache
from gettext import GNUTranslations
from io import BytesIO
from pathlib import Path

LANGUAGES = ("it", "en", "de")
"""The languages that Polydesk speaks; the first where none is asked for."""

FOLDER = Path(__file__).parent / "locale"


@cache
def catalogue(language: str) -> GNUTranslations:
    """All messages of ``language``, one of ``LANGUAGES``.

    Raises:
        ValueError: when two files hold the same message.
    """
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    whole = Catalog(language)
    whole.mime_headers = [("Plural-Forms", "nplurals=2; plural=(n != 1);")]  # as in the files: the same in all three
    for path in sorted((FOLDER / language).glob("*.po")):
        with path.open("rb") as file:
            for message in read_po(file, language):
                if not message.id:
                    continue
                if message.id in whole:
                    raise ValueError(f"{path.name}: {message.id} stands elsewhere too")
                whole.add(message.id, message.string)
    compiled = BytesIO()
    write_mo(compiled, whole)
    compiled.seek(0)
    return GNUTranslations(compiled)
