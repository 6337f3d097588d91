"""How often somebody may ask: so many requests at once, and so many a second from then on."""

from __future__ import annotations

import time
from collections import OrderedDict


class Buckets:
    """How many requests each address has left; the addresses seen longest ago are forgotten."""

    _MOST = 10_000

    def __init__(self, per_second: float, at_once: float) -> None:
        self._per_second, self._at_once = per_second, at_once
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> bool:
        """Take one; False where none is left."""
        now = time.monotonic()
        left, at = self._left.pop(address, (self._at_once, now))
        left = min(self._at_once, left + (now - at) * self._per_second)
        self._left[address] = (max(0.0, left - 1), now)
        if len(self._left) > self._MOST:
            self._left.popitem(last=False)
        return left >= 1
