"""The picture at the head of the READMEs: times as fast as torch.nn, by shape and processor.

An SVG for light pages and one for dark ones, whose text stays text. What was drawn also stands in
its description, in words: a test compares that with the results.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.measure.cases import PASSES
from benchmarks.measure.results import Results
from benchmarks.peers.peer import SUBJECT, TORCH
from benchmarks.report.figures import MARKERS
from benchmarks.report.metrics import case_of, times_as_fast

CELL_NAMES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
FONT_POINTS = 9
TICKS = (0.5, 1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Theme:
    """Colours that read on the page behind; those of the cells are told apart by colour-blind
    readers too (Okabe and Ito, lighter on dark)."""

    name: str
    ink: str
    faint: str
    grid: str
    cells: tuple[str, str, str]


THEMES = (
    Theme("light", "#1d2733", "#8a94a0", "#dde2e7", ("#0072b2", "#d55e00", "#009e73")),
    Theme("dark", "#e6edf3", "#8b949e", "#30363d", ("#56b4e9", "#ff8c42", "#2dd4a7")),
)


@dataclass(frozen=True)
class Point:
    """How many times as fast as torch.nn a layer is on a processor."""

    pass_name: str
    shape: tuple[int, int]  # B, H
    cell: str
    processor: str
    ratio: float

    def __str__(self) -> str:
        batch, hidden = self.shape
        return f"{self.pass_name} {self.cell} B={batch} H={hidden}: {self.ratio:.2f}"


def processor_of(results: Results) -> str:
    """The processor, by the name that it has itself and what it can do."""
    machine = results.data["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}"


def points(shown: Sequence[Results]) -> Iterator[Point]:
    """The square layers in fp32; of several T of a B and H the last measured."""
    for results in shown:
        found: dict[tuple[str, tuple[int, int], str], float] = {}
        for entry in results.section("layers"):
            case, ratio = case_of(entry), times_as_fast(entry, TORCH)
            if case.dtype == "fp32" and case.is_square and ratio and SUBJECT in entry["samples"]:
                found[case.pass_name, (case.batch_size, case.hidden_size), case.cell] = ratio
        for (pass_name, shape, cell), ratio in found.items():
            yield Point(pass_name, shape, cell, processor_of(results), ratio)


def description(shown: Sequence[Results]) -> str:
    """What the picture shows, in words."""
    processors: dict[str, list[str]] = {}
    for point in points(shown):
        processors.setdefault(point.processor, []).append(str(point))
    return "Times as fast as torch.nn. " + " ".join(
        f"{processor}: {'; '.join(lines)}." for processor, lines in processors.items()
    )


def svg(shown: Sequence[Results], theme: Theme) -> str:
    """The picture as a file; the same for the same results and version of matplotlib."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "birnn_cuda"}):
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None}
        _draw(list(points(shown)), theme).savefig(
            buffer, format="svg", transparent=True, metadata=metadata
        )
    # For those who do not see it, and for the test.
    words = f"<title>Speed</title>\n <desc>{html.escape(description(shown))}</desc>\n "
    text = buffer.getvalue().replace("<metadata>", f"{words}<metadata>", 1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _draw(drawn: Sequence[Point], theme: Theme) -> Figure:
    shapes = sorted({point.shape for point in drawn})
    processors = list(dict.fromkeys(point.processor for point in drawn))
    cells = [cell for cell in CELL_NAMES if any(point.cell == cell for point in drawn)]
    figure = Figure(figsize=(8, 1.3 + 0.3 * len(shapes)), layout="constrained")
    panels = figure.subplots(1, len(PASSES), sharex=True, sharey=True)
    for axes, pass_name in zip(panels, PASSES, strict=True):
        axes.axvline(1, color=theme.ink, linewidth=1)
        for point in drawn:
            if point.pass_name != pass_name:
                continue
            # The points of a row a little apart, so that none hides another.
            offset = 0.22 * (cells.index(point.cell) - (len(cells) - 1) / 2)
            axes.plot(
                point.ratio,
                shapes.index(point.shape) + offset,
                MARKERS[processors.index(point.processor) % len(MARKERS)],
                color=theme.cells[cells.index(point.cell)],
                markersize=5,
            )
        axes.set_xscale("log")
        axes.set_xticks([tick for tick in TICKS if _is_near(tick, drawn)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(shapes)), [f"B={batch}  H={hidden}" for batch, hidden in shapes])
        axes.set_ylim(len(shapes) - 0.5, -0.5)
        axes.grid(True, axis="x", color=theme.grid, linewidth=0.7)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=FONT_POINTS, colors=theme.ink, which="both")
        axes.set_title(
            f"{pass_name}: times as fast as torch.nn",
            loc="left",
            fontsize=FONT_POINTS + 1,
            color=theme.ink,
        )
    marks = [
        Line2D([], [], color=theme.cells[index], marker="o", linestyle="", label=CELL_NAMES[cell])
        for index, cell in enumerate(cells)
    ]
    marks += [
        Line2D(
            [],
            [],
            color=theme.faint,
            marker=MARKERS[index % len(MARKERS)],
            linestyle="",
            label=processor,
        )
        for index, processor in enumerate(processors)
    ]
    figure.legend(
        handles=marks,
        loc="outside lower left",
        ncols=len(marks),
        fontsize=FONT_POINTS,
        frameon=False,
        labelcolor=theme.ink,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    return figure


def _is_near(tick: float, drawn: Sequence[Point]) -> bool:
    ratios = [point.ratio for point in drawn]
    return min(ratios) / 1.3 <= tick <= max(ratios) * 1.3
