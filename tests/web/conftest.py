"""A door over a database of the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.web.world import Served, served


@pytest.fixture
def door(engine: sa.Engine, tmp_path: Path) -> Iterator[Served]:
    with served(engine, tmp_path / "home") as listening:
        yield listening
