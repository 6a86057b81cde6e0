"""The results as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measure.cases import PASSES
from benchmarks.measure.results import Entry, Results
from benchmarks.measure.terminal import Table, Terminal
from benchmarks.measure.timing import median_ratio, spread
from benchmarks.peers.peer import CELL, GRAPH, SUBJECT
from benchmarks.peers.torchrl import NAME as TORCHRL
from benchmarks.report.metrics import (
    MEBIBYTE,
    best_own,
    describe,
    floor_microseconds,
    geometric_means,
    own_names,
    peer_names,
    ratio_in_rounds,
    share_of_floor,
    step_microseconds,
    times_as_fast,
    worst_errors,
)
from benchmarks.sections.busy import NEIGHBOURS
from benchmarks.sections.concurrency import ONE, TWO
from benchmarks.sections.divisions import step_microseconds as division_microseconds
from benchmarks.sections.lengths import PACKED, PLAIN, TORCH_PACKED, VARIANTS, filled, sweeps
from benchmarks.sections.resets import OURS, SHARES, named
from benchmarks.sections.streaming import PERCENTILES

NONE = "-"
CASE_WORDS = ("cell", "dtype", "pass")
CASE_COLUMNS = ("cell", "T", "B", "H", "dtype", "pass")


def show(results: Results, terminal: Terminal) -> None:
    """Print every section that the results hold, and what failed."""
    for line in describe(results):
        terminal.line(line)
    for table in tables(results):
        terminal.table(table)
    for line in geometric_means(results):
        terminal.line(line)
    for line in failures(results):
        terminal.line(line, "red")


def tables(results: Results) -> list[Table]:
    """A table for each section that the results hold."""
    sections = (
        ("layers", _cuda_layers if results.device == "cuda" else _cpu_layers),
        ("dtypes", dtypes),
        ("concurrency", _concurrency),
        ("lengths", lengths),
        ("resets", resets),
        ("memory", _memory),
        ("accuracy", _accuracy),
        ("streaming", streaming),
        ("busy", busy),
        ("import", _import_time),
        ("divisions", _divisions),
    )
    return [
        make_table(entries, results)
        for name, make_table in sections
        if (entries := results.section(name))
    ]


def _divisions(entries: Sequence[Entry], results: Results) -> Table:
    columns = ["plan takes", "us a step", "estimate", "fastest", "us a step", "plan / fastest"]
    table = Table(
        "Divisions: the recurrence alone, by kernel blocks/batch_tiles/k_split/groups_at_once",
        [*CASE_COLUMNS, *columns],
        [*CASE_WORDS, "plan takes", "fastest"],
    )
    for entry in entries:
        times, chosen = division_microseconds(entry), entry["chosen"]
        case = case_cells(entry["case"])[:-1]
        fastest = min(times, key=lambda name: times[name]) if times else NONE
        least, own = times.get(fastest), times.get(chosen)
        table.add(
            *case,
            entry["side"],
            chosen,
            _number(own, ".3f"),
            f"{entry['divisions'][chosen]['microseconds_per_step']:.3f}",
            fastest,
            _number(least, ".3f"),
            _number(own / least if own and least else None, ".2f"),
        )
    return table


def failures(results: Results) -> list[str]:
    """Who computed something wrong, or raised."""
    return [
        f"failed, not timed: {name} in {entry['key']}: {reason}"
        for entry in results.entries
        for name, reason in entry["failed"].items()
    ]


def _case_table(title: str, columns: Iterable[str]) -> Table:
    return Table(title, [*CASE_COLUMNS, *columns], CASE_WORDS)


def case_cells(case: Mapping[str, Any]) -> list[str]:
    """The case in the columns CASE_COLUMNS."""
    cell = case["cell"] + ("" if case.get("bidirectional", True) else ", 1 direction")
    if case.get("num_layers", 1) > 1:
        cell += f", {case['num_layers']} layers"
    shape = (str(case["seq_len"]), str(case["batch_size"]), describe_units(case))
    return [cell, *shape, case["dtype"], case["pass_name"]]


def describe_units(case: Mapping[str, Any]) -> str:
    """H, and the features of the input where they are not as many."""
    features, units = case["input_size"], case["hidden_size"]
    return str(units) if features == units else f"{units} of {features}"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _ends_section(entry: Entry) -> bool:
    return bool(entry["case"]["pass_name"] == PASSES[-1])


def _cpu_layers(entries: Sequence[Entry], results: Results) -> Table:
    peers = peer_names(entries)
    columns = ["us a step", "+-", *(f"x {name}" for name in peers), "GFLOP/s", "of floor"]
    table = _case_table("Layers: x peer is how much faster than the peer", columns)
    for entry in entries:
        if SUBJECT not in entry["samples"]:
            table.add(*case_cells(entry["case"]), "failed", *[NONE] * (len(columns) - 1))
            continue
        own = entry["samples"][SUBJECT]
        table.add(
            *case_cells(entry["case"]),
            _number(step_microseconds(entry, SUBJECT), ".2f"),
            f"{spread(own):.0%}",
            *(_number(times_as_fast(entry, peer), ".2f") for peer in peers),
            f"{entry['flops'] / statistics.median(own) / 1e9:.1f}",
            f"{share_of_floor(entry, results.data['gemm']):.0%}",
            end_section=_ends_section(entry),
        )
    return table


def _cuda_layers(entries: Sequence[Entry], results: Results) -> Table:
    own, peers = own_names(entries), peer_names(entries)
    columns = [
        "kernel",
        *("us a step" + name.removeprefix(SUBJECT).replace(GRAPH, ", graph") for name in own),
        "+-",
        "launch us",
        *(f"x {name}" for name in peers),
        "TFLOP/s",
        "GB/s",
        "of limit",
    ]
    title = "Layers: x peer is how much faster than the peer, eager or graph as the peer"
    table = Table(title, [*CASE_COLUMNS, *columns], [*CASE_WORDS, "kernel"])
    for entry in entries:
        best, kernel = best_own(entry), entry["kernel"] or NONE
        if best is None:
            nothing = [NONE] * (len(columns) - 2)
            table.add(*case_cells(entry["case"]), kernel, "failed", *nothing)
            continue
        seconds = statistics.median(entry["samples"][best])
        launch = entry["host_samples"].get(SUBJECT)
        limit, taken = floor_microseconds(entry, results), step_microseconds(entry, best)
        share = limit / taken if limit is not None and taken is not None else None
        table.add(
            *case_cells(entry["case"]),
            kernel,
            *(_number(step_microseconds(entry, name), ".3f") for name in own),
            f"{spread(entry['samples'][best]):.0%}",
            _number(statistics.median(launch) * 1e6 if launch else None, ".0f"),
            *(_number(times_as_fast(entry, peer), ".2f") for peer in peers),
            f"{entry['flops'] / seconds / 1e12:.2f}",
            f"{entry['bytes'] / seconds / 1e9:.0f}",
            _number(share, ".0%"),
            end_section=_ends_section(entry),
        )
    return table


def _concurrency(entries: Sequence[Entry], results: Results) -> Table:
    seen = dict.fromkeys(name for entry in entries for name in entry["samples"])
    names = [name.removesuffix(TWO) for name in seen if name.endswith(TWO)]
    table = _case_table("Concurrency: time of two directions over that of one", names)
    for entry in entries:
        samples = entry["samples"]
        table.add(
            *case_cells(entry["case"]),
            *(
                f"{median_ratio(samples[name + TWO], samples[name + ONE]):.2f}"
                if name + TWO in samples and name + ONE in samples
                else NONE
                for name in names
            ),
        )
    return table


def lengths(entries: Sequence[Entry], results: Results) -> Table:
    """Every sweep over T, in each way to hand over the sequences that was timed."""
    ways = [
        way
        for way in VARIANTS
        if way != PLAIN and any(way in entry["samples"] for entry in entries)
    ]
    columns = ["us a step", "filled", *ways, f"x {TORCH_PACKED}"]
    table = _case_table(
        "Lengths: time as a multiple of the plain batch's, and packed against packed", columns
    )
    for sweep in sweeps(entries):
        if len(sweep) > 1 and table.rows:
            table.rules.add(len(table.rows) - 1)
        for entry in sweep:
            case, samples = entry["case"], entry["samples"]
            last = len(sweep) > 1 and entry is sweep[-1]
            if PLAIN not in samples:
                nothing = [NONE] * (len(columns) - 1)
                table.add(*case_cells(case), "failed", *nothing, end_section=last)
                continue
            table.add(
                *case_cells(case),
                _number(step_microseconds(entry, PLAIN), ".2f"),
                f"{filled(entry):.0%}",
                *(_number(ratio_in_rounds(entry, way, PLAIN), ".2f") for way in ways),
                _number(ratio_in_rounds(entry, TORCH_PACKED, PACKED), ".2f"),
                end_section=last,
            )
    return table


def resets(entries: Sequence[Entry], results: Results) -> Table:
    """Each share of resets against no resets, and TorchRL's against ours with as many."""
    beside = list(zip((named(TORCHRL, share) for share in SHARES), (PLAIN, *OURS), strict=True))
    beside = [pair for pair in beside if any(pair[0] in entry["samples"] for entry in entries)]
    columns = ["us a step", *OURS, *(f"x {peer}" for peer, _ in beside)]
    table = _case_table("Resets: time as a multiple of none, and of ours with as many", columns)
    for entry in entries:
        table.add(
            *case_cells(entry["case"]),
            _number(step_microseconds(entry, PLAIN), ".2f"),
            *(_number(ratio_in_rounds(entry, way, PLAIN), ".2f") for way in OURS),
            *(_number(ratio_in_rounds(entry, *pair), ".2f") for pair in beside),
            end_section=_ends_section(entry),
        )
    return table


def dtypes(entries: Sequence[Entry], results: Results) -> Table:
    """Each entrant's time a step in each dtype, and how far its output is from fp64."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["samples"]))
    columns = [f"{name}, {what}" for name in names for what in ("us a step", "error")]
    title = "Dtypes: microseconds a step, and relative error of the output against fp64"
    table = Table(title, [*CASE_COLUMNS[:4], "pass", *columns], ["cell", "pass"])
    for entry in entries:
        case = case_cells(entry["case"])
        cells = []
        for name in names:
            cells.append(_number(step_microseconds(entry, name), ".2f"))
            error = entry["errors"].get(name, {}).get("output", [None])[0]
            cells.append(_number(error, ".1e"))
        table.add(*case[:4], case[5], *cells, end_section=_ends_section(entry))
    return table


def _memory(entries: Sequence[Entry], results: Results) -> Table:
    names = list(dict.fromkeys(name for entry in entries for name in entry["samples"]))
    keepers = [name for name in names if any(name in entry.get("kept", {}) for entry in entries)]
    columns = [
        *(f"{name}, MiB" for name in names),
        "less by",
        *(f"kept by {name}, MiB" for name in keepers),
    ]
    table = _case_table("Peak memory of a training step, and what its forward keeps", columns)
    if not keepers:
        table.title = "Peak memory of a training step"
    for entry in entries:
        medians = {name: statistics.median(taken) for name, taken in entry["samples"].items()}
        kept = entry.get("kept", {})
        peers = [value for name, value in medians.items() if name not in entry["subjects"]]
        ratio = peers[0] / medians[SUBJECT] if peers and SUBJECT in medians else None
        table.add(
            *case_cells(entry["case"]),
            *(f"{medians[name] / MEBIBYTE:.0f}" if name in medians else NONE for name in names),
            f"{ratio:.2f} x" if ratio else NONE,
            *(f"{kept[name] / MEBIBYTE:.0f}" if name in kept else NONE for name in keepers),
        )
    return table


def _accuracy(entries: Sequence[Entry], results: Results) -> Table:
    names = list(dict.fromkeys(name for entry in entries for name in entry["errors"]))
    table = _case_table("Accuracy: largest relative error of a tensor against fp64", names)
    for entry in entries:
        worst = worst_errors(entry)
        table.add(
            *case_cells(entry["case"]),
            *(
                f"{worst[name][1]:.1e} {worst[name][0]}" if name in worst else NONE
                for name in names
            ),
        )
    return table


def streaming(entries: Sequence[Entry], results: Results) -> Table:
    """Percentiles of single calls; a second line where the cells' classes took part."""
    seen = dict.fromkeys(name for entry in entries for name in entry["calls"])
    names = [name for name in seen if not name.endswith(CELL)]
    peers = [name for name in names if name != SUBJECT]
    columns = [
        "by",
        *(f"{name}, {percentile} us" for name in names for percentile in PERCENTILES),
        *(f"x {peer}" for peer in peers),
    ]
    table = Table(
        "Streaming: T steps a call, states carried; microseconds of single calls, and the medians' "
        "ratio",
        ["cell", "T", "B", "H", *columns],
        ["cell", "by"],
    )
    for entry in entries:
        for way, by in (("", "layer"), (CELL, "cell")):
            calls = entry["calls"]
            if way and SUBJECT + way not in calls:
                continue
            table.add(
                *case_cells(entry["case"])[:4],
                by,
                *(
                    _number(calls[name + way][p] * 1e6, ".1f") if name + way in calls else NONE
                    for name in names
                    for p in PERCENTILES
                ),
                *(_number(times_as_fast(entry, peer + way), ".2f") for peer in peers),
            )
    return table


def busy(entries: Sequence[Entry], results: Results) -> Table:
    """Beside each neighbour: what a call takes alone and busy, and the factor."""
    names = [
        name
        for name in dict.fromkeys(name for entry in entries for name in entry["samples"])
        if not name.endswith(NEIGHBOURS)
    ]
    peers = [name for name in names if name != SUBJECT]
    columns = [
        "beside",
        *(f"{name}, {what}" for name in names for what in ("ms alone", "ms busy", "factor")),
        *(f"x {peer}, busy" for peer in peers),
    ]
    table = Table(
        "Busy: milliseconds of a call alone and beside another process, and their ratio",
        ["cell", "T", "B", "H", *columns],
        ["cell", "beside"],
    )
    for entry in entries:
        samples = entry["samples"]
        for neighbour in NEIGHBOURS:
            cells = []
            for name in names:
                for timed in (name, name + neighbour):
                    taken = samples.get(timed)
                    cells.append(_number(statistics.median(taken) * 1e3 if taken else None, ".2f"))
                cells.append(_number(ratio_in_rounds(entry, name + neighbour, name), ".2f"))
            for peer in peers:
                ratio = ratio_in_rounds(entry, peer + neighbour, SUBJECT + neighbour)
                cells.append(_number(ratio, ".2f"))
            table.add(
                *case_cells(entry["case"])[:4],
                neighbour.removeprefix(", beside "),
                *cells,
                end_section=neighbour == NEIGHBOURS[-1],
            )
    return table


def _import_time(entries: Sequence[Entry], results: Results) -> Table:
    table = Table("Import time", ["import", "ms", "+-"], ["import"])
    for entry in entries:
        for name, taken in entry["samples"].items():
            table.add(name, f"{statistics.median(taken) * 1e3:.0f}", f"{spread(taken):.0%}")
    return table
