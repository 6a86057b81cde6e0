"""``python -m benchmarks fit FILE...``: constants for the plan's cost model, from measured kernels.

The files are those of ``python -m benchmarks tune``. The constants are found, by Powell's method
(scipy), under which the estimates are closest to the times: by the mean of |log(estimate / time)|,
which a few odd times do not sway. Printed are the constants for csrc/cuda/plan/cost_model.h, how
far off estimates are, and how much time the plan's choices cost over the fastest division, before
and after. Needs no GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.results import Results, ResultsError
from benchmarks.measure.terminal import Bar, Table, Terminal
from benchmarks.measure.timing import geometric_mean
from benchmarks.peers.peer import import_failure
from benchmarks.sections.divisions import name_of, plan_arguments, step_microseconds

FARTHEST = math.log(8)  # from the constant as it was: what no data tells stays in sight
EXACT, ENOUGH = 0.02, 1e-3  # of a constant's logarithm; of what an iteration improves
MOST_ITERATIONS = 10
SCALES = ("serial", "slack")  # of whole steps, found first: else other constants stand in for them

Constants = dict[str, float]


@dataclass(frozen=True)
class Pass:
    """One pass of one shape, and the microseconds a step that its divisions took."""

    key: str
    limits: dict[str, Any]
    side: str
    arguments: dict[str, Any]
    resident_clusters: list[list[int]]
    microseconds: dict[str, float]

    def estimates(self, constants: Constants) -> tuple[dict[str, float], str]:
        """Of every division, by name, and which of them the plan takes."""
        from birnn_cuda import ops

        choices, chosen = ops.divisions(
            self.limits,
            self.side,
            **self.arguments,
            constants=constants,
            resident_clusters=self.resident_clusters,
        )
        named = {name_of(choice): float(choice["microseconds_per_step"]) for choice in choices}
        return named, name_of(choices[chosen])


def passes_of(results: Results) -> list[Pass]:
    return [
        Pass(
            key=entry["key"],
            limits=results.data["limits"] | {"index": None},  # it need not be here
            side=entry["side"],
            arguments=plan_arguments(Case(**entry["case"])),
            resident_clusters=entry["resident_clusters"],
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
    """The constants under which estimates are closest to the times, from these on."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    first = {name: start[name] for name in SCALES if name in start}
    start = first | start

    def constants_at(logs: Sequence[float]) -> Constants:
        return {
            name: value * math.exp(log)
            for (name, value), log in zip(start.items(), logs, strict=True)
        }

    def step_done(logs: Sequence[float]) -> None:
        if bar is not None:
            bar.begin(f"estimates off by {math.exp(distance(passes, constants_at(logs))):.3f}")
            bar.finish(1.0)

    found = minimize(
        lambda logs: distance(passes, constants_at(logs)),
        [0.0] * len(start),
        method="Powell",
        bounds=[(-FARTHEST, FARTHEST)] * len(start),
        callback=step_done,
        options={"xtol": EXACT, "ftol": ENOUGH, "maxiter": MOST_ITERATIONS},
    )
    return constants_at(found.x.tolist())


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

    reason = import_failure("scipy")
    if reason is not None:
        raise ResultsError(f"a fit needs scipy, which {reason}")
    passes = load(arguments.files)
    count = sum(len(each.microseconds) for each in passes)
    terminal.line(f"{len(passes)} passes, {count} divisions")
    before = ops.cost_constants()
    with terminal.progress(MOST_ITERATIONS, 0, MOST_ITERATIONS) as bar:
        after = fit(passes, before, bar)
    table = Table("Constants of csrc/cuda/plan/cost_model.h", ["name", "is", "fitted"], ["name"])
    for name, value in before.items():
        table.add(name, f"{value:g}", f"{after[name]:.4g}")
    terminal.table(table)
    terminal.line(f"now:    {summary(passes, before)}")
    terminal.line(f"fitted: {summary(passes, after)}")
    return 0
