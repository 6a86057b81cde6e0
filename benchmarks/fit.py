"""``python -m benchmarks fit FILE...``: constants for the plan's cost model, from measured kernels.

The files are those of ``python -m benchmarks tune``. Each constant is varied in turn, by smaller
and smaller steps, as long as that brings the estimates closer to the times: closer by the mean of
|log(estimate / time)|, which a few odd times do not sway. Printed are the constants for
csrc/cuda/cost_model.h, how far off estimates are, and how much time the plan's choices cost over
the fastest division, before and after. Needs no GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.divisions import name_of, plan_arguments, step_microseconds
from benchmarks.results import Results, ResultsError
from benchmarks.terminal import Bar, Table, Terminal
from benchmarks.timing import geometric_mean

STEPS = (0.4, 0.2, 0.1, 0.05, 0.025)  # of a logarithm
SWEEPS = 12  # over all constants, at most, for each step
FARTHEST = math.log(8)  # from the constant as it was: what no data tells stays in sight

Constants = dict[str, float]


@dataclass(frozen=True)
class Pass:
    """One pass of one shape, and the microseconds a step that its divisions took."""

    key: str
    limits: dict[str, Any]
    side: str
    arguments: dict[str, Any]
    microseconds: dict[str, float]

    def estimates(self, constants: Constants) -> tuple[dict[str, float], str]:
        """Of every division, by name, and which of them the plan takes."""
        from birnn_cuda import ops

        choices, chosen = ops.divisions(
            self.limits, self.side, **self.arguments, constants=constants
        )
        named = {name_of(choice): float(choice["microseconds_per_step"]) for choice in choices}
        return named, name_of(choices[chosen])


def passes_of(results: Results) -> list[Pass]:
    return [
        Pass(
            key=entry["key"],
            limits=results.data["limits"],
            side=entry["side"],
            arguments=plan_arguments(Case(**entry["case"])),
            microseconds=times,
        )
        for entry in results.section("divisions")
        if (times := step_microseconds(entry))
    ]


def distance(passes: Sequence[Pass], constants: Constants) -> float:
    """The mean of |log(estimate / time)| over all divisions that were timed."""
    errors = [
        abs(math.log(estimates[name] / time))
        for each in passes
        for estimates in [each.estimates(constants)[0]]
        for name, time in each.microseconds.items()
        if name in estimates
    ]
    return statistics.fmean(errors) if errors else 0.0


def regret(each: Pass, constants: Constants) -> float:
    """The time of what the plan takes, over that of the fastest: 1 at best.

    If what it takes was not timed, of those that were the one that it estimates at least.
    """
    estimates, chosen = each.estimates(constants)
    if chosen not in each.microseconds:
        known = [name for name in each.microseconds if name in estimates]
        if not known:
            return 1.0
        chosen = min(known, key=lambda name: estimates[name])
    return each.microseconds[chosen] / min(each.microseconds.values())


def fit(passes: Sequence[Pass], start: Constants, bar: Bar | None = None) -> Constants:
    """The constants, from these on, under which estimates are closest to the times."""
    best, least = dict(start), distance(passes, start)
    for step in STEPS:
        if bar is not None:
            bar.begin(f"steps of {step:.1%}, {math.exp(least):.3f} off")
        for _ in range(SWEEPS):
            before = least
            for name in start:
                for factor in (math.exp(step), math.exp(-step)):
                    tried = {**best, name: best[name] * factor}
                    if abs(math.log(tried[name] / start[name])) > FARTHEST:
                        continue
                    found = distance(passes, tried)
                    if found < least:
                        best, least = tried, found
                        break
            if least > before * 0.999:
                break
        if bar is not None:
            bar.finish(1.0)
    return best


def load(paths: Sequence[Path]) -> list[Pass]:
    passes: list[Pass] = []
    for path in paths:
        results = Results.load(path)
        if results.data["command"] != "tune":
            raise ResultsError(f"{path} is not a file of python -m benchmarks tune")
        passes += passes_of(results)
    if not passes:
        raise ResultsError(f"nothing was timed in {', '.join(map(str, paths))}")
    return passes


def summary(passes: Sequence[Pass], constants: Constants) -> str:
    regrets = {each.key: regret(each, constants) for each in passes}
    worst = max(regrets, key=lambda key: regrets[key])
    return (
        f"estimates off by a factor of {math.exp(distance(passes, constants)):.2f} typically; "
        f"choices {geometric_mean(regrets.values()):.3f} times the fastest division, "
        f"at worst {regrets[worst]:.2f} ({worst})"
    )


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "fit",
        help="constants for the plan, from files of tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Fit, and print what came out."""
    from birnn_cuda import ops

    passes = load(arguments.files)
    count = sum(len(each.microseconds) for each in passes)
    terminal.line(f"{len(passes)} passes, {count} divisions")
    before = ops.cost_constants()
    with terminal.progress(len(STEPS), 0, len(STEPS)) as bar:
        after = fit(passes, before, bar)
    table = Table("Constants of csrc/cuda/cost_model.h", ["name", "is", "fitted"], ["name"])
    for name, value in before.items():
        table.add(name, f"{value:g}", f"{after[name]:.4g}")
    terminal.table(table)
    terminal.line(f"now:    {summary(passes, before)}")
    terminal.line(f"fitted: {summary(passes, after)}")
    return 0
