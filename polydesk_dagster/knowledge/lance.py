"""LanceDB as this house uses it: tables on a disk or in a bucket, and no server of catalogues."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

_CATALOGUES = "lance_namespace_urllib3_client"
"""Comes with LanceDB, which reads its models only. Imported whole it makes a client of a server of catalogues, which
nobody here has: a third of what LanceDB costs to import."""


def lancedb() -> Any:
    """The library, imported when it is first needed."""
    if _CATALOGUES not in sys.modules and (found := find_spec(_CATALOGUES)) is not None:
        sys.modules[_CATALOGUES] = module_from_spec(found)
    import lancedb

    return lancedb
