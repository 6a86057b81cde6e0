"""The pictures of a report, by matplotlib: how each looks, not what it shows.

A picture is as wide as a telephone's screen and is never shrunk, so that its labels stay legible.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

WIDTH_PIXELS = 360  # in the page
DPI = 100  # pixels of the page in an inch; the files hold twice as many
SHARPNESS = 2
FONT_POINTS = 8.5
INK = "#1d2733"
FAINT = "#8a94a0"
MISSING = "#d3d9df"

# Okabe and Ito's, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dv"
DIVERGING = "RdBu"  # red: slower than the peer; white: equal; blue: faster
LEAST_RANGE = 2.0  # the colours span at least half to twice as fast

# What a line stands for is its style; which size it is for, its colour.
Style = Literal["-", "--", ":"]
OWN: Style = "-"
PEER: Style = "--"
FLOOR: Style = ":"


@dataclass(frozen=True)
class Line:
    """Points of a size, for one side: ours, the peer's, or the floor."""

    label: str  # of the colour
    style: Style
    points: Sequence[tuple[float, float]]


def png(figure: Figure) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI * SHARPNESS, facecolor="white")
    return buffer.getvalue()


def heat_map(
    ratios: Mapping[tuple[int, int], float],
    notes: Mapping[tuple[int, int], str],
    most: float,
    title: str,
) -> Figure:
    """Ratios by (hidden size, batch size); the colours are centred at 1 and end at `most`."""
    hidden_sizes = sorted({hidden for hidden, _ in ratios})
    batch_sizes = sorted({batch for _, batch in ratios})
    figure, axes = _figure(1.05 + 0.46 * len(hidden_sizes))
    colours, reach = colormaps[DIVERGING], math.log2(max(most, LEAST_RANGE))
    for row, hidden in enumerate(hidden_sizes):
        for column, batch in enumerate(batch_sizes):
            corner, size = (column - 0.48, row - 0.47), (0.96, 0.94)
            ratio = ratios.get((hidden, batch))
            if ratio is None:
                axes.add_patch(
                    Rectangle(corner, *size, fc="white", ec=MISSING, hatch="////", linewidth=0)
                )
                continue
            position = 0.5 + math.log2(ratio) / reach / 2
            colour = colours(min(max(position, 0.0), 1.0))
            axes.add_patch(Rectangle(corner, *size, color=colour, linewidth=0))
            note = notes.get((hidden, batch))
            axes.text(
                column,
                row,
                _ratio_text(ratio) + (f"\n{note}" if note else ""),
                ha="center",
                va="center",
                color=_legible_on(colour),
                fontsize=FONT_POINTS + 0.5,
                linespacing=1.0,
            )
    axes.set_xlim(-0.5, len(batch_sizes) - 0.5)
    axes.set_ylim(len(hidden_sizes) - 0.5, -0.5)
    axes.set_xticks(range(len(batch_sizes)), [str(batch) for batch in batch_sizes])
    axes.set_yticks(range(len(hidden_sizes)), [str(hidden) for hidden in hidden_sizes])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("batch size")
    axes.set_ylabel("hidden size")
    _title(axes, title)
    return figure


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, title: str, names: Mapping[Style, str]
) -> Figure:
    """Both axes logarithmic. `names` says what the styles stand for; those in use are shown."""
    in_use = {line.style for line in lines}
    names = {style: name for style, name in names.items() if style in in_use}
    labels = list(dict.fromkeys(line.label for line in lines))
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(labels)}
    legend_rows = -(-len(labels) // 4) + 1
    figure, axes = _figure(2.5 + 0.19 * legend_rows)
    for line in lines:
        points = sorted(line.points)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            line.style,
            color=colours[line.label],
            linewidth=1.6,
            marker=None if line.style == FLOOR and len(points) > 1 else "o",
            markersize=3.5,
            markerfacecolor="white" if line.style == PEER else None,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for line in lines for x, _ in line.points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(axes.yaxis, [y for line in lines for _, y in line.points])
    axes.grid(True, color="#dde2e7", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _title(axes, title)
    sizes = [Line2D([], [], color=colours[label], linewidth=3, label=label) for label in labels]
    sides = [
        Line2D([], [], linewidth=1.6, color=INK, linestyle=style, label=name)
        for style, name in names.items()
    ]
    _legend(figure, sizes, 4)
    _legend(figure, sides, 3, "upper")
    return figure


def bar_chart(
    groups: Mapping[str, Mapping[str, float]], x_label: str, title: str, form: str = "{:.0f}"
) -> Figure:
    """Horizontal bars by group, and by name within each."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    rows = sum(len(group) for group in groups.values())
    figure, axes = _figure(0.8 + 0.21 * rows + 0.24 * len(groups) + 0.19 * -(-len(names) // 2))
    most = max(value for group in groups.values() for value in group.values())
    position = 0.0
    for label, group in groups.items():
        axes.text(0, position, label, ha="left", va="center", color=INK, fontsize=FONT_POINTS)
        position += 0.9
        for name, value in group.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            axes.barh(position, value, height=0.75, color=colour)
            text = form.format(value)
            x = value + most * 0.015
            axes.text(x, position, text, va="center", color=INK, fontsize=FONT_POINTS)
            position += 0.85
        position += 0.25
    axes.set_ylim(position - 0.3, -0.6)
    axes.set_xlim(0, most * 1.18)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(x_label)
    _title(axes, title)
    patches = [
        Line2D([], [], color=COLOURS[index % len(COLOURS)], linewidth=5, label=name)
        for index, name in enumerate(names)
    ]
    _legend(figure, patches, 2)
    return figure


def dot_chart(groups: Mapping[str, Mapping[str, float]], x_label: str, title: str) -> Figure:
    """A row for each group, a dot for each name, on a logarithmic axis."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, axes = _figure(1.0 + 0.24 * len(groups) + 0.19 * -(-len(names) // 2))
    for row, group in enumerate(groups.values()):
        for name, value in group.items():
            mark = _mark(names.index(name))
            axes.plot(max(value, 1e-18), row, **mark, markersize=6, alpha=0.85)
    axes.set_xscale("log")
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", color="#dde2e7", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(x_label)
    _title(axes, title)
    _legend(figure, [Line2D([], [], **_mark(i), label=name) for i, name in enumerate(names)], 2)
    return figure


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, title: str
) -> Figure:
    """Two figures of the same kind against each other, both axes logarithmic and alike; on the
    line they are equal."""
    figure, axes = _figure(3.7 + 0.19 * -(-len(groups) // 4))
    values = [value for points in groups.values() for point in points for value in point]
    low, high = min(values) / 1.2, max(values) * 1.2
    axes.plot([low, high], [low, high], color=FAINT, linewidth=0.8)
    for index, points in enumerate(groups.values()):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            **_mark(index),
            markersize=3.5,
            alpha=0.6,
            markeredgewidth=0,
        )
    for scale, limits in ((axes.set_xscale, axes.set_xlim), (axes.set_yscale, axes.set_ylim)):
        scale("log")
        limits(low, high)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis, values)
    axes.grid(True, color="#dde2e7", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _title(axes, title)
    _legend(figure, [Line2D([], [], **_mark(i), label=name) for i, name in enumerate(groups)], 4)
    return figure


def _mark(index: int) -> dict[str, Any]:
    """The point, without a line, that stands for the index-th name."""
    colour = COLOURS[index % len(COLOURS)]
    return {"color": colour, "marker": MARKERS[index % len(MARKERS)], "linestyle": ""}


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_PIXELS / DPI, height), layout="constrained")
    axes = figure.add_subplot()
    for item in (axes.xaxis, axes.yaxis):
        item.set_tick_params(labelsize=FONT_POINTS, labelcolor=INK, color=FAINT)
        item.label.set_fontsize(FONT_POINTS)
        item.label.set_color(INK)
    axes.spines[:].set_color(FAINT)
    return figure, axes


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=FONT_POINTS + 1, color=INK, fontweight="bold")


def _legend(
    figure: Figure,
    handles: Sequence[Line2D],
    columns: int,
    where: Literal["lower", "upper"] = "lower",
) -> None:
    figure.legend(
        handles=handles,
        loc="outside lower left" if where == "lower" else "outside upper left",
        ncols=columns,
        fontsize=FONT_POINTS - 0.5,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.2,
        borderpad=0.1,
        labelspacing=0.25,
    )


def _legible_on(colour: tuple[float, ...]) -> str:
    """White on dark colours, ink on light ones (by their luminance, ITU-R BT.709)."""
    red, green, blue = (channel**2.2 for channel in colour[:3])
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.3 else INK


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"


def _plain_ticks(axis: Axis, values: Sequence[float]) -> None:
    """1, 2, 5, 10 ... rather than powers of ten, as many as the values span."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_ticks([tick for tick in ticks if low / 1.3 <= tick <= high * 1.3])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
