"""``python -m benchmarks compare A.json B.json``: what got slower from A to B, beyond the noise.

Two runs meet a machine in two states, so where both runs timed the same control (the same version
of torch.nn, on as many threads) the change is that of the ratio to it, taken round by round;
elsewhere it is that of the time itself. It counts as slower when the medians differ by more than
--threshold and the intervals that hold them with a confidence of 99% do not overlap.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.results import Entry, Results, ResultsError, circumstances_that_differ
from benchmarks.measure.terminal import Table, Terminal
from benchmarks.measure.timing import median_interval, ratios

DEFAULT_THRESHOLD = 0.10


@dataclass(frozen=True)
class Change:
    """What became of one timing: 0.3 is 30% slower (or larger)."""

    key: str
    name: str
    unit: str
    before: float
    after: float
    change: float
    noise: float
    against: str  # the control, or "" for the time itself

    @property
    def slower(self) -> bool:
        return self.change > self.noise

    @property
    def faster(self) -> bool:
        return 1 / (1 + self.change) - 1 > self.noise


@dataclass(frozen=True)
class Comparison:
    """All that two results files have in common, and what they have not."""

    changes: list[Change]
    newly_failed: list[str]
    only_before: list[str]
    only_after: list[str]

    @property
    def slower(self) -> list[Change]:
        slower = [change for change in self.changes if change.slower]
        return sorted(slower, key=lambda change: change.change, reverse=True)


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "compare", help="print what got slower between two results files", description=__doc__
    )
    parser.set_defaults(execute=execute)
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument(
        "--threshold",
        type=float,
        default=DEFAULT_THRESHOLD,
        metavar="SHARE",
        help=f"the smallest change that counts (default {DEFAULT_THRESHOLD})",
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Print the comparison; 1 if anything got slower or fails that did not."""
    before, after = Results.load(arguments.before), Results.load(arguments.after)
    comparison = compare(before, after, arguments.threshold)
    if not comparison.changes and not comparison.newly_failed:
        raise ResultsError(f"{before.path} and {after.path} have no timing in common")
    for line in different_circumstances(before, after):
        terminal.line(line, "yellow")
    if comparison.slower:
        terminal.table(_table(comparison.slower))
    for line in comparison.newly_failed:
        terminal.line(line, "red")
    faster = sum(change.faster for change in comparison.changes)
    terminal.line(
        f"{len(comparison.changes)} compared: {len(comparison.slower)} slower, {faster} faster, "
        f"{len(comparison.newly_failed)} newly failing; not compared: "
        f"{len(comparison.only_before)} only in {before.path.name}, "
        f"{len(comparison.only_after)} only in {after.path.name}"
    )
    return 1 if comparison.slower or comparison.newly_failed else 0


def compare(before: Results, after: Results, threshold: float = DEFAULT_THRESHOLD) -> Comparison:
    """Compare every timing of this package that both files hold."""
    controlled = _same_control(before, after)
    entries_before, entries_after = before.by_key(), after.by_key()
    changes, newly_failed = [], []
    for key, entry in entries_before.items():
        later = entries_after.get(key)
        if later is None:
            continue
        for name in entry["subjects"]:
            if name in later["failed"]:
                if name not in entry["failed"]:
                    newly_failed.append(f"now fails: {name} in {key}: {later['failed'][name]}")
            elif name in entry["samples"] and name in later["samples"]:
                changes.append(_change(entry, later, name, threshold, controlled))
    return Comparison(
        changes,
        newly_failed,
        only_before=[key for key in entries_before if key not in entries_after],
        only_after=[key for key in entries_after if key not in entries_before],
    )


def different_circumstances(before: Results, after: Results) -> list[str]:
    """What differs beside the code, and weakens the comparison."""
    return [
        f"differs: {part} {name}: {found} -> {now}"
        for part, name, found, now in circumstances_that_differ(before.data, after.data)
        if part != "code"
    ]


def _same_control(before: Results, after: Results) -> bool:
    return all(
        before.data.get(part, {}).get(name) == after.data.get(part, {}).get(name)
        for part, name in (
            ("versions", "torch"),
            ("machine", "threads"),
            ("machine", "cpu"),
            ("device", "name"),
            ("device", "cudnn"),
        )
    )


def _change(before: Entry, after: Entry, name: str, threshold: float, controlled: bool) -> Change:
    control = before["control"] if controlled else None
    old, new = before["samples"][name], after["samples"][name]
    old_median, new_median = statistics.median(old), statistics.median(new)
    if control in before["samples"] and control in after["samples"]:
        old = ratios(old, before["samples"][control])
        new = ratios(new, after["samples"][control])
    else:
        control = None
    change = statistics.median(new) / statistics.median(old) - 1
    return Change(
        key=before["key"],
        name=name,
        unit=before["unit"],
        before=old_median,
        after=new_median,
        change=change,
        noise=max(threshold, _reach(old, new) if change > 0 else _reach(new, old)),
        against=control or "",
    )


def _reach(lower: Sequence[float], upper: Sequence[float]) -> float:
    """How far apart the medians would have to be for their intervals not to overlap."""
    top, bottom = median_interval(lower)[1], median_interval(upper)[0]
    return top / statistics.median(lower) * (statistics.median(upper) / bottom) - 1


def _table(slower: list[Change]) -> Table:
    words = ("entry", "what", "judged")
    numbers = ("before", "after", "change", "noise")
    table = Table("Slower, or larger, beyond the noise", [*words[:2], *numbers, words[2]], words)
    for change in slower:
        table.add(
            change.key,
            change.name,
            _quantity(change.before, change.unit),
            _quantity(change.after, change.unit),
            f"{change.change:+.0%}",
            f"{change.noise:.0%}",
            f"against {change.against}" if change.against else "by itself",
        )
    return table


def _quantity(value: float, unit: str) -> str:
    return f"{value / 2**20:.1f} MiB" if unit == "bytes" else f"{value * 1e3:.3f} ms"
