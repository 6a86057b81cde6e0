"""The cluster forward kernel, run by the emulator, against the reference in fp64.

What it keeps for backward is judged by the gradients that stepwise makes of it. What may differ
from the reference in 16 bits and tf32: rounding.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from conftest import relative_error
from defects import cluster_forward as defects
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
from problem import CELLS, PRECISIONS, Problem, draw_lengths, exact
from torch import Tensor

import build

# H, B, blocks of a cluster, batch tiles, split of K: one unit; one sequence, of many units; rows of
# all alignments; a last block with fewer groups; weights in shared memory; a split whose last part
# is smaller, and one whose warps own different numbers of batch tiles.
SHAPES = (
    (1, 9, 1, 1, 1),
    (20, 9, 2, 4, 1),
    (33, 6, 3, 1, 1),
    (24, 33, 1, 4, 1),
    (48, 3, 3, 1, 2),
    (34, 8, 2, 1, 2),
    (130, 1, 9, 1, 3),
    (40, 33, 1, 1, 1),
    (64, 5, 4, 1, 1),
    (80, 26, 5, 4, 3),
)
if not build.has_clusters():
    SHAPES = tuple(shape for shape in SHAPES if shape[2] == 1)


def kernel(*tiling: int, tf32: bool = False, on: build.Emulator | None = None) -> Kernel:
    return Kernel("cluster_forward", tiling, tf32, on=on)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_reserve(cell: str, precision: str, seed: int) -> None:
    first = seed // 2 % len(SHAPES)
    shapes = itertools.cycle(SHAPES[first:] + SHAPES[:first])
    patterns = itertools.cycle(("mixed", "none", "short", "full"))
    biases = itertools.cycle((True, True, False))
    tf32 = precision == "tf32"
    for index, (T, states) in enumerate(itertools.product((1, 2, 3, 5, 7), (True, False))):
        # Half of the combinations in one run, all of them in two.
        if (index + index // 2 + seed) % 2:
            continue
        H, B, *tiling = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, next(biases), states)
        under_test = kernel(*tiling, tf32=tf32)
        run = check_forward(problem, under_test)
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
        check_forward(problem, kernel(1, 1, 1))


@pytest.mark.parametrize("tiling", [(1, 1, 1), (2, 1, 1)])
def test_nan_stays_before_a_reset(tiling: tuple[int, int, int]) -> None:
    check_nan_stays_before_a_reset(kernel(*tiling), torch.float32, 20)
    check_nan_stays_before_a_reset(kernel(*tiling), torch.float16, 20)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_few_sequences(cell: str, batch_size: int) -> None:
    """In fp32 they are multiplied without the matrix units."""
    for T, H, tiling, pattern in (
        (1, 5, (1, 1, 1), "none"),
        (2, 34, (2, 1, 2), "full"),
        (3, 70, (3, 1, 1), "mixed"),  # weights in shared memory
        (5, 130, (9, 1, 3), "short"),
        (5, 24, (1, 1, 1), "mixed"),
    ):
        problem = Problem(
            cell, torch.float32, (T, batch_size, H), draw_lengths(pattern, T, batch_size)
        )
        check_forward(problem, kernel(*tiling))


@pytest.mark.parametrize("tiling", [(4, 1, 1), (4, 4, 2)])
def test_ieee_sums_do_not_drift(tiling: tuple[int, int, int]) -> None:
    """The matrix units cut what they add: summed up by them alone, all columns drift towards 0."""
    problem = Problem("tanh", torch.float32, (1, 20, 256), None)
    run = Run(problem, forward=kernel(*tiling))
    wanted = problem.results(exact)["output"]
    assert problem.hx is not None
    assert problem.bias_ih is not None and problem.bias_hh is not None
    product = torch.bmm(problem.hx, problem.weight_hh.transpose(1, 2))
    bias = (problem.bias_ih + problem.bias_hh)[:, None]
    plain = torch.tanh(problem.gates[:, 0] + product + bias)  # [2, B, H]
    in_fp32 = relative_error(plain.transpose(0, 1).reshape(1, 20, 512), wanted)
    error = relative_error(run.output, wanted)
    assert error <= 2 * in_fp32, f"relative error {error:.3g}, in plain fp32 {in_fp32:.3g}"


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    problem = Problem(cell, torch.float32, (6, 6, 40), draw_lengths("mixed", 6, 6))
    under_test = kernel(3, 1, 2)

    def written() -> list[Tensor]:
        run = Run(problem, forward=under_test)
        return [*run.states(), run.gates]

    schedules = (("shuffle", "random"), ("skew", "late"), ("reverse", "eager"), ("skew", "random"))
    check_same_bits_under_every_schedule(under_test, written, schedules)


def test_the_tiling_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (5, 5, 64), None)
    for tiling in ((1, 1, 1), (2, 1, 2), (3, 1, 1), (4, 4, 2), (8, 1, 4)):
        check_forward(problem, kernel(*tiling))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_stays_in_its_sequence(precision: str) -> None:
    under_test = kernel(1, 1, 1, tf32=precision == "tf32")
    check_nan_stays_in_its_sequence(under_test, PRECISIONS[precision])


@pytest.mark.parametrize(
    "tiling",
    [
        (1, 1, 1),  # more groups than warps
        (16, 1, 1),  # a block without a group
        (8, 1, 8),  # a warp without columns
        (13, 8, 1),  # batch tiles that are not compiled
        (17, 1, 1),
    ],
)
def test_a_tiling_that_no_instance_holds_is_refused(tiling: tuple[int, int, int]) -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 100))
    with pytest.raises(AssertionError):
        Run(problem, forward=kernel(*tiling))


@pytest.mark.long
@pytest.mark.parametrize("variant", SANITIZERS)
def test_clean_under_sanitizers(variant: str) -> None:
    check_clean_under_sanitizers("cluster_forward", variant)


# ---------------------------------------------------------------------------------------------
# Defects planted in the text of the kernel: each must be caught by the checks above, under the
# schedules that look for it.

FILES = {
    "cluster/forward.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "warp/batch_tile.cuh": (shared.BATCH_TILE, {}),
    "warp/fragments.cuh": (
        (*shared.FRAGMENTS, *shared.FRAGMENTS_OF_FEW_COLUMNS),
        shared.FRAGMENTS_EXPLAINED,
    ),
    "warp/resets.cuh": (shared.RESETS, shared.RESETS_EXPLAINED),
    "warp/unit_forward.cuh": ((*shared.UNIT_FORWARD, *shared.UNIT_BIAS), {}),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.build_defects("cluster_forward", FILES, ("kTanh", "kGru", "kLstm"))


def check_defective(
    emulator: build.Emulator,
    cell: str,
    dtype: torch.dtype,
    case: tuple[tuple[int, int], Any],
    pattern: str,
) -> None:
    (H, B), tiling = case
    under_test = kernel(*tiling, on=emulator)
    if pattern == "nan":
        check_nan_stays_in_its_sequence(under_test, dtype, H)
        return
    if pattern in GIVEN_OF_DEFECTS:
        given, T, lengths = GIVEN_OF_DEFECTS[pattern]
        check_forward(with_given(given, cell, dtype, (T, B, H), lengths), under_test)
        return
    problem = Problem(cell, dtype, (6, B, H), draw_lengths(pattern, 6, B))
    run = check_forward(problem, under_test)
    if cell != "tanh":
        assert run.gates[:, ~problem.inside[..., 0]].isnan().all(), "the reserve past the end"
    if pattern == "mixed":
        check_inference(problem, under_test, run)


SHAPES_OF_DEFECTS = (
    ((5, 10), (1, 2, 1)),
    ((21, 6), (2, 2, 1)),
    ((48, 18), (3, 2, 3)),
    ((40, 3), (3, 2, 2)),
    ((40, 3), (1, 2, 1)),
    ((96, 2), (6, 2, 1)),
    ((96, 3), (6, 2, 1)),
)
# One block, and several.
SHAPES_OF_GIVEN = (((21, 9), (1, 2, 1)), ((40, 9), (3, 2, 1)))
DEFECT_CASES = (
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:2], ("mixed",)),
    ("tanh", torch.float16, ((32, 10), (1, 2, 1)), "mixed"),
    ("lstm", torch.float16, ((64, 5), (4, 2, 1)), "mixed"),  # whole groups of peers
    ("gru", torch.float16, ((5, 3), (1, 2, 1)), "nan"),
    *itertools.product(
        ("lstm", "gru"), (torch.float32,), SHAPES_OF_GIVEN, ("resets", "masks", "many")
    ),
    ("lstm", torch.float32, ((96, 2), (6, 2, 1)), "full"),  # few sequences, each with all steps
    *itertools.product(("lstm", "gru"), (torch.float32,), SHAPES_OF_DEFECTS, ("short", "mixed")),
    ("lstm", torch.float32, ((130, 3), (9, 2, 1)), "resets"),  # a row is more than 32 pieces
)


@pytest.mark.long
@pytest.mark.parametrize("defect", planting.names_in(FILES))
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective)


def test_every_mask_barrier_and_buffer_has_a_defect() -> None:
    assert planting.unplanted_in(FILES) == []
