"""The results as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cases import PASSES
from benchmarks.lengths import PLAIN, VARIANTS
from benchmarks.peers import SUBJECT
from benchmarks.results import Entry, Results
from benchmarks.timing import gemm_dtype, gemm_rate, geometric_mean, median_ratio, spread

MEBIBYTE = 2**20
NONE = "-"


def show(results: Results, console: Console) -> None:
    """Print every section that the results hold, and what failed."""
    _show_header(results, console)
    sections = (
        ("layers", _layers),
        ("lengths", _lengths),
        ("memory", _memory),
        ("import", _import_time),
    )
    for name, make_table in sections:
        entries = results.section(name)
        if entries:
            console.print(make_table(entries, results))
    for line in geometric_means(results):
        console.print(line, highlight=False)
    for entry in results.entries:
        for name, reason in entry["failed"].items():
            console.print(
                f"failed, not timed: {name} in {entry['key']}: {reason}",
                style="red",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def geometric_means(results: Results) -> list[str]:
    """How much faster than each peer, over all cases of a pass that both were timed in."""
    lines = []
    entries = results.section("layers")
    for peer in _peer_names(entries):
        for pass_name in PASSES:
            faster = [
                median_ratio(entry["samples"][peer], entry["samples"][SUBJECT])
                for entry in entries
                if entry["case"]["pass_name"] == pass_name and peer in entry["samples"]
            ]
            mean = geometric_mean(faster)
            if mean is not None:
                cases = f"geometric mean of {len(faster)} cases, worst {min(faster):.2f}"
                lines.append(f"{mean:5.2f} x as fast as {peer} in {pass_name} ({cases})")
    return lines


def share_of_floor(entry: Entry, gemm: Mapping[str, Sequence[float]]) -> float:
    """The time that the products of the pass need at the large GEMM's rate, over the time taken."""
    floor = entry["flops"] / gemm_rate(gemm[gemm_dtype(entry["case"]["dtype"])])
    return float(floor / statistics.median(entry["samples"][SUBJECT]))


def _show_header(results: Results, console: Console) -> None:
    machine, data = results.data["machine"], results.data
    versions = ", ".join(f"{name} {found}" for name, found in data["versions"].items() if found)
    code = data["code"]
    commit = (code["commit"] or "unknown")[:12] + (" (modified)" if code["modified"] else "")
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['capability']}; {versions}; commit {commit}",
        *(f"absent: {name} {reason}" for name, reason in data["absent"].items()),
        *(
            f"large GEMM, {dtype}: {gemm_rate(seconds) / 1e9:.0f} GFLOP/s"
            for dtype, seconds in data["gemm"].items()
        ),
    ]
    load = machine["load_average"]
    if load is not None and load > machine["cores"] / 4:
        lines.append(f"the machine was busy before the run (load {load:.1f}): expect noise")
    if not data["finished"]:
        lines.append("this run is not finished")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _case_table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("cell", "T", "B", "H", "dtype", "pass"):
        table.add_column(name, justify="right" if name in "TBH" else "left", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _case_cells(case: Mapping[str, Any]) -> list[str]:
    names = ("cell", "seq_len", "batch_size", "hidden_size", "dtype", "pass_name")
    return [str(case[name]) for name in names]


def _peer_names(entries: Iterable[Entry]) -> list[str]:
    seen = dict.fromkeys(name for entry in entries for name in entry["samples"])
    return [name for name in seen if name != SUBJECT]


def _microseconds_a_step(samples: Sequence[float], case: Mapping[str, Any]) -> float:
    return float(statistics.median(samples) / case["seq_len"] * 1e6)


def _layers(entries: Sequence[Entry], results: Results) -> Table:
    peers = _peer_names(entries)
    columns = ["us a step", "+-", *(f"x {name}" for name in peers), "GFLOP/s", "of floor"]
    table = _case_table("Layers: x peer is how much faster than the peer", columns)
    for entry in entries:
        case, samples = entry["case"], entry["samples"]
        if SUBJECT not in samples:
            table.add_row(*_case_cells(case), "failed", *[NONE] * (len(columns) - 1))
            continue
        own = samples[SUBJECT]
        table.add_row(
            *_case_cells(case),
            f"{_microseconds_a_step(own, case):.2f}",
            f"{spread(own):.0%}",
            *(
                f"{median_ratio(samples[peer], own):.2f}" if peer in samples else NONE
                for peer in peers
            ),
            f"{entry['flops'] / statistics.median(own) / 1e9:.1f}",
            f"{share_of_floor(entry, results.data['gemm']):.0%}",
            end_section=case["pass_name"] == PASSES[-1],
        )
    return table


def _lengths(entries: Sequence[Entry], results: Results) -> Table:
    columns = ["us a step", "filled", *VARIANTS[1:]]
    table = _case_table("Lengths: time as a multiple of the plain batch's", columns)
    for entry in entries:
        case, samples = entry["case"], entry["samples"]
        if PLAIN not in samples:
            table.add_row(*_case_cells(case), "failed", *[NONE] * (len(columns) - 1))
            continue
        filled = sum(entry["lengths"]) / (case["seq_len"] * case["batch_size"])
        table.add_row(
            *_case_cells(case),
            f"{_microseconds_a_step(samples[PLAIN], case):.2f}",
            f"{filled:.0%}",
            *(
                f"{median_ratio(samples[name], samples[PLAIN]):.2f}" if name in samples else NONE
                for name in VARIANTS[1:]
            ),
        )
    return table


def _memory(entries: Sequence[Entry], results: Results) -> Table:
    names = list(dict.fromkeys(name for entry in entries for name in entry["samples"]))
    columns = [*(f"{name}, MiB" for name in names), "less by"]
    table = _case_table("Peak memory of a training step", columns)
    for entry in entries:
        medians = {name: statistics.median(taken) for name, taken in entry["samples"].items()}
        peers = [value for name, value in medians.items() if name not in entry["subjects"]]
        ratio = peers[0] / medians[SUBJECT] if peers and SUBJECT in medians else None
        table.add_row(
            *_case_cells(entry["case"]),
            *(f"{medians[name] / MEBIBYTE:.0f}" if name in medians else NONE for name in names),
            f"{ratio:.2f} x" if ratio else NONE,
        )
    return table


def _import_time(entries: Sequence[Entry], results: Results) -> Table:
    table = Table("import", "ms", "+-", title="Import time", title_justify="left")
    for entry in entries:
        for name, taken in entry["samples"].items():
            table.add_row(name, f"{statistics.median(taken) * 1e3:.0f}", f"{spread(taken):.0%}")
    return table
