"""The cluster backward kernel, run by the emulator, against the reference in fp64.

The forward pass before it is stepwise's, in the same format. What may differ from the reference in
16 bits and tf32: rounding.py.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import rounding
import test_stepwise as stepwise
import torch
from defects import cluster_backward as defects
from defects import planting, shared
from test_stepwise import KERNELS, Problem, Run, build, exact, integers
from torch import Tensor

CELLS = ("tanh", "relu", "gru", "lstm")
PRECISIONS = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# H, B, blocks of a cluster, batch tiles: one unit; blocks with no unit of their own; odd sizes; two
# row tiles and two pairs of units a thread.
SHAPES = (
    (1, 1, 1, 1),
    (3, 2, 4, 1),
    (20, 9, 1, 2),
    (33, 6, 2, 1),
    (24, 20, 3, 2),
    (38, 17, 4, 1),
    (130, 3, 8, 1),
    (32, 33, 1, 3),
)


def draw_lengths(pattern: str, seq_len: int, batch_size: int) -> list[int] | None:
    """As for stepwise, and "short": no sequence reaches the last step."""
    if pattern != "short":
        return stepwise.draw_lengths(pattern, seq_len, batch_size)
    return [min(length, seq_len - 1) for length in draw_lengths("mixed", seq_len, batch_size) or []]


@functools.cache
def driver() -> build.Emulator:
    emulator = build.Emulator(build.shared_library(KERNELS / "cluster_backward_driver.cpp"))
    emulator.configure()
    return emulator


class ClusterRun(Run):
    """Forward by stepwise, backward by the kernel under test."""

    def __init__(
        self,
        emulator: build.Emulator,
        problem: Problem,
        tiling: tuple[int, int] = (1, 1),
        tf32: bool = False,
        without: Sequence[int] = (),  # pointers that are null
    ) -> None:
        super().__init__(stepwise.driver(), problem)
        driver = emulator.library.cluster_backward_driver

        class Library:
            @staticmethod
            def stepwise_backward_driver(
                sizes: Any, reverse: int, lengths: Any, pointers: Any, strides: Any, _: Any
            ) -> int:
                for index in without:
                    pointers[index] = None
                status: int = driver(
                    sizes, reverse, lengths, pointers, strides, integers(*tiling, int(tf32))
                )
                return status

        self.library, self.last_error = Library(), emulator.last_error


def check(problem: Problem, run: Run, tf32: bool = False) -> None:
    """Every gradient of every direction within its limit."""
    actual, expected = run.results(), problem.results(exact)
    names = ("dgates", "dhx", "dweight_hh", *(("dcx",) if problem.cell == "lstm" else ()))
    format = rounding.FORMATS["tf32"] if tf32 else None
    stepwise.check(problem, actual, expected, format, names, forward_factors=False)
    past = ~problem.inside[..., 0]
    assert (actual["dgates"][:, past] == 0).all(), "dgates past the end"
    firsts = run.first_dgates[:, (~problem.inside.any(0))[:, 0]]
    assert (firsts == 0).all(), "first_dgates of an empty sequence"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell: str, precision: str, seed: int) -> None:
    shapes = itertools.cycle(SHAPES[seed % 8 :] + SHAPES[: seed % 8])
    patterns = itertools.cycle(("mixed", "none", "short", "full"))
    for index, (T, states) in enumerate(itertools.product((1, 2, 3, 5, 7), (True, False))):
        H, B, cluster, tiles = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, states=states)
        without = []
        if index % 4 == 3:
            problem.dy.zero_()
            without.append(6)
        tf32 = precision == "tf32"
        check(problem, ClusterRun(driver(), problem, (cluster, tiles), tf32, without), tf32)


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    emulator = driver()
    problem = Problem(cell, torch.float32, (6, 6, 20), draw_lengths("mixed", 6, 6))
    kept: list[Tensor] | None = None
    for order, landing in (
        ("shuffle", "random"),
        ("skew", "late"),
        ("reverse", "eager"),
        ("skew", "random"),
    ):
        run = ClusterRun(emulator, problem, (3, 1))
        emulator.configure(order=order, landing=landing, seed=7)
        first, second = run.backward(), run.backward()
        assert stepwise.is_equal(list(first.values()), list(second.values()))
        assert kept is None or stepwise.is_equal(kept, list(first.values()))
        kept = list(first.values())
    emulator.configure()


def test_the_cluster_size_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (5, 5, 30), None)
    for cluster in (1, 2, 5, 8, 16):
        check(problem, ClusterRun(driver(), problem, (cluster, 1)))


def test_first_dgates_may_be_absent() -> None:
    problem = Problem("gru", torch.float32, (3, 2, 6), [3, 2])
    full, without = (
        ClusterRun(driver(), problem, (2, 1), without=absent) for absent in ((), (12,))
    )
    assert stepwise.is_equal([full.backward()["dgates"]], [without.backward()["dgates"]])


def test_a_tiling_that_no_instance_holds_is_refused() -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 200))
    with pytest.raises(AssertionError):
        ClusterRun(driver(), problem, (1, 1)).backward()


@pytest.mark.parametrize("variant", ["address", "thread"])
def test_clean_under_sanitizers(variant: str) -> None:
    program = build.program(KERNELS / "cluster_backward_program.cpp", variant)
    result = build.run(program, order="skew", landing="late")
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout == "ok\n"


# ---------------------------------------------------------------------------------------------
# Defects planted in the text of the kernel: each must be caught by the checks above, under the
# schedules that look for it.

FILES = {
    "cluster/backward.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "warp/backward_pairs.cuh": (shared.BACKWARD_PAIRS, shared.BACKWARD_PAIRS_EXPLAINED),
    "warp/batch_tile.cuh": (shared.BATCH_TILE, {}),
    "warp/fragments.cuh": (shared.FRAGMENTS_OF_ONE_TILE, shared.FRAGMENTS_EXPLAINED),
    "warp/pairs.cuh": (shared.PAIRS, {}),
    "warp/unit_forward.cuh": (shared.UNIT_FORWARD, shared.UNIT_FORWARD_EXPLAINED),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.build_defects("cluster_backward", FILES)


SHAPES_OF_DEFECTS = ((5, 6, 1), (21, 9, 3), (64, 8, 2))
DEFECT_CASES = (
    *itertools.product(("lstm", "gru"), (torch.float32,), SHAPES_OF_DEFECTS, ("short", "mixed")),
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:2], ("mixed",)),
)


def check_defective(
    emulator: build.Emulator,
    cell: str,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    pattern: str,
) -> None:
    H, B, cluster = sizes
    problem = Problem(cell, dtype, (6, B, H), draw_lengths(pattern, 6, B))
    check(problem, ClusterRun(emulator, problem, (cluster, 1)))


@pytest.mark.long
@pytest.mark.parametrize("defect", planting.names_in(FILES))
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective)


def test_every_mask_barrier_and_buffer_has_a_defect() -> None:
    assert planting.unplanted_in(FILES) == []
