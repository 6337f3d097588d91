"""What a plot shows, without words: its foot, its series, and what they count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class Drawing:
    """One plot; the catalogues know its title (``picture.KEY``), its axis (``axis.UNIT``) and its series
    (``series.COLUMN``)."""

    key: str
    days: DataFrame
    """The days, or what else stands along the foot, are the index; one column for each series, NaN where a line has a
    gap."""
    unit: str
    stacked: bool
    """Bars one on the other, else lines."""
