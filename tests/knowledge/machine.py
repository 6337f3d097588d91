"""Sentences that speak to a machine, and such as clinics write: a set to work on, and another by other hands."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data" / "qa"


def development(kind: str) -> list[str]:
    """``orders`` or ``harmless``: what the screening is written and fitted on."""
    return _of("addressed_to_a_machine_development.tsv", kind)


def held_out(kind: str) -> list[str]:
    """``orders`` or ``harmless`` by somebody who did not tune the screening on them; no one who tunes it reads them."""
    return _of("addressed_to_a_machine.tsv", kind)


def _of(name: str, kind: str) -> list[str]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()[1:]
    return [text for each, text in (line.split("\t", 1) for line in lines) if each == kind]
