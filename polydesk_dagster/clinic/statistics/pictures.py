"""Small plots of daily series, as PNG; drawn off screen and kept to a few kilobytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

COLOURS = ("#1f6f8b", "#99c24d", "#f2a541", "#d1495b", "#7a6c9d", "#8d99ae", "#3d3d3d")
_SIZE = (7.2, 2.6)
_DPI = 80


def stacked(title: str, first: date, series: Mapping[str, Sequence[float]], unit: str) -> bytes:
    """Bars of each day from ``first``, one layer per series; layers without any value are left out."""
    figure, axes = _canvas(title, unit)
    drawn = {label: values for label, values in series.items() if any(values)}
    length = max((len(values) for values in drawn.values()), default=0)
    days = [first + timedelta(days=n) for n in range(length)]
    bottom = [0.0] * length
    for n, (label, values) in enumerate(drawn.items()):
        axes.bar(days, values, bottom=bottom, width=1.0, color=COLOURS[n % len(COLOURS)], label=label)
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    return _png(figure, axes, bool(drawn))


def lines(title: str, first: date, series: Mapping[str, Sequence[float | None]], unit: str) -> bytes:
    """One line per series from ``first``; None leaves a gap."""
    figure, axes = _canvas(title, unit)
    drawn = {label: values for label, values in series.items() if any(value is not None for value in values)}
    for n, (label, values) in enumerate(drawn.items()):
        days = [first + timedelta(days=at) for at in range(len(values))]
        numbers = [float("nan") if value is None else value for value in values]
        axes.plot(days, numbers, color=COLOURS[n % len(COLOURS)], label=label, linewidth=1.5, marker=".", markersize=3)
    if drawn:
        axes.set_ylim(bottom=0)
    return _png(figure, axes, bool(drawn))


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _canvas(title: str, unit: str):  # type: ignore[no-untyped-def]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.09, right=0.99, top=0.89, bottom=0.12)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylabel(unit, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure, axes, drawn: bool) -> bytes:  # type: ignore[no-untyped-def]
    from matplotlib.dates import AutoDateLocator, DateFormatter
    from PIL import Image

    if drawn:
        axes.xaxis.set_major_locator(AutoDateLocator(maxticks=9))  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(DateFormatter("%d/%m"))  # type: ignore[no-untyped-call]
        axes.legend(fontsize=7, frameon=False, ncols=4, loc="upper left")
        axes.margins(y=0.25)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nessun dato nel periodo", ha="center", va="center", fontsize=9, color="#666666")
    full = io.BytesIO()
    figure.savefig(full, format="png")
    small = io.BytesIO()
    Image.open(full).convert("RGB").quantize(32).save(small, format="png", optimize=True)
    return small.getvalue()
