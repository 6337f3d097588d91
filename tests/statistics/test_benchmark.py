from __future__ import annotations

import pytest
from sqlalchemy.engine import URL

from benchmarks import statistics
from benchmarks.harness import Bench


@pytest.mark.slow
def test_the_benchmark_runs_small_and_its_incremental_numbers_are_the_full_ones(server: URL) -> None:
    figures = list(statistics.figures(Bench(server, 0.004)))
    assert [figure.figure for figure in figures][-1] == "nulla cambiato"
    assert all(figure.ours > 0 and figure.reference > 0 for figure in figures)
