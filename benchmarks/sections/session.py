"""A run over many entries: progress, a flush after each, and what every entry shares."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from benchmarks.measure.cases import Case, Preset
from benchmarks.measure.clocks import ClockRecorder
from benchmarks.measure.flops import flops
from benchmarks.measure.problem import DTYPES, products_as
from benchmarks.measure.results import Results
from benchmarks.measure.terminal import Terminal
from benchmarks.measure.timing import WALL, Stopwatch, gemm_dtype, gemm_seconds
from benchmarks.peers.peer import LayerPeer, Peer

# For the progress bar's estimate only.
ASSUMED_FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 5e12}
ASSUMED_SECONDS_A_STEP = 1e-5
ASSUMED_SECONDS_A_CUDA_ENTRY = 0.6  # to draw, to solve, to build, to capture


@dataclass
class Session:
    """What the entries of a run share."""

    preset: Preset
    seed: int
    subject: LayerPeer
    torch_layer: LayerPeer
    peers: Sequence[Peer]  # the others that are here
    gemm: dict[str, list[float]] = field(default_factory=dict)  # seconds, by dtype
    device: str = "cpu"
    stopwatch: Stopwatch = WALL
    clocks: ClockRecorder | None = None
    kernel_of: Callable[[Case], str] | None = None  # of this package, where it has several
    gpu_limits: Mapping[str, Any] = field(default_factory=dict)  # as ops.plan takes them

    def seed_of(self, key: str) -> int:
        """The seed of one entry, whichever entries ran before it."""
        return random.Random(f"{self.seed} {key}").getrandbits(62)

    @property
    def entrants(self) -> list[Peer]:
        """This package and all others."""
        return [self.subject, *self.peers]

    def absence(self, peer: Peer, case: Case) -> str | None:
        """Why a peer does not take part in a case, or None."""
        compiled = self.preset.compiled
        if peer.compiles and compiled is not None and case not in compiled:
            return "compiles a program for each case: the preset does not give it this one"
        return peer.declines(case)

    def sample_gemm(self, dtype: str) -> None:
        """Time the machine's large GEMM again, beside the entry that it is the yardstick of."""
        dtype = gemm_dtype(dtype, self.device)
        seconds = self.gemm.setdefault(dtype, [])
        seconds += gemm_seconds(
            DTYPES[dtype], 2 if seconds else 5, self.device, self.stopwatch.clock
        )

    @contextlib.contextmanager
    def circumstances(self, case: Case | None) -> Iterator[dict[str, Any]]:
        """What an entry is measured in; yields a dict, which then holds what was noted meanwhile.

        Afterwards nothing of the entry is left on the device: its captured graphs keep memory.
        """
        noted: dict[str, Any] = {}
        mark = time.monotonic()
        with products_as(case.dtype if case else "fp32"):
            yield noted
        if self.clocks is not None:
            noted["clocks"] = self.clocks.since(mark)
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


class Measurement(Protocol):
    """One entry to be measured."""

    @property
    def case(self) -> Case | None:
        """What it is about, if a layer."""

    @property
    def key(self) -> str:
        """Its name in the results."""

    def cost(self, session: Session) -> float:
        """About how many seconds it takes."""

    def measure(self, session: Session) -> dict[str, Any]:
        """Do it: an entry of the results file, less its key."""


def step_cost(case: Case, device: str) -> float:
    """About how many seconds a step takes."""
    return flops(case) / ASSUMED_FLOPS_PER_SECOND[device] + case.seq_len * ASSUMED_SECONDS_A_STEP


def contest_cost(case: Case, session: Session, entrants: int) -> float:
    """About how many seconds it takes to check and time so many entrants of a case."""
    step, limits = step_cost(case, session.device), session.preset.limits
    setting_up = ASSUMED_SECONDS_A_CUDA_ENTRY if session.device == "cuda" else 0.0
    calls_a_sample = 1 if session.device == "cuda" else 2  # one of them untimed
    timing = max(limits.seconds, limits.min_rounds * entrants * calls_a_sample * step)
    return setting_up + timing + (entrants + 6) * step


def run(
    measurements: Sequence[Measurement], results: Results, session: Session, terminal: Terminal
) -> None:
    """Measure what the results file does not hold yet; it is valid after every entry.

    What the preset's budget leaves no time for stays undone: the file says so, and can be resumed.
    """
    left = [measurement for measurement in measurements if not results.is_done(measurement.key)]
    costs = [measurement.cost(session) for measurement in left]
    start, budget = time.monotonic(), session.preset.budget
    with terminal.progress(sum(costs), len(measurements) - len(left), len(measurements)) as bar:
        for measurement, cost in zip(left, costs, strict=True):
            if budget is not None and time.monotonic() - start >= budget:
                break
            bar.begin(measurement.key)
            results.begin(measurement.key)
            try:
                with session.circumstances(measurement.case) as noted:
                    entry = measurement.measure(session)
            except KeyboardInterrupt:
                results.interrupt()
                raise
            results.add({"key": measurement.key, **entry, **noted})
            bar.finish(cost)
        else:
            results.finish()


def left_out(measurements: Sequence[Measurement], done: Mapping[str, Any]) -> list[str]:
    """The keys of those that have not been measured."""
    return [measurement.key for measurement in measurements if measurement.key not in done]
