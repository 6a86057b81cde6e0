"""Defects planted in the text of stepwise's kernels of layer-normalised cells: each must be caught
by the checks of test_normalised.py."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from defects import normalised as defects
from defects import planting
from normalised_problem import Problem, Run, check, check_inference
from problem import draw_lengths, draw_resets

import build

FILES = {
    "stepwise/normalised.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "stepwise/normalised.cu": (defects.LAUNCHES, defects.LAUNCHES_EXPLAINED),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.Copies("normalised", FILES).kernel_with_defects()


def check_defective(
    emulator: build.Emulator, cell: str, pattern: str, states: bool, has_resets: bool, H: int = 40
) -> None:
    """Two warps: so that sums pass between them."""
    T, B = 5, 6
    resets = draw_resets(T, B) if has_resets else None
    lengths = draw_lengths(pattern, T, B)
    options = {"states": states, "cell_states": states, "resets": resets}
    problem = Problem(cell, torch.float64, (T, B, H), lengths, **options)
    run = Run(problem, on=emulator)
    check(problem, run)
    check_inference(problem, run, on=emulator)


DEFECT_CASES = (
    *itertools.product(("gru", "lstm"), ("mixed", "none"), (True, False), (False, True)),
    *itertools.product(("gru", "lstm"), ("mixed",), (True,), (True,), (5,)),
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
