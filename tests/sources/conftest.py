"""Fixtures of what reads sources."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def agendina(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package of an adapter that is not ours, installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("package")))
    monkeypatch.delitem(sys.modules, "agendina", raising=False)
    import agendina as package  # type: ignore[import-not-found]

    found: ModuleType = package
    return found
