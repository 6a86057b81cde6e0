"""One entry's measurement: every entrant checked against the answer, then all timed together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure.cases import Limits
from benchmarks.measure.problem import Problem
from benchmarks.measure.timing import WALL, Stopwatch, interleave
from benchmarks.peers.peer import Run

# Of the time that the host needs to launch a call: not for comparing, and so for fewer samples.
HOST_LIMITS = Limits(seconds=0.0, min_rounds=5, max_rounds=5, min_sample=0.0)


@dataclass(frozen=True)
class Entrant:
    """One line of a contest: how to build it, and the problem that judges it."""

    name: str
    build: Callable[[], Run]
    problem: Problem


def contest(
    entrants: Sequence[Entrant],
    limits: Limits,
    rng: random.Random,
    required: str,
    stopwatch: Stopwatch = WALL,
) -> dict[str, Any]:
    """Check every entrant, then time those that passed, interleaved.

    Without the ``required`` one, nobody is: there is nothing to compare with.
    """
    steps, verdicts = checked(entrants)
    entry: dict[str, Any] = {**verdicts, "repeats": 0, "samples": {}}
    if required in steps:
        entry["repeats"], entry["samples"] = interleave(steps, rng, limits, stopwatch.clock)
        if stopwatch.host_clock is not None:
            _, host_samples = interleave(steps, rng, HOST_LIMITS, stopwatch.host_clock)
            entry["host_samples"] = host_samples
    return entry


def checked(
    entrants: Sequence[Entrant],
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, Any]]]:
    """The steps of those whose results are right, ready to be timed; and ``checks`` and ``failed``.

    An entrant that raises or computes something wrong is reported under ``failed``.
    """
    steps: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    checks: dict[str, dict[str, Any]] = {}
    try:
        for entrant in entrants:
            entrant.problem.solve()
    except torch.OutOfMemoryError as error:
        failed["the fp64 answer"] = str(error).partition("\n")[0]
        entrants = []
    for entrant in entrants:
        try:
            run = entrant.build()
            verdict = entrant.problem.check(run.results(run.step()))
        except Exception as error:  # whatever a peer raises is its result
            failed[entrant.name] = f"{type(error).__name__}: {error}"
            continue
        checks[entrant.name] = {
            "tensor": verdict.tensor,
            "relative_error": verdict.error if math.isfinite(verdict.error) else None,
            "tolerance": verdict.tolerance,
        }
        if verdict.reason is None:
            steps[entrant.name] = run.step
        else:
            failed[entrant.name] = verdict.reason
    return steps, {"checks": checks, "failed": failed}
