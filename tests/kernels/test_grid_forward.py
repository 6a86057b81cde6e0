"""The grid forward kernel, run by the emulator, against the reference in fp64.

The backward pass behind it is stepwise's, in the same format: so what the kernel leaves in the
reserve is judged by the gradients. What may differ from the reference in 16 bits and tf32:
rounding.py.
"""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import rounding
import test_stepwise as stepwise
import torch
from defects import grid_forward as defects
from defects import planting, shared
from test_cluster_backward import CELLS, PRECISIONS, draw_lengths
from test_stepwise import KERNELS, NAN, Problem, Run, build, exact, integers, is_equal
from torch import Tensor

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


@functools.cache
def driver() -> build.Emulator:
    emulator = build.Emulator(build.shared_library(KERNELS / "grid_forward_driver.cpp"))
    emulator.configure()
    return emulator


class GridRun(Run):
    """Forward by the kernel under test, both directions in one launch or each alone; backward by
    stepwise."""

    def __init__(
        self,
        emulator: build.Emulator,
        problem: Problem,
        tiling: tuple[int, int, int] = (1, 1, 1),
        tf32: bool = False,
        num_directions: int = 2,
        save_reserve: bool = True,
        in_place: bool = False,
    ) -> None:
        waiting: list[Any] = []

        def forward(
            sizes: Any, d: int, save: int, lengths: Any, pointers: Any, strides: Any, _: Any
        ) -> int:
            waiting.extend(pointers)
            if num_directions == 2 and d == 0:
                return 0
            given = (type(pointers)._type_ * len(waiting))(*waiting)
            waiting.clear()
            status: int = emulator.library.grid_forward_driver(
                sizes, num_directions, d, save, lengths, given, strides, integers(*tiling, tf32)
            )
            return status

        library = SimpleNamespace(
            stepwise_forward_driver=forward,
            stepwise_backward_driver=stepwise.driver().library.stepwise_backward_driver,
        )
        self.emulator = SimpleNamespace(library=library, last_error=emulator.last_error)
        super().__init__(self.emulator, problem, save_reserve, in_place)  # type: ignore[arg-type]

    def written(self) -> list[Tensor]:
        return [self.output, self.hy, self.cy, self.gates]


def check(problem: Problem, run: Run, tf32: bool = False) -> None:
    format = rounding.FORMATS["tf32"] if tf32 else None
    stepwise.check(problem, run.results(), problem.results(exact), format, backward_factors=False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_reserve(cell: str, precision: str, seed: int) -> None:
    emulator = driver()
    tf32 = precision == "tf32"
    shapes = itertools.cycle(SHAPES[seed % 8 :] + SHAPES[: seed % 8])
    patterns = itertools.cycle(("mixed", "none", "short", "full"))
    for index, T in enumerate(stepwise.SEQUENCE_LENGTHS):
        H, B, *tiling = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        bias, states = stepwise.OPTIONS[(index + seed) % 4]
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, bias, states)
        run = GridRun(emulator, problem, tuple(tiling), tf32, 1 if index == 3 else 2)
        check(problem, run, tf32)
        if T != 2:
            continue
        inference = GridRun(emulator, problem, tuple(tiling), tf32, save_reserve=False)
        assert is_equal(run.written()[:3], inference.written()[:3])
        given = torch.where(problem.inside, problem.gates, NAN)
        assert is_equal([inference.gates[..., : given.size(3)]], [given]), "inference keeps nothing"
        if cell in ("tanh", "relu"):
            in_place = GridRun(emulator, problem, tuple(tiling), tf32, in_place=True)
            assert is_equal([run.output, run.hy], [in_place.output, in_place.hy])


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    emulator = driver()
    kept: list[Tensor] | None = None
    problem = Problem(cell, torch.float32, (7, 9, 20), draw_lengths("mixed", 7, 9))
    for order, landing in (
        ("shuffle", "random"),
        ("fifo", "eager"),
        ("reverse", "random"),
        ("skew", "late"),
    ):
        emulator.configure(order=order, landing=landing, seed=7)
        written = GridRun(emulator, problem, (2, 1, 1)).written()
        assert kept is None or is_equal(kept, written)
        kept = written
    emulator.configure()


def test_the_tiling_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (5, 19, 30), None)
    for tiling in ((3, 1, 1), (4, 1, 2), (5, 2, 1), (8, 2, 2), (16, 1, 9)):
        check(problem, GridRun(driver(), problem, tiling))


def test_nan_stays_in_its_sequence() -> None:
    problem = Problem("gru", torch.float32, (4, 3, 9))
    clean = GridRun(driver(), problem)
    problem.gates[:, 2, 1] = NAN
    run = GridRun(driver(), problem)
    assert run.hy[:, 1].isnan().all()
    assert is_equal([run.hy[:, [0, 2]]], [clean.hy[:, [0, 2]]])


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
        GridRun(driver(), problem, tiling)


@pytest.mark.parametrize("variant", ["address", "thread"])
def test_clean_under_sanitizers(variant: str) -> None:
    program = build.program(KERNELS / "grid_forward_program.cpp", variant)
    result = build.run(program, order="skew", landing="random")
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout == "ok\n"


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
    lengths = draw_lengths(pattern, 6, B)
    if pattern == "empty":  # the first group
        lengths = [0 if b < 16 else 6 - b % 3 for b in range(B)]
    problem = Problem(cell, dtype, (6, B, H), lengths)
    run = GridRun(emulator, problem, tiling)
    check(problem, run)
    assert run.gates[:, ~problem.inside[..., 0]].isnan().all(), "the reserve past the end"
    if pattern == "mixed":
        inference = GridRun(emulator, problem, tiling, save_reserve=False)
        assert is_equal(run.written()[:3], inference.written()[:3])
        given = inference.gates[..., : problem.gates.size(3)]
        assert is_equal([given], [torch.where(problem.inside, problem.gates, NAN)])


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
DEFECT_CASES = (
    *itertools.product(("lstm", "gru"), (torch.float32,), SHAPES_OF_DEFECTS),
    *itertools.product(("lstm",), (torch.float16,), SHAPES_OF_DEFECTS[:3]),
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
