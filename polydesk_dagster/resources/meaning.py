"""How documents are searched here: by meaning too or, and why, by words alone; light, so that a command may ask."""

import hashlib
import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pydantic import SecretStr

from polydesk_dagster import settings as configuration
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Reason

PROCESSOR = Path("/proc/cpuinfo")
ENGINE_NEEDS = frozenset({"avx2", "fma", "f16c"})


@cache
def packaged_runs_here() -> bool:
    """Whether the packaged model is installed, and this processor has what its engine was compiled for: another would
    end the process with an illegal instruction."""
    if find_spec(configuration.PACKAGED_MODEL) is None:
        return False
    try:
        flags = re.search(r"^flags\s*:(.*)$", PROCESSOR.read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and set(flags.group(1).split()) >= ENGINE_NEEDS


DECIDES = (
    "database_url",
    "documents",
    "knowledge_uri",
    "embeddings_url",
    "embeddings_model",
    "embeddings_key",
    "reranker",
)
"""Settings that decide, with the home and the program's version, how a question is answered."""


def search(settings: Settings) -> str:
    """A digest of all that decides how a question is answered: a process that was started under other settings, or is
    of another version, must not answer in the place of this one."""
    values = (getattr(settings, name) for name in DECIDES)
    told = [str(value.get_secret_value() if isinstance(value, SecretStr) else value) for value in values]
    return hashlib.sha256("\0".join([version("polydesk-dagster"), str(settings.home), *told]).encode()).hexdigest()


def words_alone(settings: Settings) -> Reason | None:
    """Why documents are searched by words alone though nobody chose that; None where meaning counts, or was left out
    on purpose."""
    if settings.embeddings_model is not None or packaged_runs_here():
        return None
    if find_spec(configuration.PACKAGED_MODEL) is None:
        return Reason("words_alone_not_installed", {"package": configuration.PACKAGED_MODEL})
    return Reason("words_alone_processor", {"package": configuration.PACKAGED_MODEL})
