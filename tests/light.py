"""What a run must do without: heavy libraries that would cost more than its work."""

from __future__ import annotations

import sys

import pytest


def without(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Until the end of the test, whoever imports one of ``libraries`` fails, loaded already or not."""
    loaded = {name for name in sys.modules if name.partition(".")[0] in libraries}
    for name in {*libraries, *loaded}:
        monkeypatch.setitem(sys.modules, name, None)
