"""The grid backward kernel, run by the emulator, against the reference in fp64.

As for the cluster backward kernel; here both directions of a layer run in one launch.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import test_stepwise as stepwise
import torch
from defects import grid_backward as defects
from defects import planting, shared
from test_cluster_backward import CELLS, PRECISIONS, check, draw_lengths
from test_stepwise import KERNELS, Problem, Run, build, integers
from torch import Tensor

# H, B, blocks, batch tiles, column teams (0: the kernel's choice). One unit; blocks with no unit of
# their own; two batch tiles, and groups that follow each other; one or two parts of the columns or
# rows, and both.
SHAPES = (
    (1, 1, 1, 1, 0),
    (3, 2, 4, 1, 2),
    (20, 9, 2, 2, 1),
    (9, 18, 4, 1, 2),
    (13, 9, 6, 2, 3),
    (12, 3, 3, 1, 3),
    (26, 3, 2, 1, 2),
    (10, 17, 5, 2, 1),
)
DY = 6  # of the pointers
FIRST_DGATES = 12


@functools.cache
def driver() -> build.Emulator:
    emulator = build.Emulator(build.shared_library(KERNELS / "grid_backward_driver.cpp"))
    emulator.configure()
    return emulator


class GridRun(Run):
    """Forward by stepwise, backward by the kernel under test."""

    def __init__(
        self,
        emulator: build.Emulator,
        problem: Problem,
        tiling: tuple[int, int, int] = (1, 1, 0),
        tf32: bool = False,
        without: Sequence[int] = (),  # pointers that are null
        together: bool = True,  # both directions in one launch
    ) -> None:
        super().__init__(stepwise.driver(), problem)
        driver = emulator.library.grid_backward_driver
        waiting: list[tuple[list[Any], list[Any]]] = []

        class Library:
            @staticmethod
            def stepwise_backward_driver(
                sizes: Any, reverse: int, lengths: Any, pointers: Any, strides: Any, _: Any
            ) -> int:
                for index in without:
                    pointers[index] = None
                if together and reverse == 0:  # waits for the other direction
                    waiting.append((list(pointers), list(strides)))
                    return 0
                directions = 1
                if together:
                    before, strides_before = waiting.pop()
                    pointers = (ctypes.c_void_p * (2 * len(before)))(*before, *pointers)
                    strides = integers(*strides_before, *strides)
                    directions, reverse = 2, 0
                status: int = driver(
                    sizes,
                    directions,
                    reverse,
                    lengths,
                    pointers,
                    strides,
                    integers(*tiling, int(tf32)),
                )
                return status

        self.library, self.last_error = Library(), emulator.last_error


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell: str, precision: str, seed: int) -> None:
    shapes = itertools.cycle(SHAPES[seed % 8 :] + SHAPES[: seed % 8])
    patterns = itertools.cycle(("mixed", "none", "short", "full"))
    for index, (T, states) in enumerate(itertools.product((1, 2, 3, 5, 7), (True, False))):
        # Half of the combinations in one run, all of them in two.
        if (index + index // 2 + seed) % 2:
            continue
        H, B, *tiling = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, states=states)
        without = []
        if index % 4 == 3:
            problem.dy.zero_()
            without.append(DY)
        tf32 = precision == "tf32"
        run = GridRun(driver(), problem, tuple(tiling), tf32, without, together=index % 3 != 2)
        check(problem, run, tf32)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_weights_in_shared_memory(cell: str) -> None:
    for dtype, hidden_size in ((torch.float32, 45), (torch.bfloat16, 88)):
        problem = Problem(cell, dtype, (3, 2, hidden_size), None)
        check(problem, GridRun(driver(), problem, (hidden_size // 11, 1, 1)))


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    emulator = driver()
    problem = Problem(cell, torch.float32, (6, 6, 7), draw_lengths("mixed", 6, 6))
    kept: list[Tensor] | None = None
    for order, landing in (
        ("shuffle", "random"),
        ("skew", "late"),
        ("reverse", "eager"),
        ("fifo", "random"),
    ):
        run = GridRun(emulator, problem, (4, 1, 2))
        emulator.configure(order=order, landing=landing, seed=7)
        first, second = run.backward(), run.backward()
        assert stepwise.is_equal(list(first.values()), list(second.values()))
        assert kept is None or stepwise.is_equal(kept, list(first.values()))
        kept = list(first.values())
    emulator.configure()


def test_the_division_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (4, 3, 14), None)
    for tiling in ((1, 1, 1), (3, 1, 3), (4, 1, 4), (6, 2, 2), (7, 1, 0)):
        check(problem, GridRun(driver(), problem, tiling))


def test_a_direction_alone_gives_the_same_bits() -> None:
    problem = Problem("gru", torch.float16, (3, 5, 10), [3, 1, 2, 3, 0])
    both, alone = (GridRun(driver(), problem, (2, 1, 1), together=one) for one in (True, False))
    assert stepwise.is_equal(list(both.backward().values()), list(alone.backward().values()))


def test_first_dgates_may_be_absent() -> None:
    problem = Problem("gru", torch.float32, (3, 2, 6), [3, 2])
    full, without = (
        GridRun(driver(), problem, (2, 1, 2), without=absent) for absent in ((), (FIRST_DGATES,))
    )
    assert stepwise.is_equal([full.backward()["dgates"]], [without.backward()["dgates"]])


@pytest.mark.parametrize("tiling", [(1, 1, 0), (4, 1, 3), (0, 1, 0), (4, 17, 0)])
def test_a_tiling_that_no_instance_holds_is_refused(tiling: tuple[int, int, int]) -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 400))
    with pytest.raises(AssertionError):
        GridRun(driver(), problem, tiling).backward()


@pytest.mark.parametrize("variant", ["address", "thread"])
def test_clean_under_sanitizers(variant: str) -> None:
    program = build.program(KERNELS / "grid_backward_program.cpp", variant)
    result = build.run(program, order="skew", landing="random")
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout == "ok\n"


# ---------------------------------------------------------------------------------------------
# Defects planted in the text of the kernel: each must be caught by the checks above, under the
# schedules that look for it.

# Those of a pair of units, and of lengths, are planted in test_cluster_backward.py.
FILES = {
    "grid/backward.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "grid/exchange.cuh": (
        (*shared.GRID_EXCHANGE, *shared.COUNTED_EXCHANGE),
        shared.GRID_EXCHANGE_EXPLAINED,
    ),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.build_defects("grid_backward", FILES)


# Groups that follow each other, of which the first may be empty; two batch tiles; weights in shared
# memory; a direction alone and both.
SHAPES_OF_DEFECTS = (
    (11, 10, (2, 1, 2), "short"),
    (5, 10, (2, 1, 1), "empty"),
    (20, 9, (2, 2, 2), "short"),
    (12, 12, (2, 2, 1), "short"),
    (34, 1, (3, 1, 1), "short"),
)
DEFECT_CASES = (
    *itertools.product(("lstm",), (torch.float32,), SHAPES_OF_DEFECTS),
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:2]),
)


def check_defective(
    emulator: build.Emulator, cell: str, dtype: torch.dtype, case: tuple[int, int, Any, str]
) -> None:
    H, B, tiling, pattern = case
    lengths = [0] * 8 + [5, 2] if pattern == "empty" else draw_lengths(pattern, 5, B)
    problem = Problem(cell, dtype, (5, B, H), lengths)
    check(problem, GridRun(emulator, problem, tiling, together=False))


@pytest.mark.long
@pytest.mark.parametrize("defect", planting.names_in(FILES))
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective)


def test_every_mask_barrier_and_buffer_has_a_defect() -> None:
    assert planting.unplanted_in(FILES) == []
