"""How periods of validity in a source's list are looked at: which of one thing overlap each other."""

from __future__ import annotations

OVERLAPS = """(max(coalesce(s.valid_to, 'infinity')) OVER earlier > s.valid_from
                 OR min(s.valid_from) OVER later < coalesce(s.valid_to, 'infinity'))"""
OTHERS = """WINDOW earlier AS (PARTITION BY {0} ORDER BY s.valid_from
                                   RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP),
                       later AS (PARTITION BY {0} ORDER BY s.valid_from
                                 RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING EXCLUDE GROUP)"""
"""Whether a record's validity overlaps that of another start; records of the same start are a matter of duplicates."""
