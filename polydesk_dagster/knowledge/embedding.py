"""Texts into vectors: by an OpenAI-compatible endpoint, or by a sentence-transformers model on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.values import Several

if TYPE_CHECKING:
    import httpx

BATCH = 64
"""Texts a request."""

TIMEOUT = 30.0
"""Seconds a request may take."""

Vector = list[float]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server of embeddings; ``url`` is its root, its ``/v1`` or its ``/v1/embeddings``."""

    url: str
    model: str
    key: str | None = None
    attempts: int = 3
    timeout: float = TIMEOUT

    @property
    def name(self) -> str:
        """What a generation remembers of who made its vectors."""
        return f"endpoint {self.model}"

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector a text.

        Raises:
            TransientError: if the server cannot be reached, is busy or broken, after a few attempts.
            PermanentError: if it refuses, or answers something else than vectors of one length.
        """
        import httpx
        import stamina

        vectors: list[Vector] = []
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with httpx.Client(timeout=self.timeout, headers=headers) as client:
            for start in range(0, len(texts), BATCH):
                for attempt in stamina.retry_context(on=TransientError, attempts=self.attempts, wait_max=5.0):
                    with attempt:
                        part = self._ask(client, texts[start : start + BATCH])
                vectors += part
        _check(vectors, len(texts), self.name)
        return vectors

    def _ask(self, client: httpx.Client, texts: Sequence[str]) -> list[Vector]:
        import httpx

        try:
            answer = client.post(self._address, json={"model": self.model, "input": list(texts)})
        except httpx.HTTPError as error:
            raise TransientError("embeddings_silent", error=type(error).__name__) from error
        if answer.status_code in {408, 425, 429} or answer.status_code >= 500:
            raise TransientError("embeddings_busy", status=answer.status_code)
        if answer.status_code != 200:
            raise PermanentError("embeddings_refused", status=answer.status_code)
        try:
            rows = sorted(answer.json()["data"], key=lambda row: row["index"])
            return [_unit([float(x) for x in row["embedding"]]) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError("embeddings_no_vectors") from error

    @property
    def _address(self) -> str:
        if self.url.endswith("/embeddings"):
            return self.url
        return f"{self.url}/embeddings" if self.url.endswith("/v1") else f"{self.url}/v1/embeddings"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A sentence-transformers model in a folder; needs the optional dependencies ``local-embeddings``."""

    folder: Path

    @property
    def name(self) -> str:
        return f"modello {self.folder.name}"

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector a text.

        Raises:
            PermanentError: if the libraries or the model are not there.
        """
        encoded = _model(self.folder).encode(list(texts), batch_size=BATCH, normalize_embeddings=True)
        vectors = [[float(x) for x in vector] for vector in encoded]
        _check(vectors, len(texts), self.name)
        return vectors


Embedder = Endpoint | LocalModel


@lru_cache(maxsize=1)
def _model(folder: Path) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise PermanentError("embeddings_no_library") from error
    try:
        return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise PermanentError("embeddings_no_model", folder=folder.name) from error


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(sum(x * x for x in vector))
    if not math.isfinite(length) or length == 0:
        raise ValueError("not a direction")
    return [x / length for x in vector]


def _check(vectors: Sequence[Vector], wanted: int, name: str) -> None:
    lengths = {len(vector) for vector in vectors}
    if len(vectors) != wanted or len(lengths) > 1:
        raise PermanentError(
            "embeddings_uneven", model=name, given=len(vectors), wanted=wanted, lengths=Several(tuple(sorted(lengths)))
        )
