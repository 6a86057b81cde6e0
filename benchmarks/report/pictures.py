"""What a report shows: the results' figures, grouped into pictures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from benchmarks.measure.cases import CELLS, PASSES, Case
from benchmarks.measure.results import Entry, Results
from benchmarks.model.limit_model import Constants
from benchmarks.peers.peer import GRAPH, SUBJECT, TORCH
from benchmarks.report import figures
from benchmarks.report.figures import FLOOR, OWN, PEER, Line, Style
from benchmarks.report.metrics import (
    MEBIBYTE,
    case_of,
    floor_microseconds,
    peer_names,
    step_microseconds,
    times_as_fast,
    worst_errors,
)
from benchmarks.sections.busy import NEIGHBOURS
from benchmarks.sections.divisions import SIDES
from benchmarks.sections.divisions import step_microseconds as division_microseconds
from benchmarks.sections.lengths import PACKED, PLAIN, RANDOM, TORCH_PACKED, TORCH_PLAIN, sweeps
from benchmarks.sections.streaming import PERCENTILES

# A peer that took part in fewer cases of a kind stands in the tables alone.
LEAST_CELLS = 2

CELL_NAMES = {"rnn": "RNN (tanh)", "gru": "GRU", "lstm": "LSTM"}
FLOOR_NAMES = {"cpu": "floor", "cuda": "limit"}
FLOOR_TEXTS = {
    "cpu": "The floor: its products alone, at the rate of a large GEMM of this machine.",
    "cuda": "The limit: a model of the recurrence, and its input product at the large GEMM's rate.",
}


@dataclass(frozen=True)
class Picture:
    """A picture, the name of its file, and what it shows in words."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, under a heading."""

    heading: str
    text: str
    pictures: Sequence[Picture]


def groups_of(results: Results, constants: Constants | None = None) -> list[Group]:
    """All pictures of a results file; a group that would be empty is left out."""
    groups = [
        *speed_ups(results),
        against_hidden_size(results, constants),
        against_other_sizes(results, constants),
        unequal_lengths(results),
        streaming(results),
        busy(results),
        memory(results),
        accuracy(results),
        divisions(results),
    ]
    return [group for group in groups if group.pictures]


def speed_ups(results: Results) -> Iterator[Group]:
    """Heat maps, by peer and pass: a map for each cell and dtype."""
    entries = [entry for entry in results.section("layers") if case_of(entry).is_square]
    for peer in peer_names(entries):
        for pass_name in PASSES:
            maps = dict(_ratio_maps(entries, peer, pass_name))
            if not maps:
                continue
            most = max(
                max(ratio, 1 / ratio) for ratios, _ in maps.values() for ratio in ratios.values()
            )
            pictures = [
                Picture(
                    f"speedup-{_slug(peer)}-{pass_name}-{dtype}-{cell}",
                    f"How many times as fast as {peer}: {cell}, {dtype}, {pass_name}",
                    figures.heat_map(ratios, notes, most, f"{CELL_NAMES[cell]}, {dtype}"),
                )
                for (dtype, cell), (ratios, notes) in maps.items()
            ]
            text = (
                f"Times as fast as {peer}. Blue: this package is faster; white: equal; red: "
                "slower. Hatched: not measured."
            )
            yield Group(f"{pass_name.capitalize()}, against {peer}", text, pictures)


RatioMap = tuple[dict[tuple[int, int], float], dict[tuple[int, int], str]]


def _ratio_maps(
    entries: Sequence[Entry], peer: str, pass_name: str
) -> Iterator[tuple[tuple[str, str], RatioMap]]:
    """By dtype and cell: the ratios by (H, B), and a note where T is not the usual one."""
    chosen = [
        (case_of(entry), ratio)
        for entry in entries
        if entry["case"]["pass_name"] == pass_name
        and (ratio := times_as_fast(entry, peer)) is not None
    ]
    usual = _usual_length(case for case, _ in chosen)
    for dtype, cell in _kinds(case for case, _ in chosen):
        ratios: dict[tuple[int, int], float] = {}
        notes: dict[tuple[int, int], str] = {}
        of_kind = [
            (case, ratio) for case, ratio in chosen if (case.dtype, case.cell) == (dtype, cell)
        ]
        for case, ratio in sorted(of_kind, key=lambda pair: pair[0].seq_len != usual):
            size = (case.hidden_size, case.batch_size)
            if size in ratios:
                continue
            ratios[size] = ratio
            if case.seq_len != usual:
                notes[size] = f"T={case.seq_len}"
        if len(ratios) >= LEAST_CELLS:
            yield (dtype, cell), (ratios, notes)


def against_hidden_size(results: Results, constants: Constants | None) -> Group:
    """Microseconds a step over H, a line for each B."""
    pictures = _charts(
        results,
        constants,
        "hidden",
        "hidden size",
        x=lambda case: case.hidden_size,
        line=lambda case: case.batch_size,
        fixed=lambda case: (case.seq_len,),
        label="B={}",
    )
    return Group("Microseconds a step against hidden size", _chart_text(results), pictures)


def against_other_sizes(results: Results, constants: Constants | None) -> Group:
    """Microseconds a step over B, a line for each H; and over T."""
    over_batch = _charts(
        results,
        constants,
        "batch",
        "batch size",
        x=lambda case: case.batch_size,
        line=lambda case: case.hidden_size,
        fixed=lambda case: (case.seq_len,),
        label="H={}",
    )
    over_length = _charts(
        results,
        constants,
        "length",
        "sequence length",
        x=lambda case: case.seq_len,
        line=lambda case: case.hidden_size,
        fixed=lambda case: (case.batch_size,),
        label="H={}",
    )
    text = _chart_text(results) + " A line that stays level over T: a call has no fixed cost left."
    return Group("Scaling with batch size and sequence length", text, [*over_batch, *over_length])


def _chart_text(results: Results) -> str:
    sides = "captured in a CUDA graph" if results.device == "cuda" else "called eagerly"
    floor = FLOOR_TEXTS[results.device]
    return f"The whole pass over its steps, both sides {sides}. Lower is faster. {floor}"


def _charts(
    results: Results,
    constants: Constants | None,
    kind: str,
    x_label: str,
    x: Callable[[Case], int],
    line: Callable[[Case], int],
    fixed: Callable[[Case], Any],
    label: str,
) -> list[Picture]:
    """A chart for each cell, dtype and pass in which some line has two points."""
    entries = [
        (case, entry) for entry in results.section("layers") if (case := case_of(entry)).is_square
    ]
    pictures = []
    for dtype, cell in _kinds(case for case, _ in entries):
        for pass_name in PASSES:
            chosen = [
                (case, entry)
                for case, entry in entries
                if (case.dtype, case.cell, case.pass_name) == (dtype, cell, pass_name)
            ]
            by_line: dict[tuple[Any, int], list[tuple[Case, Entry]]] = {}
            for case, entry in chosen:
                by_line.setdefault((fixed(case), line(case)), []).append((case, entry))
            by_line = {
                name: members
                for name, members in sorted(by_line.items())
                if len({x(case) for case, _ in members}) > 1
            }
            if not by_line:
                continue
            several = len({name[0] for name in by_line}) > 1
            lines, names = _lines(results, constants, by_line, x, label, several)
            if not lines:
                continue
            title = f"{CELL_NAMES[cell]}, {dtype}, {pass_name}"
            pictures.append(
                Picture(
                    f"{kind}-{pass_name}-{dtype}-{cell}",
                    f"Microseconds a step against {x_label}: {cell}, {dtype}, {pass_name}",
                    figures.line_chart(lines, x_label, "us a step", title, names),
                )
            )
    return pictures


def _lines(
    results: Results,
    constants: Constants | None,
    by_line: dict[tuple[Any, int], list[tuple[Case, Entry]]],
    x: Callable[[Case], int],
    label: str,
    several: bool,
) -> tuple[list[Line], dict[Style, str]]:
    """The lines of a chart, and the names of their styles."""
    way = GRAPH if results.device == "cuda" else ""
    sides: dict[Style, tuple[str, Callable[[Entry], float | None]]] = {
        OWN: (SUBJECT + way, lambda entry: step_microseconds(entry, SUBJECT + way)),
        PEER: (TORCH + way, lambda entry: step_microseconds(entry, TORCH + way)),
        FLOOR: (
            FLOOR_NAMES[results.device],
            lambda entry: floor_microseconds(entry, results, constants),
        ),
    }
    lines: list[Line] = []
    names: dict[Style, str] = {}
    for (fixed, size), members in by_line.items():
        for style, (name, value_of) in sides.items():
            points = [
                (float(x(case)), value)
                for case, entry in members
                if (value := value_of(entry)) is not None
            ]
            if points:
                text = label.format(size) + (f", {fixed[0]}" if several else "")
                lines.append(Line(text, style, points))
                names[style] = name
    return lines, names


# What is drawn over T, by how the sequences are handed over; the rest stands in the tables.
DRAWN_WAYS: tuple[tuple[str, Style, str], ...] = (
    ("padded", OWN, PLAIN),
    ("padded", PEER, TORCH_PLAIN),
    ("lengths=", OWN, RANDOM),
    ("packed", OWN, PACKED),
    ("packed", PEER, TORCH_PACKED),
)


def unequal_lengths(results: Results) -> Group:
    """Microseconds a step over T, a colour for each way to hand the sequences over."""
    pictures = []
    for sweep in sweeps(results.section("lengths")):
        lines = [
            Line(label, style, points)
            for label, style, way in DRAWN_WAYS
            if (
                points := [
                    (float(entry["case"]["seq_len"]), value)
                    for entry in sweep
                    if (value := step_microseconds(entry, way)) is not None
                ]
            )
        ]
        if len(sweep) < LEAST_CELLS or not lines:
            continue
        case = case_of(sweep[0])
        kind = f"{case.dtype}, {case.pass_name}, B={case.batch_size}, H={case.hidden_size}"
        sides: dict[Style, str] = {OWN: SUBJECT, PEER: TORCH}
        pictures.append(
            Picture(
                f"unequal-{case.pass_name}-{case.dtype}-{case.cell}"
                f"-B{case.batch_size}-H{case.hidden_size}",
                f"Microseconds a step against sequence length, padded and packed: "
                f"{case.cell}, {kind}",
                figures.line_chart(
                    lines, "sequence length", "us a step", f"{CELL_NAMES[case.cell]}, {kind}", sides
                ),
            )
        )
    text = (
        "The whole pass over T, the steps of the longest sequence; both sides called eagerly. "
        "Padded: all sequences are full. By lengths= and packed: their lengths are spread over "
        "1 to T, so that about half of the padded batch is padding. Lower is faster."
    )
    return Group("Sequences of unequal length", text, pictures)


def streaming(results: Results) -> Group:
    """A call's percentiles over H, a colour for each T: one sequence, one direction, one layer."""
    pictures = []
    chosen = [
        (case, entry)
        for entry in results.section("streaming")
        if (case := case_of(entry)).batch_size == 1
        and not case.bidirectional
        and case.num_layers == 1
    ]
    sides: dict[Style, str] = {OWN: SUBJECT, PEER: TORCH}
    for dtype, cell in _kinds(case for case, _ in chosen):
        of_kind = [(c, entry) for c, entry in chosen if (c.dtype, c.cell) == (dtype, cell)]
        for percentile in PERCENTILES:
            lines = [
                Line(f"T={steps}", style, points)
                for steps in sorted({case.seq_len for case, _ in of_kind})
                for style, name in sides.items()
                if (
                    points := [
                        (float(case.hidden_size), entry["calls"][name][percentile] * 1e6)
                        for case, entry in of_kind
                        if case.seq_len == steps and name in entry["calls"]
                    ]
                )
            ]
            if max((len(line.points) for line in lines), default=0) < LEAST_CELLS:
                continue
            pictures.append(
                Picture(
                    f"streaming-{percentile}-{dtype}-{cell}",
                    f"Microseconds of a call against hidden size, {percentile}: {cell}, {dtype}",
                    figures.line_chart(
                        lines,
                        "hidden size",
                        "us a call",
                        f"{CELL_NAMES[cell]}, {dtype}, {percentile}",
                        sides,
                    ),
                )
            )
    text = (
        "T steps a call with the states carried, one sequence in one direction through one layer. "
        "Half of the calls take at most p50, 99 in 100 at most p99. Lower is faster."
    )
    return Group("Streaming", text, pictures)


def busy(results: Results) -> Group:
    """A call alone, and beside each neighbour."""
    pictures = []
    for entry in results.section("busy"):
        case, samples = case_of(entry), entry["samples"]
        bars = {
            (neighbour.removeprefix(", ") or "alone"): {
                name: statistics.median(samples[name + neighbour]) * 1e3
                for name in (SUBJECT, TORCH)
                if name + neighbour in samples
            }
            for neighbour in ("", *NEIGHBOURS)
        }
        bars = {label: group for label, group in bars.items() if group}
        if bars:
            directions = "" if case.bidirectional else ", 1 direction"
            title = _case_label(case) + directions
            name = f"busy-{case.key.replace('/', '-')}"
            pictures.append(Picture(name, title, figures.bar_chart(bars, "ms a call", title)))
    text = "A call alone, beside a process that spins, and beside a second one that does the same."
    return Group("On a busy machine", text, pictures)


def memory(results: Results) -> Group:
    """Peak memory of a training step, and what its forward keeps."""
    peaks: dict[str, dict[str, float]] = {}
    kept: dict[str, dict[str, float]] = {}
    for entry in results.section("memory"):
        label = _case_label(case_of(entry))
        peaks[label] = {
            name: statistics.median(taken) / MEBIBYTE for name, taken in entry["samples"].items()
        }
        kept[label] = {name: size / MEBIBYTE for name, size in entry.get("kept", {}).items()}
    pictures = []
    for name, title, bars in (
        ("memory-peak", "Peak of a training step", peaks),
        ("memory-kept", "Kept from forward to backward", kept),
    ):
        shown = {label: group for label, group in bars.items() if group}
        if shown:
            pictures.append(Picture(name, title, figures.bar_chart(shown, "MiB", title)))
    return Group("Peak memory", "What a training step adds to what was there before.", pictures)


def accuracy(results: Results) -> Group:
    """The worst tensor's error, by cell and dtype."""
    pictures = []
    entries = results.section("accuracy")
    for cell in CELLS:
        rows = {
            f"{case.dtype}\nH={case.hidden_size}": {
                name: error for name, (_, error) in worst_errors(entry).items()
            }
            for entry in entries
            if (case := case_of(entry)).cell == cell and entry["errors"]
        }
        if rows:
            pictures.append(
                Picture(
                    f"accuracy-{cell}",
                    f"Largest relative error against fp64: {cell}",
                    figures.dot_chart(rows, "relative error", CELL_NAMES[cell]),
                )
            )
    text = (
        "Error of the worst tensor (output, states or a gradient) against the same problem in "
        "fp64, the largest over a few draws. Further left is more exact."
    )
    return Group("Accuracy", text, pictures)


def divisions(results: Results) -> Group:
    """The plan's estimates against the times, a colour for each kernel."""
    pictures = []
    for side in SIDES:
        points: dict[str, list[tuple[float, float]]] = {}
        for entry in results.section("divisions"):
            if entry["side"] != side:
                continue
            for name, time in division_microseconds(entry).items():
                division = entry["divisions"][name]
                point = (division["microseconds_per_step"], time)
                points.setdefault(division["kernel"], []).append(point)
        if points:
            title = f"{side.capitalize()}, us a step"
            alt = f"Estimates of the plan against times, {side}"
            figure = figures.scatter(points, "estimate", "measured", title)
            pictures.append(Picture(f"divisions-{side}", alt, figure))
    text = (
        "Each point is a way to divide the recurrence of a shape among blocks. On the line the "
        "plan's estimate is right; above it, the kernel is slower than the plan believes. What "
        "decides is the order among the points of a shape."
    )
    return Group("What the plan chooses from", text, pictures)


def _case_label(case: Case) -> str:
    return (
        f"{CELL_NAMES[case.cell]}, T={case.seq_len}, B={case.batch_size}, "
        f"H={case.hidden_size}, {case.dtype}"
    )


def _usual_length(cases: Any) -> int:
    lengths = Counter(case.seq_len for case in cases)
    return lengths.most_common(1)[0][0] if lengths else 0


def _kinds(cases: Any) -> list[tuple[str, str]]:
    """The dtypes and cells that occur, dtypes in order of appearance."""
    found = {(case.dtype, case.cell) for case in cases}
    return sorted(found, key=lambda kind: (kind[0], CELLS.index(kind[1])))


def _slug(name: str) -> str:
    return name.replace(".", "-").replace(" ", "-").replace(",", "")
