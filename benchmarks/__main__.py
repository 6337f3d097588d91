"""``python -m benchmarks [NAME …] [--json] [--scale F]``: run benchmarks, each in its own process; print a table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.harness import measure


def names() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in {"__main__", "harness", "wire"}]


def main() -> int:
    """Exit status 0 when every benchmark ran, whatever its figures; 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; default all")
    parser.add_argument("--json", action="store_true", help="one object per figure and line")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink the sizes (targets speak of 1.0)")
    given = parser.parse_args()
    unknown = set(given.names) - set(names())
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    table = Table("benchmark", "figure", "ours", "reference", "unit", "ratio", "target", "met", "peak MB")
    context = multiprocessing.get_context("spawn")
    for name in given.names or names():
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            figures = pool.submit(measure, name, given.scale).result()
        for row in figures:
            if given.json:
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
            bound = ("≥ " if row["at_least"] else "≤ ") + f"{row['target']:g}"
            met = "yes" if row["met"] else "NO"
            table.add_row(
                name,
                str(row["figure"]),
                f"{row['ours']:.4g}",
                f"{row['reference']:.4g}",
                str(row["unit"]),
                f"{row['ratio']:.3g}",
                bound,
                met,
                f"{row['peak_mb']:.0f}",
            )
    if not given.json:
        Console(width=150).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
