"""What every part of the demo is drafted with: the sheets to fill, the calendar, and one source of chance."""

from __future__ import annotations

import random
from dataclasses import dataclass

from polydesk_dagster.demo.sheets import Sheets
from polydesk_dagster.demo.time_line import TimeLine


@dataclass(frozen=True, slots=True)
class Draft:
    sheets: Sheets
    line: TimeLine
    rng: random.Random
