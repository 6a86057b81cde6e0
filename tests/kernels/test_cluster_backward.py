"""The cluster backward kernel, run by the emulator, against the reference in fp64.

The forward pass before it is stepwise's, in the same format. What may differ from the reference in
16 bits and tf32: rounding.py.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from defects import cluster_backward as defects
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
    check_nan_of_a_gradient_stays_in_its_sequence,
    check_same_bits_under_every_schedule,
    problems_with_given,
    with_given,
)
from problem import CELLS, PRECISIONS, Problem, draw_lengths
from torch import Tensor

import build

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
if not build.has_clusters():
    SHAPES = tuple(shape for shape in SHAPES if shape[2] == 1)


def kernel(*tiling: int, tf32: bool = False, on: build.Emulator | None = None) -> Kernel:
    return Kernel("cluster_backward", tiling, tf32, on=on)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell: str, precision: str, seed: int) -> None:
    first = seed // 2 % len(SHAPES)
    shapes = itertools.cycle(SHAPES[first:] + SHAPES[:first])
    patterns = itertools.cycle(("mixed", "none", "short", "full", "long"))
    for index, (T, states) in enumerate(itertools.product((1, 2, 3, 5, 7), (True, False))):
        # Half of the combinations in one run, all of them in two.
        if (index + index // 2 + seed) % 2:
            continue
        H, B, cluster, tiles = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        options = {"states": states, "cell_states": index % 3 != 1}
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, **options)
        without = ()
        if index % 4 == 3:
            problem.dy.zero_()
            without = ("dy",)
        check_backward(problem, kernel(cluster, tiles, tf32=precision == "tf32"), without)


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
        check_backward(problem, kernel(2, 1))


@pytest.mark.parametrize("tiling", [(1, 1), (3, 1)])
def test_nan_stays_behind_a_reset(tiling: tuple[int, ...]) -> None:
    check_nan_of_a_gradient_stays_behind_a_reset(kernel(*tiling), torch.float32, 20)
    check_nan_of_a_gradient_stays_behind_a_reset(kernel(*tiling), torch.float16, 20)


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    lengths = draw_lengths("mixed", 6, 9)
    problem = Problem(cell, torch.float32, (6, 9, 20), lengths, cell_states=True)
    under_test = kernel(3, 1)
    run = Run(problem, backward=under_test)

    def written() -> list[Tensor]:
        return list(run.backward().values())

    schedules = (("shuffle", "random"), ("skew", "late"), ("reverse", "eager"), ("skew", "random"))
    check_same_bits_under_every_schedule(under_test, written, schedules)


def test_the_cluster_size_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (5, 5, 30), None)
    for cluster in (1, 2, 5, 8, 16):
        check_backward(problem, kernel(cluster, 1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_stays_in_its_sequence(precision: str) -> None:
    under_test = kernel(1, 1, tf32=precision == "tf32")
    check_nan_of_a_gradient_stays_in_its_sequence(under_test, PRECISIONS[precision])


def test_first_dgates_may_be_absent() -> None:
    check_first_dgates_may_be_absent(kernel(2, 1))


@pytest.mark.parametrize("batch_size", [3, 9])
def test_gradients_of_biases_may_be_absent(batch_size: int) -> None:
    check_gradients_of_biases_may_be_absent(kernel(2, 1), batch_size)


def test_a_tiling_that_no_instance_holds_is_refused() -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 200))
    with pytest.raises(AssertionError):
        Run(problem, backward=kernel(1, 1)).backward()


@pytest.mark.long
@pytest.mark.parametrize("variant", SANITIZERS)
def test_clean_under_sanitizers(variant: str) -> None:
    check_clean_under_sanitizers("cluster_backward", variant)


# ---------------------------------------------------------------------------------------------
# Defects planted in the text of the kernel: each must be caught by the checks above, under the
# schedules that look for it.

FILES = {
    "cluster/backward.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "warp/backward_pairs.cuh": (shared.BACKWARD_PAIRS, shared.BACKWARD_PAIRS_EXPLAINED),
    "warp/batch_tile.cuh": (shared.BATCH_TILE, {}),
    "warp/bias_gradients.cuh": (shared.BIAS_GRADIENTS, {}),
    "warp/fragments.cuh": (
        shared.FRAGMENTS_OF_ONE_TILE,
        {**shared.FRAGMENTS_EXPLAINED, **shared.FRAGMENTS_OF_ONE_TILE_EXPLAINED},
    ),
    "warp/pairs.cuh": (shared.PAIRS, {}),
    "warp/unit_forward.cuh": (shared.UNIT_FORWARD, shared.UNIT_FORWARD_EXPLAINED),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.build_defects("cluster_backward", FILES)


SHAPES_OF_DEFECTS = ((5, 6, 1, 1), (21, 9, 3, 1), (64, 8, 2, 1))
# Steps that are neither the first nor the last of any sequence; more sources, and batch tiles; a
# block of as few units as there are.
SHAPES_OF_INNER_STEPS = ((40, 12, 5, 2), (8, 9, 4, 1))
DEFECT_CASES = (
    *itertools.product(("lstm",), (torch.float32,), SHAPES_OF_INNER_STEPS, ("long", "cells")),
    *itertools.product(("lstm", "gru"), (torch.float32,), SHAPES_OF_DEFECTS, ("short", "mixed")),
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:2], ("mixed",)),
    ("gru", torch.float16, (10, 3, 1, 1), "nan"),
    *itertools.product(
        ("lstm", "gru"),
        (torch.float32,),
        ((21, 9, 3, 1), (40, 12, 5, 2)),
        ("resets", "masks", "many"),
    ),
    ("lstm", torch.float32, (21, 9, 3, 1), "many_resets"),
    ("lstm", torch.float16, (64, 12, 1, 2), "masks"),  # as many pairs as there is room for
    # Whether a warp that is ahead reads another word than it should is a matter of chance.
    *(("lstm", torch.float32, (40, 12, 5, 2), "resets"),) * 8,
)


def check_defective(
    emulator: build.Emulator,
    cell: str,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    pattern: str,
) -> None:
    H, B, *tiling = sizes
    under_test = kernel(*tiling, on=emulator)
    if pattern == "nan":
        check_nan_of_a_gradient_stays_in_its_sequence(under_test, dtype)
        return
    if pattern in GIVEN_OF_DEFECTS:
        given, T, lengths = GIVEN_OF_DEFECTS[pattern]
        check_backward(with_given(given, cell, dtype, (T, B, H), lengths), under_test)
        return
    cell_states = pattern != "long"
    lengths = draw_lengths("long" if pattern == "cells" else pattern, 6, B)
    check_backward(Problem(cell, dtype, (6, B, H), lengths, cell_states=cell_states), under_test)


@pytest.mark.long
@pytest.mark.parametrize("defect", planting.names_in(FILES))
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective)


def test_every_mask_barrier_and_buffer_has_a_defect() -> None:
    assert planting.unplanted_in(FILES) == []
