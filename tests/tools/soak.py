"""The tests that a rounding error could fail by chance, again with many seeds.

    python tests/tools/soak.py --seeds 100        (make soak-tests SEEDS=100)

runs the tests of the kernels under the emulator, of the GPU layer on it, and of what hypothesis
draws. Each seed has a process of its own, forked from one that has loaded torch. Left out is what
has the same inputs in every run: the planted defects, the programs under sanitizers, and what reads
the sources.

At the end: the seeds that failed and their tests, and how near the tensors came to their limits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
NAMES = (
    *("stepwise*", "normalised*", "cluster_*", "grid_*"),
    *("gpu_layer", "gpu_normalised", "properties"),
)
NOT_RANDOM = (
    "test_clean_under_sanitizers",
    "test_defect_is_caught",
    "test_every_mask",
    "test_without_a_defect",
)


@dataclass
class Tally:
    """How near the tensors came to their limits: in fp32 and fp64, and where rounding is drawn."""

    compared: list[int] = field(default_factory=lambda: [0, 0])
    largest: list[float] = field(default_factory=lambda: [0.0, 0.0])  # error / limit

    def add(self, what: str, error: float, allowed: float, is_drawn: bool) -> None:
        self.compared[is_drawn] += 1
        self.largest[is_drawn] = max(self.largest[is_drawn], error / allowed)

    def merge(self, other: dict[str, Any]) -> None:
        for kind in range(2):
            self.compared[kind] += other["compared"][kind]
            self.largest[kind] = max(self.largest[kind], other["largest"][kind])


class Part:
    """The plugin of one seed's pytest: it leaves out tests, and writes down the others' results."""

    def __init__(self) -> None:
        self.tally, self.failed = Tally(), list[str]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not item.name.startswith(NOT_RANDOM)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def files() -> list[str]:
    found = [path for name in NAMES for path in TESTS.rglob(f"test_{name}.py")]
    return sorted({str(path) for path in found})


def run_seed(seed: int, log: Path, selection: Sequence[str]) -> None:
    """In a process of its own: its output goes to the log, what came of it beside that."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import rounding

    part = Part()
    rounding.observers.append(part.tally.add)
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--seed={seed}", *selection]
    status = pytest.main([*arguments, *files()], plugins=[part])
    results = {"failed": part.failed, "status": int(status)} | vars(part.tally)
    log.with_suffix(".json").write_text(json.dumps(results))


def start(seed: int, log: Path, selection: Sequence[str]) -> int:
    child = os.fork()
    if child == 0:
        try:
            run_seed(seed, log, selection)
        finally:
            os._exit(0)
    return child


def soak(seeds: Sequence[int], folder: Path, processes: int, selection: Sequence[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(seeds)
    running: dict[int, tuple[int, float]] = {}  # by process: seed, when it began
    failures: dict[int, list[str]] = {}
    tally, begun, done = Tally(), time.monotonic(), 0
    while waiting or running:
        while waiting and len(running) < processes:
            seed = waiting.pop(0)
            log = folder / f"{seed}.txt"
            log.with_suffix(".json").unlink(missing_ok=True)
            running[start(seed, log, selection)] = seed, time.monotonic()
        child, status = os.wait()
        seed, since = running.pop(child)
        done += 1
        results = folder / f"{seed}.json"
        if results.exists():
            found = json.loads(results.read_text())
            tally.merge(found)
            failed = found["failed"] or ([] if found["status"] == 0 else ["pytest itself"])
        else:
            failed = [f"its process ended with status {status}"]
        if failed:
            failures[seed] = failed
        left = (time.monotonic() - begun) / done * (len(seeds) - done)
        print(
            f"{done} of {len(seeds)}: --seed={seed} {'FAILED' if failed else 'ok'}"
            f" in {time.monotonic() - since:.0f} s; {left / 60:.0f} minutes left",
            flush=True,
        )
    for seed, failed in failures.items():
        print(f"\n--seed={seed} failed, see {folder / str(seed)}.txt:")
        print("\n".join(f"  {name}" for name in failed))
    kinds = ("within the tolerances of fp32 and fp64", "within the limits of rounding")
    for kind, compared, largest in zip(kinds, tally.compared, tally.largest, strict=True):
        print(f"{compared} tensors {kind}: the largest error is {largest:.2f} of its limit")
    print(f"{len(seeds)} seeds, {len(failures)} failed")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--first", type=int, help="the first of them (default: random)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=TESTS.parent / "build" / "soak")
    parser.add_argument("pytest", nargs="*", help="options of pytest, behind --")
    options = parser.parse_args()
    first = options.first
    if first is None:
        first = random.SystemRandom().randrange(2**30)
    os.chdir(TESTS.parent)
    sys.path.insert(0, str(TESTS))
    import torch

    torch.set_num_threads(1)
    seeds = range(first, first + options.seeds)
    return soak(seeds, options.out, options.processes, options.pytest)


if __name__ == "__main__":
    sys.exit(main())
