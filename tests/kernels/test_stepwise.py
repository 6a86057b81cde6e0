"""The stepwise kernels, run by the emulator, against the reference in fp64.

What may differ from it in 16 bits and tf32: rounding.py.
"""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch
from kernel_run import (
    SANITIZERS,
    Kernel,
    Run,
    addresses,
    check_clean_under_sanitizers,
    check_in_place,
    check_inference,
    check_nan_stays_in_its_sequence,
    check_same_bits_under_every_schedule,
    emulator,
    integers,
    pointers,
    sizes_of,
)
from problem import ALL_CELLS, DTYPES, Problem, check, draw_lengths, draw_resets, exact
from torch import Tensor

CELLS = (*ALL_CELLS, "lstm_proj")
GEMM_ERROR = 77  # of the driver's product

SEQUENCE_LENGTHS = (1, 2, 3, 5, 7)
OPTIONS = tuple(itertools.product((True, False), repeat=2))  # bias, states
SHAPES = ((1, 1), (6, 5), (3, 33), (7, 8), (2, 130))  # B, H: 130 units are two blocks


@pytest.mark.parametrize("pattern", ["none", "full", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[1])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell: str, dtype: torch.dtype, pattern: str, seed: int) -> None:
    shapes = itertools.cycle(SHAPES[seed % 5 :] + SHAPES[: seed % 5])
    for index, (T, (bias, states)) in enumerate(itertools.product(SEQUENCE_LENGTHS, OPTIONS)):
        # Half of the combinations of T and options in one run, all of them in two.
        if (index + index // len(OPTIONS) + seed) % 2:
            continue
        B, H = next(shapes)
        lengths = draw_lengths(pattern, T, B)
        problem = Problem(cell, dtype, (T, B, H), lengths, bias, states, cell_states=states)
        run = Run(problem)
        check(problem, run.results(), problem.results(exact))
        check_inference(problem, Kernel("stepwise_forward"), run)
        check_in_place(problem, Kernel("stepwise_forward"), run)


@pytest.mark.parametrize("pattern", ["none", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[1])
@pytest.mark.parametrize("cell", CELLS)
def test_resets(cell: str, dtype: torch.dtype, pattern: str) -> None:
    for T, B, H, states in ((1, 5, 3, True), (2, 6, 5, False), (5, 7, 8, True), (7, 4, 33, True)):
        lengths, resets = draw_lengths(pattern, T, B), draw_resets(T, B)
        options = {"states": states, "cell_states": states, "resets": resets}
        problem = Problem(cell, dtype, (T, B, H), lengths, **options)
        run = Run(problem)
        check(problem, run.results(), problem.results(exact))
        check_inference(problem, Kernel("stepwise_forward"), run)


@pytest.mark.parametrize("kind", ["dropout", "zoneout", "expectation", "h", "c"])
@pytest.mark.parametrize("cell", CELLS)
def test_regularisers(cell: str, kind: str) -> None:
    if kind in ("h", "c") and not cell.startswith("lstm"):
        return  # "h" is what zoneout is then, "c" there is none
    for index, dtype in enumerate(DTYPES):
        T, B, H = ((2, 6, 5), (5, 7, 8), (1, 4, 33), (4, 5, 20))[index]
        for has_lengths in (False, True) if dtype == torch.float32 else (index % 2 == 0,):
            lengths = draw_lengths("mixed" if has_lengths else "none", T, B)
            resets = draw_resets(T, B) if index % 2 else None
            options = {"resets": resets, "cell_states": True, "regularisers": kind}
            problem = Problem(cell, dtype, (T, B, H), lengths, states=index != 2, **options)
            run = Run(problem)
            check(problem, run.results(), problem.results(exact))
            check_inference(problem, Kernel("stepwise_forward"), run)


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_run_is_bitwise_equal(cell: str) -> None:
    """Under another schedule of the threads, too; and a second backward."""
    problem = Problem(cell, torch.float32, (5, 6, 33), draw_lengths("mixed", 5, 6))

    def written() -> list[Tensor]:
        run = Run(problem)
        return [*run.states(), run.gates, *run.backward().values()]

    schedules = (("shuffle", "random"), ("reverse", "random"))
    check_same_bits_under_every_schedule(Kernel("stepwise_forward"), written, schedules)


def test_nan_stays_in_its_sequence() -> None:
    check_nan_stays_in_its_sequence(Kernel("stepwise_forward"))


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm_proj", "gru_reset_before"])
def test_errors_of_the_product_are_returned(cell: str) -> None:
    problem = Problem(cell, torch.float32, (3, 2, 4))
    run = Run(problem)
    run.backward()
    passes = (
        ("stepwise_forward_driver", [1], run.of_forward, run.forward_strides),
        ("stepwise_backward_driver", [], run.of_backward, run.backward_strides),
    )
    products = 3 * (2 if problem.proj_size or cell == "gru_reset_before" else 1)
    for name, flags, of_direction, strides in passes:
        launch = getattr(emulator("stepwise").library, name)
        given = pointers(*addresses(of_direction[0]))
        for before in range(products + 1):
            left = ctypes.byref(ctypes.c_int(before))
            status = launch(sizes_of(problem), 0, *flags, None, given, integers(*strides), left)
            assert status == (0 if before == products else GEMM_ERROR)


@pytest.mark.long
@pytest.mark.parametrize("variant", SANITIZERS)
def test_clean_under_sanitizers(variant: str) -> None:
    check_clean_under_sanitizers("stepwise", variant)
