"""The grid backward kernel, run by the emulator, against the reference in fp64.

As for the cluster backward kernel; here both directions of a layer run in one launch.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from defects import grid_backward as defects
from defects import planting, shared
from kernel_run import (
    CASES_WITH_GIVEN,
    GIVEN,
    GIVEN_OF_DEFECTS,
    MANY_STEPS,
    SANITIZERS,
    Kernel,
    Run,
    check_backward,
    check_clean_under_sanitizers,
    check_first_dgates_may_be_absent,
    check_gradients_of_biases_may_be_absent,
    check_nan_of_a_gradient_stays_behind_a_reset,
    check_same_bits_under_every_schedule,
    is_equal,
    problems_with_given,
    with_given,
)
from problem import CELLS, PRECISIONS, Problem, draw_lengths
from torch import Tensor

import build

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


def kernel(
    *tiling: int, tf32: bool = False, together: bool = True, on: build.Emulator | None = None
) -> Kernel:
    return Kernel("grid_backward", tiling, tf32, together, on)


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
        options = {"states": states, "cell_states": index % 3 != 1}
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, **options)
        without = ()
        if index % 4 == 3:
            problem.dy.zero_()
            without = ("dy",)
        under_test = kernel(*tiling, tf32=precision == "tf32", together=index % 3 != 2)
        check_backward(problem, under_test, without)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_weights_in_shared_memory(cell: str) -> None:
    for dtype, hidden_size in ((torch.float32, 45), (torch.bfloat16, 88)):
        problem = Problem(cell, dtype, (3, 2, hidden_size), None)
        check_backward(problem, kernel(hidden_size // 11, 1, 1))


@pytest.mark.parametrize(("cell", "precision"), CASES_WITH_GIVEN)
def test_resets_and_masks(cell: str, precision: str, seed: int) -> None:
    patterns = ("none", "mixed", "long", "short")
    for problem, tiling in problems_with_given(cell, precision, seed, SHAPES, patterns, True):
        check_backward(problem, kernel(*tiling, tf32=precision == "tf32"))


@pytest.mark.parametrize("cell", CELLS)
def test_resets_of_many_steps(cell: str) -> None:
    for pattern in ("none", "mixed", "long"):
        sizes = (MANY_STEPS, 3, 10)
        problem = with_given(GIVEN[0], cell, torch.float32, sizes, pattern)
        check_backward(problem, kernel(2, 1, 2))


@pytest.mark.parametrize("tiling", [(2, 1, 1)])
def test_nan_stays_behind_a_reset(tiling: tuple[int, ...]) -> None:
    check_nan_of_a_gradient_stays_behind_a_reset(kernel(*tiling), torch.float32, 20)
    check_nan_of_a_gradient_stays_behind_a_reset(kernel(*tiling), torch.float16, 20)


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    lengths = draw_lengths("mixed", 6, 6)
    problem = Problem(cell, torch.float32, (6, 6, 7), lengths, cell_states=True)
    under_test = kernel(4, 1, 2)
    run = Run(problem, backward=under_test)

    def written() -> list[Tensor]:
        return list(run.backward().values())

    schedules = (("shuffle", "random"), ("skew", "late"), ("reverse", "eager"), ("fifo", "random"))
    check_same_bits_under_every_schedule(under_test, written, schedules)


def test_the_division_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (4, 3, 14), None)
    for tiling in ((1, 1, 1), (3, 1, 3), (4, 1, 4), (6, 2, 2), (7, 1, 0)):
        check_backward(problem, kernel(*tiling))


def test_a_direction_alone_gives_the_same_bits() -> None:
    problem = Problem("gru", torch.float16, (3, 5, 10), [3, 1, 2, 3, 0])
    both, alone = (
        Run(problem, backward=kernel(2, 1, 1, together=one)).backward() for one in (True, False)
    )
    assert is_equal(list(both.values()), list(alone.values()))


def test_first_dgates_may_be_absent() -> None:
    check_first_dgates_may_be_absent(kernel(2, 1, 2))


def test_gradients_of_biases_may_be_absent() -> None:
    check_gradients_of_biases_may_be_absent(kernel(2, 1, 2), 3)


@pytest.mark.parametrize("tiling", [(1, 1, 0), (4, 1, 3), (0, 1, 0), (4, 17, 0)])
def test_a_tiling_that_no_instance_holds_is_refused(tiling: tuple[int, int, int]) -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 400))
    with pytest.raises(AssertionError):
        Run(problem, backward=kernel(*tiling)).backward()


@pytest.mark.long
@pytest.mark.parametrize("variant", SANITIZERS)
def test_clean_under_sanitizers(variant: str) -> None:
    check_clean_under_sanitizers("grid_backward", variant, landing="random")


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
    (12, 12, (2, 2, 1), "resets"),
    (12, 12, (2, 2, 1), "masks"),
    (12, 12, (2, 2, 1), "many"),
)
DEFECT_CASES = (
    *itertools.product(("lstm",), (torch.float32,), SHAPES_OF_DEFECTS),
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:2]),
    ("lstm", torch.float32, (32, 12, (1, 2, 1), "masks")),  # as many pairs as there is room for
    # Whether a warp that is ahead reads another word than it should is a matter of chance.
    *(("lstm", torch.float32, (12, 12, (2, 2, 1), "resets")),) * 8,
    ("lstm", torch.float32, (12, 12, (2, 2, 1), "many_resets")),
)


def check_defective(
    emulator: build.Emulator, cell: str, dtype: torch.dtype, case: tuple[int, int, Any, str]
) -> None:
    H, B, tiling, pattern = case
    if pattern in GIVEN_OF_DEFECTS:
        given, T, drawn = GIVEN_OF_DEFECTS[pattern]
        problem = with_given(given, cell, dtype, (T, B, H), drawn)
        check_backward(problem, kernel(*tiling, together=False, on=emulator))
        return
    lengths = [0] * 8 + [5, 2] if pattern == "empty" else draw_lengths(pattern, 5, B)
    problem = Problem(cell, dtype, (5, B, H), lengths, cell_states=True)
    check_backward(problem, kernel(*tiling, together=False, on=emulator))


@pytest.mark.long
@pytest.mark.parametrize("defect", planting.names_in(FILES))
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective)


def test_every_mask_barrier_and_buffer_has_a_defect() -> None:
    assert planting.unplanted_in(FILES) == []
