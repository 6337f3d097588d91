"""Which columns of records mean something to people, and what they hold; what they are called is ``told``'s."""

from __future__ import annotations

AMOUNTS = frozenset({"amount", "patient_share", "previous_amount", "previous_share"})
"""Sums of money, in the row's currency."""

MEANINGLESS = frozenset({"agreement_id", "clinic_id", "service_id", "specialist_id", "target"})
"""Numbers of ours, which mean nothing to people: the row's own name says whose it is."""

STATES = frozenset({"state", "status"})
"""What a record is in, one of a closed list: told as ``term.record_state``."""
