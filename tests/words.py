"""Any text, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

ANY = st.characters(exclude_categories=["Cs"])
"""What UTF-8 can write. Named by what it is: where a codec names it, as in ``st.text()``, every process of a new clone
tries each character first, a second of processor time."""
