"""A run over many entries: progress, a flush after each, and what every entry shares."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from benchmarks.cases import Case, Preset
from benchmarks.flops import flops
from benchmarks.peers import LayerPeer, Peer
from benchmarks.problem import DTYPES
from benchmarks.results import Results
from benchmarks.timing import gemm_dtype, gemm_seconds

# For the progress bar's estimate only.
ASSUMED_FLOPS_PER_SECOND = 5e10


@dataclass
class Session:
    """What the entries of a run share."""

    preset: Preset
    seed: int
    subject: LayerPeer
    torch_layer: LayerPeer
    peers: Sequence[Peer]  # the others that are here
    gemm: dict[str, list[float]] = field(default_factory=dict)  # seconds, by dtype

    def seed_of(self, key: str) -> int:
        """The seed of one entry, whichever entries ran before it."""
        return random.Random(f"{self.seed} {key}").getrandbits(62)

    def sample_gemm(self, dtype: str) -> None:
        """Time the machine's large GEMM again, beside the entry that it is the yardstick of."""
        dtype = gemm_dtype(dtype)
        seconds = self.gemm.setdefault(dtype, [])
        seconds += gemm_seconds(DTYPES[dtype], calls=2 if seconds else 5)


class Measurement(Protocol):
    """One entry to be measured."""

    @property
    def key(self) -> str:
        """Its name in the results."""

    def cost(self, preset: Preset) -> float:
        """About how many seconds it takes."""

    def measure(self, session: Session) -> dict[str, Any]:
        """Do it: an entry of the results file, less its key."""


def contest_cost(case: Case, preset: Preset, entrants: int) -> float:
    """About how many seconds it takes to check and time so many entrants of a case."""
    step = flops(case) / ASSUMED_FLOPS_PER_SECOND + case.seq_len * 1e-5
    return max(preset.seconds, preset.min_rounds * entrants * step) + (entrants + 6) * step


class TimeLeftColumn(ProgressColumn):
    """The time left: the estimate of what is to do, at the pace of what is done.

    rich's own needs many small advances to judge the pace by; entries are few and large.
    """

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        if task.completed > task.fields.get("seen", 0.0):
            task.fields.update(seen=task.completed, seen_at=elapsed)
        seen, seen_at = task.fields.get("seen", 0.0), task.fields.get("seen_at", 0.0)
        pace = seen_at / seen if seen else 1.0
        left = ((task.total or 0.0) - seen) * pace - (elapsed - seen_at)
        return Text(f"{timedelta(seconds=round(max(left, 0.0)))} left", style="progress.remaining")


def run(
    measurements: Sequence[Measurement], results: Results, session: Session, console: Console
) -> None:
    """Measure what the results file does not hold yet; it is valid after every entry."""
    done = results.by_key()
    left = [measurement for measurement in measurements if measurement.key not in done]
    costs = [measurement.cost(session.preset) for measurement in left]
    with Progress(
        TextColumn("{task.fields[finished]}/{task.fields[entries]}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    ) as progress:
        finished = len(measurements) - len(left)
        task = progress.add_task("", total=sum(costs), finished=finished, entries=len(measurements))
        for measurement, cost in zip(left, costs, strict=True):
            progress.update(task, description=measurement.key)
            results.add({"key": measurement.key, **measurement.measure(session)})
            finished += 1
            progress.update(task, advance=cost, finished=finished)
            if not console.is_terminal:
                console.print(f"{finished}/{len(measurements)} {measurement.key}", highlight=False)
    results.finish()
