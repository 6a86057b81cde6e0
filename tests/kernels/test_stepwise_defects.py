"""Defects planted in the text of the stepwise kernels: each must be caught by the checks of
test_stepwise.py."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from defects import planting
from defects import stepwise as defects
from kernel_run import Kernel, Run, check_inference
from problem import Problem, check, draw_lengths, draw_resets, exact
from test_stepwise import CELLS

import build

FILES = {
    "stepwise/stepwise.cuh": (defects.KERNEL, defects.KERNEL_EXPLAINED),
    "stepwise/stepwise.cu": (defects.LAUNCHES, {}),
    "stepwise/reset_before.cuh": (defects.RESET_BEFORE, defects.RESET_BEFORE_EXPLAINED),
    "stepwise/reset_before_launch.cuh": (defects.RESET_BEFORE_LAUNCHES, {}),
}


@functools.cache
def defective_kernel() -> planting.DefectiveKernel:
    return planting.build_stepwise_defects(FILES)


def check_defective(
    emulator: build.Emulator,
    cell: str,
    pattern: str,
    states: bool,
    has_resets: bool,
    regularisers: str = "none",
) -> None:
    lengths = draw_lengths(pattern, 5, 6)
    options: dict[str, Any] = {
        "states": states,
        "cell_states": states,
        "regularisers": regularisers,
    }
    resets = draw_resets(5, 6) if has_resets else None
    problem = Problem(cell, torch.float32, (5, 6, 3), lengths, resets=resets, **options)
    forward, backward = (Kernel(f"stepwise_{p}", on=emulator) for p in ("forward", "backward"))
    run = Run(problem, forward, backward)
    check(problem, run.results(), problem.results(exact))
    first = run.first_dgates[:, ~problem.inside.any(0)[:, 0]]
    assert (first == 0).all(), "first_dgates of an empty sequence"
    check_inference(problem, forward, run)


DEFECT_CASES = (
    *itertools.product(CELLS, ("mixed", "none"), (True, False), (False, True)),
    *((cell, "mixed", True, True, kind) for cell in CELLS for kind in ("dropout", "zoneout")),
    *((cell, "none", True, False, kind) for cell in CELLS for kind in ("h", "c", "expectation")),
)


@pytest.mark.long
@pytest.mark.parametrize("defect", planting.names_in(FILES))
def test_defect_is_caught(defect: str) -> None:
    planting.assert_caught(defective_kernel(), defect, DEFECT_CASES, check_defective)


@pytest.mark.long
def test_without_a_defect_all_is_well() -> None:
    planting.assert_well(defective_kernel(), DEFECT_CASES, check_defective, with_program=False)


def test_every_mask_has_a_defect() -> None:
    kernels = ("stepwise/stepwise.cuh", "stepwise/reset_before.cuh")
    assert planting.unplanted_in({name: FILES[name] for name in kernels}) == []
