"""Where the door takes what the SMS gateway tells; whoever only says it loads nothing that answers."""

from __future__ import annotations

SMS = "/sms/"
"""Below which nobody but the gateway posts: the signature is the permission."""
REPLIES, RECEIPTS = f"{SMS}risposte", f"{SMS}esiti"
