"""Pages that are only a picture, read by an engine where one is installed: RapidOCR, whose wheel brings its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGE, RUNTIME = "rapidocr", "onnxruntime"

MOST_PAGES = 200
"""Of a document that are read so; the others stay what they are."""

SECONDS_A_PAGE = 6.0
"""Of a processor that a page may take; one of A4 at 200 dots an inch takes 2.5."""

LARGEST_PICTURE = 60_000_000
"""Pixels; a larger one is not unpacked."""

LEAST_SIDE = 100
"""Pixels: what is smaller is a logo or a stamp."""

DOUBTFUL = 0.97
"""How sure the engine is of a page, on average of its lines, below which a person should compare. On made scans it is
above where at least 98 in 100 words are right."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What stands on a picture, line by line, and how sure the engine is of it: 0 to 1."""

    text: str
    sure: float


def engine() -> str | None:
    """The engine and its version; None where none is installed. It decides what a document says, as the reader does."""
    if find_spec(PACKAGE) is None or find_spec(RUNTIME) is None:
        return None
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return None


def read(pictures: Sequence[Image]) -> Seen | None:
    """The text of a page's pictures, top to bottom; None if there is none to see, or they cannot be unpacked."""
    lines: list[str] = []
    scores: list[float] = []
    for picture in pictures:
        if min(picture.size) < LEAST_SIDE or picture.width * picture.height > LARGEST_PICTURE:
            continue
        for line, score in _lines(picture):
            lines.append(line)
            scores.append(score)
    if not any(c.isalnum() for line in lines for c in line):
        return None
    return Seen("\n".join(lines), sum(scores) / len(scores))


def _lines(picture: Image) -> list[tuple[str, float]]:
    import numpy as np

    found = _engine()(np.asarray(picture.convert("RGB"))[:, :, ::-1])
    return [] if found.txts is None else list(zip(found.txts, map(float, found.scores), strict=True))


@lru_cache(maxsize=1)
def _engine() -> Any:
    import logging

    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    return RapidOCR(params=threads)
