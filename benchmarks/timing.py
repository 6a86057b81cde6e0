"""Timing that a noisy machine cannot tilt, and the statistics of what it yields.

Entrants are timed in rounds. A round times each once, in a fresh random order, so that whatever
the machine does meanwhile hits all alike; ratios are taken inside a round, and the median over
rounds is reported.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

Step = Callable[[], Any]

GEMM_SIZE = 2048


def wall_seconds(step: Step, repeats: int) -> float:
    """Seconds a call took, on average over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def interleave(
    steps: Mapping[str, Step],
    rng: random.Random,
    *,
    seconds: float,
    min_rounds: int,
    max_rounds: int,
    min_sample: float,
    clock: Callable[[Step, int], float] = wall_seconds,
) -> tuple[int, dict[str, list[float]]]:
    """Time every step once a round, in random order.

    Returns the calls a sample is made of (the same for all), and the samples: seconds a call, by
    name, in the order of the rounds. A first round, which finds the number of calls, is dropped.
    """
    fastest = min(clock(step, 1) for step in steps.values())
    repeats = max(1, math.ceil(min_sample / max(fastest, 1e-9)))
    names = list(steps)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(max_rounds):
            if done >= min_rounds and time.perf_counter() - start >= seconds:
                break
            rng.shuffle(names)
            for name in names:
                samples[name].append(clock(steps[name], repeats))
    finally:
        if collecting:
            gc.enable()
    return repeats, samples


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median over the rounds of the ratio taken inside each."""
    return statistics.median(ratios(numerator, denominator))


def spread(samples: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    if len(samples) < 2:
        return 0.0
    lower, middle, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return (upper - lower) / 2 / middle


def standard_error(samples: Sequence[float]) -> float:
    """The standard error of the median, relative to it, from the median absolute deviation."""
    middle = statistics.median(samples)
    deviation = statistics.median(abs(sample - middle) for sample in samples)
    # For a normal distribution sigma = 1.4826 MAD; a median is 1.2533 as uncertain as a mean.
    return 1.2533 * 1.4826 * deviation / abs(middle) / math.sqrt(len(samples))


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else None


def gemm_seconds(dtype: torch.dtype, calls: int) -> list[float]:
    """Seconds that each of `calls` products of two large square matrices took."""
    left = torch.rand(GEMM_SIZE, GEMM_SIZE).to(dtype)
    right = torch.rand(GEMM_SIZE, GEMM_SIZE).to(dtype)
    out = torch.empty(GEMM_SIZE, GEMM_SIZE, dtype=dtype)
    return [wall_seconds(lambda: torch.mm(left, right, out=out), 1) for _ in range(calls)]


def gemm_rate(seconds: Sequence[float]) -> float:
    """Floating-point operations a second of the fastest of these products."""
    return float(2 * GEMM_SIZE**3 / min(seconds))
