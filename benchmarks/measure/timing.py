"""Timing that a noisy machine cannot tilt, and the statistics of what it yields.

Entrants are timed in rounds. A round times each once, in a fresh random order, so that whatever
the machine does meanwhile hits all alike; ratios are taken inside a round, and the median over
rounds is reported.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure.cases import Limits

Step = Callable[[], Any]
Clock = Callable[[Step, int], float]  # seconds a call, on average over so many calls

GEMM_SIZES = {"cpu": 2048, "cuda": 8192}  # rows and columns of the large GEMM


def wall_seconds(step: Step, repeats: int) -> float:
    """Seconds a call took, on average over `repeats` calls.

    An untimed one comes first: it meets what the entrant before left in the caches, the allocator
    and the thread pool. Without it the shorter of two calls suffers more: after a peer with threads
    of its own, or a sleep, a call of 2 ms took 1.3 times as long, one of 28 ms up to 1.2 times.
    """
    step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


@dataclass(frozen=True)
class Stopwatch:
    """How a call is timed, and how the host's share of it, if that can be told apart."""

    clock: Clock
    host_clock: Clock | None = None


WALL = Stopwatch(wall_seconds)


def interleave(
    steps: Mapping[str, Step], rng: random.Random, limits: Limits, clock: Clock = wall_seconds
) -> tuple[int, dict[str, list[float]]]:
    """Time every step once a round, in random order.

    Returns the calls a sample is made of (the same for all), and the samples: seconds a call, by
    name, in the order of the rounds. A first round, which finds the number of calls, is dropped.
    """
    repeats = calls_a_sample([clock(step, 1) for step in steps.values()], limits)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for name in turns(list(steps), rng, limits):
        samples[name].append(clock(steps[name], repeats))
    return repeats, samples


def interleave_calls(
    steps: Mapping[str, Step], rng: random.Random, limits: Limits
) -> tuple[int, dict[str, list[list[float]]]]:
    """As :func:`interleave`, but every call is timed alone: the seconds of each, round by round."""
    first = [statistics.median(call_seconds(step, 5)) for step in steps.values()]
    repeats = calls_a_sample(first, limits)
    samples: dict[str, list[list[float]]] = {name: [] for name in steps}
    for name in turns(list(steps), rng, limits):
        samples[name].append(call_seconds(steps[name], repeats))
    return repeats, samples


def call_seconds(step: Step, repeats: int) -> list[float]:
    """Seconds of each of so many calls, after an untimed one. Reading the clock is in it."""
    step()
    marks = [time.perf_counter()]
    for _ in range(repeats):
        step()
        marks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(marks)]


def calls_a_sample(seconds: Sequence[float], limits: Limits) -> int:
    """Of how many calls a sample is made, from what one takes each entrant."""
    return max(1, math.ceil(limits.min_sample / max(min(seconds), 1e-9)))


def turns(names: Sequence[str], rng: random.Random, limits: Limits) -> Iterator[str]:
    """Whose turn it is: everyone once a round, in a new random order, as long as the limits allow.

    Meanwhile Python collects no garbage.
    """
    order = list(names)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(limits.max_rounds):
            if done >= limits.min_rounds and time.perf_counter() - start >= limits.seconds:
                break
            rng.shuffle(order)
            yield from order
    finally:
        if collecting:
            gc.enable()


def percentile(samples: Sequence[float], percent: float) -> float:
    """The least of the samples that at least so many in a hundred do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


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


def median_interval(samples: Sequence[float], confidence: float = 0.99) -> tuple[float, float]:
    """Between which two samples the true median lies, with at least this confidence.

    By the sign test, which supposes nothing about the noise. Too few samples for the confidence
    give their whole range.
    """
    ordered = sorted(samples)
    count = len(ordered)
    outside, rank = 0.0, 0
    while rank < (count - 1) // 2:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 1 - confidence:
            break
        rank += 1
    drop = max(rank - 1, 0)  # samples left out at either end
    return ordered[drop], ordered[count - 1 - drop]


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else None


def gemm_dtype(dtype: str, device: str = "cpu") -> str:
    """The dtype whose large GEMM is the yardstick: on CPU cores 16 bits compute through fp32."""
    return "fp32" if device == "cpu" and dtype in ("fp16", "bf16") else dtype


def gemm_seconds(
    dtype: torch.dtype, calls: int, device: str = "cpu", clock: Clock = wall_seconds
) -> list[float]:
    """Seconds that each of `calls` products of two large square matrices took.

    On CPU cores as many again by oneDNN, if torch has it: MKL is not the fastest on each of them.
    """
    size = (GEMM_SIZES[device], GEMM_SIZES[device])
    left = torch.rand(size, device=device).to(dtype)
    right = torch.rand(size, device=device).to(dtype)
    out = torch.empty(size, device=device, dtype=dtype)
    products: list[Callable[[], Any]] = [lambda: torch.mm(left, right, out=out)]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        products.append(lambda: onednn(left, right, None, "none", [], ""))
    with torch.inference_mode():
        return [clock(product, 1) for _ in range(calls) for product in products]


def gemm_rate(seconds: Sequence[float], device: str = "cpu") -> float:
    """Floating-point operations a second of the fastest of these products."""
    return float(2 * GEMM_SIZES[device] ** 3 / min(seconds))
