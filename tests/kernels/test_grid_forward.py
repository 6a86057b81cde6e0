"""The grid forward kernel, run by the emulator, against the reference in fp64.

The backward pass behind it is stepwise's, in the same format: so what the kernel leaves in the
reserve is judged by the gradients. What may differ from the reference in 16 bits and tf32:
rounding.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from defects import grid_forward as defects
from defects import planting, shared
from kernel_run import (
    CASES_WITH_GIVEN,
    GIVEN,
    GIVEN_OF_DEFECTS,
    MANY_STEPS,
    SANITIZERS,
    Kernel,
    Run,
    check_clean_under_sanitizers,
    check_forward,
    check_in_place,
    check_inference,
    check_nan_stays_before_a_reset,
    check_nan_stays_in_its_sequence,
    check_same_bits_under_every_schedule,
    problems_with_given,
    with_given,
)
from problem import CELLS, PRECISIONS, Problem, draw_lengths
from torch import Tensor

import build

# H, B, blocks of a direction, batch tiles, groups at once. H: one unit; blocks with no unit of
# their own; odd; K split over both warps, and over pieces; weights in shared memory. B: one group,
# several in turn, side by side, and both.
SHAPES = (
    (1, 1, 1, 1, 1),
    (9, 3, 4, 1, 1),
    (20, 9, 2, 1, 1),
    (37, 17, 4, 1, 2),
    (33, 17, 3, 2, 1),
    (64, 10, 6, 1, 3),
    (61, 2, 7, 1, 1),
    (50, 18, 4, 2, 2),
)
OPTIONS = tuple(itertools.product((True, False), repeat=2))  # bias, states


def kernel(
    *tiling: int, tf32: bool = False, together: bool = True, on: build.Emulator | None = None
) -> Kernel:
    return Kernel("grid_forward", tiling, tf32, together, on)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_reserve(cell: str, precision: str, seed: int) -> None:
    shapes = itertools.cycle(SHAPES[seed % 8 :] + SHAPES[: seed % 8])
    patterns = itertools.cycle(("mixed", "none", "short", "full"))
    for index, T in enumerate((1, 2, 3, 5, 7)):
        H, B, *tiling = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        bias, states = OPTIONS[(index + seed) % 4]
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, bias, states)
        under_test = kernel(*tiling, tf32=precision == "tf32", together=index != 3)
        run = check_forward(problem, under_test)
        if T == 2:
            check_inference(problem, under_test, run)
            check_in_place(problem, under_test, run)


@pytest.mark.parametrize(("cell", "precision"), CASES_WITH_GIVEN)
def test_resets_and_masks(cell: str, precision: str, seed: int) -> None:
    patterns = ("none", "mixed", "none", "short")
    for problem, tiling in problems_with_given(cell, precision, seed, SHAPES, patterns):
        under_test = kernel(*tiling, tf32=precision == "tf32")
        run = check_forward(problem, under_test)
        check_inference(problem, under_test, run)
        check_in_place(problem, under_test, run)


@pytest.mark.parametrize("cell", CELLS)
def test_resets_of_many_steps(cell: str) -> None:
    for pattern in ("none", "mixed"):
        sizes = (MANY_STEPS, 3, 10)
        problem = with_given(GIVEN[0], cell, torch.float32, sizes, pattern)
        check_forward(problem, kernel(2, 1, 1))


@pytest.mark.parametrize("tiling", [(2, 1, 1)])
def test_nan_stays_before_a_reset(tiling: tuple[int, int, int]) -> None:
    check_nan_stays_before_a_reset(kernel(*tiling), torch.float32, 20)
    check_nan_stays_before_a_reset(kernel(*tiling), torch.float16, 20)


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    problem = Problem(cell, torch.float32, (7, 9, 20), draw_lengths("mixed", 7, 9))
    under_test = kernel(2, 1, 1)

    def written() -> list[Tensor]:
        run = Run(problem, forward=under_test)
        return [*run.states(), run.gates]

    schedules = (("shuffle", "random"), ("fifo", "eager"), ("reverse", "random"), ("skew", "late"))
    check_same_bits_under_every_schedule(under_test, written, schedules)


def test_the_tiling_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (5, 19, 30), None)
    for tiling in ((3, 1, 1), (4, 1, 2), (5, 2, 1), (8, 2, 2), (16, 1, 9)):
        check_forward(problem, kernel(*tiling))


def test_nan_stays_in_its_sequence() -> None:
    check_nan_stays_in_its_sequence(kernel(1, 1, 1))


@pytest.mark.parametrize(
    "tiling",
    [
        (1, 1, 1),  # more units than a block holds
        (4, 3, 1),  # batch tiles that are not compiled
        (0, 1, 1),
        (4, 1, 0),
    ],
)
def test_a_tiling_that_no_instance_holds_is_refused(tiling: tuple[int, int, int]) -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 40))
    with pytest.raises(AssertionError):
        Run(problem, forward=kernel(*tiling))


@pytest.mark.long
@pytest.mark.parametrize("variant", SANITIZERS)
def test_clean_under_sanitizers(variant: str) -> None:
    check_clean_under_sanitizers("grid_forward", variant, landing="random")


# ---------------------------------------------------------------------------------------------
# Defects planted in the text of the kernel: each must be caught by the checks above, under the
# schedules that look for it.

FILES = {
    "grid/forward.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "grid/exchange.cuh": (shared.GRID_EXCHANGE, shared.GRID_EXCHANGE_EXPLAINED),
    "warp/batch_tile.cuh": (shared.BATCH_TILE, {}),
    "warp/unit_forward.cuh": ((*shared.UNIT_FORWARD, *shared.UNIT_BIAS), {}),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.build_defects("grid_forward", FILES)


def check_defective(
    emulator: build.Emulator,
    cell: str,
    dtype: torch.dtype,
    case: tuple[tuple[int, int], Any, str],
) -> None:
    (H, B), tiling, pattern = case
    if pattern in GIVEN_OF_DEFECTS:
        given, T, drawn = GIVEN_OF_DEFECTS[pattern]
        problem = with_given(given, cell, dtype, (T, B, H), drawn)
        check_forward(problem, kernel(*tiling, on=emulator))
        return
    lengths = draw_lengths(pattern, 6, B)
    if pattern == "empty":  # the first group
        lengths = [0 if b < 16 else 6 - b % 3 for b in range(B)]
    problem = Problem(cell, dtype, (6, B, H), lengths)
    under_test = kernel(*tiling, on=emulator)
    run = check_forward(problem, under_test)
    assert run.gates[:, ~problem.inside[..., 0]].isnan().all(), "the reserve past the end"
    if pattern == "mixed":
        check_inference(problem, under_test, run)


# Warps without columns, blocks without units; weights in shared memory; groups in turn; side by
# side.
SHAPES_OF_DEFECTS = (
    ((9, 18), (4, 2, 1), "short"),
    ((5, 3), (4, 2, 1), "mixed"),
    ((40, 2), (4, 2, 1), "mixed"),
    ((20, 18), (2, 2, 1), "mixed"),
    ((6, 34), (2, 2, 2), "short"),
    ((6, 34), (2, 2, 1), "empty"),
)
SHAPES_OF_GIVEN = (
    ((9, 18), (4, 2, 1), "resets"),
    ((9, 18), (4, 2, 1), "masks"),
    ((20, 18), (2, 2, 1), "masks"),  # more cells than half of those there is room for
    ((9, 3), (4, 2, 1), "many"),
)
DEFECT_CASES = (
    *itertools.product(("lstm", "gru"), (torch.float32,), SHAPES_OF_GIVEN),
    *itertools.product(("lstm", "gru"), (torch.float32,), SHAPES_OF_DEFECTS),
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:3]),
    ("lstm", torch.float32, ((2, 3), (8, 2, 1), "many")),  # blocks without units fall far behind
)


DEFECTS = [
    name
    for name in planting.names_in(FILES)
    if build.front_end == "cpp" or name not in defects.NOT_IN_PTX
]


@pytest.mark.long
@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective)


def test_every_mask_barrier_and_buffer_has_a_defect() -> None:
    assert planting.unplanted_in(FILES) == []
