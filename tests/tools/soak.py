"""The tests that a rounding error could fail by chance, again with many seeds.

    python tests/tools/soak.py --seeds 100        (make soak-tests SEEDS=100)

runs the tests of the kernels under the emulator, of the GPU layer on it, and of what hypothesis
draws. Each seed has a process of its own, forked from one that has loaded torch. Every tenth seed
runs with the planted defects too: whether one is caught depends on the inputs as well. Left out is
what has no random inputs: the programs under sanitizers, and what reads the sources.

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
NAMES = ("stepwise*", "cluster_*", "grid_*", "cuda_kernels", "gpu_layer", "properties")
NOT_RANDOM = ("test_clean_under_sanitizers", "test_every_mask")
SEEDS_OF_DEFECTS = 10  # one of so many


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

    def __init__(self, with_defects: bool) -> None:
        self.with_defects, self.tally, self.failed = with_defects, Tally(), list[str]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        left_out = NOT_RANDOM if self.with_defects else (*NOT_RANDOM, "test_defect_is_caught")
        items[:] = [item for item in items if not item.name.startswith(left_out)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def files() -> list[str]:
    found = [path for name in NAMES for path in TESTS.rglob(f"test_{name}.py")]
    return sorted({str(path) for path in found})


def run_seed(seed: int, with_defects: bool, log: Path, selection: Sequence[str]) -> None:
    """In a process of its own: its output goes to the log, what came of it beside that."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import rounding

    part = Part(with_defects)
    rounding.observers.append(part.tally.add)
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--seed={seed}", *selection]
    status = pytest.main([*arguments, *files()], plugins=[part])
    results = {"failed": part.failed, "status": int(status)} | vars(part.tally)
    log.with_suffix(".json").write_text(json.dumps(results))


def start(seed: int, with_defects: bool, log: Path, selection: Sequence[str]) -> int:
    child = os.fork()
    if child == 0:
        try:
            run_seed(seed, with_defects, log, selection)
        finally:
            os._exit(0)
    return child


def soak(
    seeds: Sequence[int], first_place: int, folder: Path, processes: int, selection: Sequence[str]
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(enumerate(seeds, first_place))
    running: dict[int, tuple[int, int, float]] = {}  # by process: place, seed, when it began
    failures: dict[int, list[str]] = {}
    tally, begun, done = Tally(), time.monotonic(), 0
    while waiting or running:
        while waiting and len(running) < processes:
            place, seed = waiting.pop(0)
            log = folder / f"{seed}.txt"
            log.with_suffix(".json").unlink(missing_ok=True)
            child = start(seed, place % SEEDS_OF_DEFECTS == 0, log, selection)
            running[child] = place, seed, time.monotonic()
        child, status = os.wait()
        _, seed, since = running.pop(child)
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
    parser.add_argument("--place", type=int, default=0, help="of the first seed, to go on with")
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
    return soak(seeds, options.place, options.out, options.processes, options.pytest)


if __name__ == "__main__":
    sys.exit(main())
