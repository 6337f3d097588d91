"""Whether documents are searched by meaning here, and why not where they are not; light, so that a command may ask."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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


def words_alone(settings: Settings) -> Reason | None:
    """Why documents are searched by words alone though nobody chose that; None where meaning counts, or was left out
    on purpose."""
    if settings.embeddings_model is not None or packaged_runs_here():
        return None
    if find_spec(configuration.PACKAGED_MODEL) is None:
        return Reason("words_alone_not_installed", {"package": configuration.PACKAGED_MODEL})
    return Reason("words_alone_processor", {"package": configuration.PACKAGED_MODEL})
