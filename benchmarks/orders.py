"""Orders to the assistant among what clinics write: how many are found, and how much harmless is taken for some.

Run by itself, ``python -m benchmarks.orders`` fits the weights anew on the development set, says what they find there
of what they were not fitted on, and writes them. The test set is looked at by the figures alone.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Figure, peak_mb
from polydesk_dagster.knowledge import orders
from polydesk_dagster.knowledge.embedding import Packaged
from polydesk_dagster.knowledge.formats.text import UnreadableError
from polydesk_dagster.knowledge.reading import Reader, ReaderDiedError
from polydesk_dagster.knowledge.screening import objections
from tests.knowledge.machine import development, held_out
from tests.knowledge.test_screening import HARMLESS, ORDERS

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path(orders.__file__).with_name("orders.json")

REAL = {"demo": 300, "kb": 1200, "encyclopedia": 1000}
"""Sentences of real documents, none of them an order, that are fitted beside those written for it."""

FALSE = {"harmless": 0.02, "real": 0.0005}
"""Of the harmless sentences written to be mistaken, and of real ones, the share that may be."""

KEPT = 0.95
"""Of the orders, the share of which vectors are made."""

PENALTY, STEPS, PARTS = 1e-3, 400, 5


def figures(bench: Bench) -> Iterator[Figure]:
    found_by = {"by words": None, "with meaning": Packaged().embed}
    harmless, wanted = (held_out(kind)[: bench.size(len(held_out(kind)))] for kind in ("harmless", "orders"))
    for name, meaning in found_by.items():
        found, wrong = (sum(map(bool, objections(texts, meaning))) for texts in (wanted, harmless))
        yield Figure("orders", f"found {name}", found, len(wanted), "sentences", 0.3, at_least=True, peak_mb=peak_mb())
        yield Figure("orders", f"harmless flagged {name}", wrong, len(harmless), "sentences", 0.02, peak_mb=peak_mb())


def real_sentences() -> list[str]:
    """Of the real documents and texts that the tests read, and of the demo's."""
    chance = random.Random(1)
    folders = {"demo": ROOT / "polydesk_dagster" / "demo" / "knowledge", "kb": ROOT / "tests" / "data" / "kb"}
    found: dict[str, list[str]] = {name: [] for name in REAL}
    with Reader() as reader:
        for name, folder in folders.items():
            for file in sorted(folder.iterdir()):
                try:
                    reading = reader.read(file.read_bytes(), file.suffix, cleared=True)
                except (UnreadableError, ReaderDiedError):
                    continue
                found[name] += [each for passage in reading.passages for each in orders.sentences(passage.text)]
    with gzip.open(ROOT / "tests" / "data" / "qa" / "squad_it_paragraphs.jsonl.gz", "rt", encoding="utf-8") as lines:
        found["encyclopedia"] = [each for line in lines for each in orders.sentences(json.loads(line)["text"])]
    whole = {name: sorted({each.strip() for each in told if len(each.split()) >= 4}) for name, told in found.items()}
    return [each for name, told in whole.items() for each in chance.sample(told, min(REAL[name], len(told)))]


def fit() -> dict[str, list[float]]:
    """The weights; on standard output what they find in parts of the development set that they were not fitted on."""
    import numpy as np

    texts = {
        "orders": [*development("orders"), *ORDERS],
        "harmless": [*development("harmless"), *HARMLESS],
        "real": real_sentences(),
    }
    every = [text for told in texts.values() for text in told]
    kinds = np.array([kind for kind, told in texts.items() for _ in told])
    touched = np.array([orders.features(text) for text in every])
    vectors = np.array(Packaged().embed(every))
    middle = vectors.mean(axis=0)
    both = np.hstack([touched, orders.NEAR * (vectors - middle)])
    scores = {"subjects": _held_out(touched, kinds), "both": _held_out(both, kinds)}
    bounds = {
        name: max(float(np.quantile(score[kinds == kind], 1 - share)) for kind, share in FALSE.items())
        for name, score in scores.items()
    }
    look = float(np.quantile(scores["subjects"][kinds == "orders"], 1 - KEPT))
    for name, score in scores.items():
        shares = {kind: round(float((score[kinds == kind] >= bounds[name]).mean()), 4) for kind in texts}
        print(name, shares)
    print("looked at", {kind: round(float((scores["subjects"][kinds == kind] >= look).mean()), 3) for kind in texts})
    return {
        "subjects": _plain(_weights(touched, kinds)),
        "both": _plain(_weights(both, kinds)),
        "middle": _plain(middle),
        "bounds": _plain([look, bounds["subjects"], bounds["both"]]),
    }


def _held_out(given: Any, kinds: Any) -> Any:
    """The score of each sentence by weights that were fitted without it."""
    import numpy as np

    parts = np.random.default_rng(0).integers(0, PARTS, len(kinds))
    scores = np.zeros(len(kinds))
    for part in range(PARTS):
        weights = _weights(given[parts != part], kinds[parts != part])
        scores[parts == part] = given[parts == part] @ weights[:-1] + weights[-1]
    return scores


def _weights(given: Any, kinds: Any) -> Any:
    """A logistic regression with a penalty, by Adam; those written for it weigh twice, so that real sentences, which
    are many and easy, do not decide alone."""
    import numpy as np

    wanted, counts = kinds == "orders", np.where(kinds == "real", 1.0, 2.0)
    inputs = np.hstack([given, np.ones((len(given), 1))])
    weights, slope, square = (np.zeros(inputs.shape[1]) for _ in range(3))
    penalty = np.append(np.full(given.shape[1], PENALTY), 0.0)
    for step in range(1, STEPS + 1):
        sure = 1 / (1 + np.exp(-(inputs @ weights)))
        gradient = inputs.T @ (counts * (sure - wanted)) / counts.sum() + penalty * weights
        slope, square = 0.9 * slope + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weights = weights - 0.05 * (slope / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights


def _plain(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


if __name__ == "__main__":
    WEIGHTS.write_text(json.dumps(fit()) + "\n")
