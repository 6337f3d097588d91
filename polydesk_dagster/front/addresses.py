"""Where programs outside find what they ask; whoever only says it loads nothing that answers."""

from __future__ import annotations

FRONT = "/api"
"""At the door."""
BOOKING = "/booking"
"""At the front."""
ASSISTANT = "/assistant"
"""At the front."""
