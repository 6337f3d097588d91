"""Small plots of daily series, as PNG; drawn off screen and kept to a few kilobytes."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

COLOURS = ("#1f6f8b", "#99c24d", "#f2a541", "#d1495b", "#7a6c9d", "#8d99ae", "#3d3d3d")
_SIZE = (7.2, 2.6)
_DPI = 80


def stacked(title: str, days: DataFrame, unit: str) -> bytes:
    """Bars of each day, one layer per column of ``days`` (its index is the days); columns of zeros are left out."""
    figure, axes = _canvas(title, unit)
    drawn = days.loc[:, (days != 0).any()]
    below = drawn.cumsum(axis=1).shift(axis=1, fill_value=0.0)
    for n, label in enumerate(drawn):
        axes.bar(
            drawn.index, drawn[label], bottom=below[label], width=0.85, color=COLOURS[n % len(COLOURS)], label=label
        )
    return _png(figure, axes, drawn.size > 0)


def lines(title: str, days: DataFrame, unit: str) -> bytes:
    """One line per column of ``days`` (its index is the days); NaN leaves a gap."""
    figure, axes = _canvas(title, unit)
    drawn = days.dropna(axis=1, how="all")
    for n, label in enumerate(drawn):
        axes.plot(
            drawn.index,
            drawn[label],
            color=COLOURS[n % len(COLOURS)],
            label=label,
            linewidth=1.5,
            marker=".",
            markersize=3,
        )
    if drawn.size:
        axes.set_ylim(bottom=0)
    return _png(figure, axes, drawn.size > 0)


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _canvas(title: str, unit: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.09, right=0.99, top=0.89, bottom=0.2)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylabel(unit, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any, axes: Any, drawn: bool) -> bytes:
    from matplotlib.dates import AutoDateLocator, DateFormatter
    from PIL import Image

    if drawn:
        axes.xaxis.set_major_locator(AutoDateLocator(maxticks=9))  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(DateFormatter("%d/%m"))  # type: ignore[no-untyped-call]
        # Below the plot: inside it the legend hid the bars of the first days.
        axes.legend(fontsize=6.5, frameon=False, ncols=7, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nessun dato nel periodo", ha="center", va="center", fontsize=9, color="#666666")
    full = io.BytesIO()
    figure.savefig(full, format="png")
    small = io.BytesIO()
    Image.open(full).convert("RGB").quantize(32).save(small, format="png", optimize=True)
    return small.getvalue()
