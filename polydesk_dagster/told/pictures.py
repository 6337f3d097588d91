"""Small plots of daily series, as PNG; drawn off screen and kept to a few kilobytes."""

from __future__ import annotations

import base64
import io
from typing import Any

from polydesk_dagster.clinic.statistics.drawing import Drawing
from polydesk_dagster.told.speaking import Teller

SHOWN_AT = "/grafici"
"""Where the door draws what a run shows."""
COLOURS = ("#1f6f8b", "#99c24d", "#f2a541", "#d1495b", "#7a6c9d", "#8d99ae", "#3d3d3d")
_SIZE = (7.2, 2.6)
_DPI = 80


def address(run: str, key: str) -> str:
    """Of the picture ``key`` of a Dagster run, at the door."""
    return f"{SHOWN_AT}/{run}/{key}"


def png(drawing: Drawing, t: Teller, note: str = "") -> bytes:
    """``drawing`` with its title, axis and series in the words of ``t``, and a ``note`` of what it is a picture of."""
    figure, axes = _canvas(t.text(f"picture.{drawing.key}"), t.text(f"axis.{drawing.unit}"))
    if note:  # below the title: Dagster's table of metadata cuts off what stands at the right
        figure.subplots_adjust(top=0.84)
        axes.set_title(axes.get_title("left"), fontsize=9, loc="left", pad=15)
        axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=7, color="#666666")
    days = drawing.days
    days = days.loc[:, (days != 0).any()] if drawing.stacked else days.dropna(axis=1, how="all")
    below = days.cumsum(axis=1).shift(axis=1, fill_value=0.0)
    for n, series in enumerate(days):
        style = {"color": COLOURS[n % len(COLOURS)], "label": t.text(f"series.{series}")}
        if drawing.stacked:
            axes.bar(days.index, days[series], bottom=below[series], width=0.85, **style)
        else:
            axes.plot(days.index, days[series], linewidth=1.5, marker=".", markersize=3, **style)
    if days.size and not drawing.stacked:
        axes.set_ylim(bottom=0)
    empty = None if days.size else t.text("picture.empty")
    return _finished(figure, axes, empty, dated=days.index.dtype.kind == "M")


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


def _finished(figure: Any, axes: Any, empty: str | None, *, dated: bool) -> bytes:
    from matplotlib.dates import AutoDateLocator, DateFormatter
    from PIL import Image

    if empty is None:
        if dated:
            axes.xaxis.set_major_locator(AutoDateLocator(maxticks=9))
            axes.xaxis.set_major_formatter(DateFormatter("%d/%m"))
        # Below the plot: inside it the legend hid the bars of the first days.
        axes.legend(fontsize=6.5, frameon=False, ncols=7, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, empty, ha="center", va="center", fontsize=9, color="#666666")
    full = io.BytesIO()
    figure.savefig(full, format="png")
    small = io.BytesIO()
    Image.open(full).convert("RGB").quantize(32).save(small, format="png", optimize=True)
    return small.getvalue()
