"""Stepwise's kernels of layer-normalised cells, run by the emulator, against an oracle in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_run import (
    SANITIZERS,
    check_clean_under_sanitizers,
    is_equal,
)
from normalised_problem import Problem, Run, check, check_inference
from problem import NAN, draw_lengths, draw_resets
from torch import Tensor

CELLS = ("gru", "lstm")
GEMM_ERROR = 77  # of the driver's product
NO_INSTANCE = 1  # kNoInstance
SEQUENCE_LENGTHS = (1, 2, 3, 5, 7)
# B, H: 33 units are two warps, 300 more than a block has threads.
SHAPES = ((1, 1), (6, 5), (3, 33), (7, 8), (2, 300))


@pytest.mark.parametrize("pattern", ["none", "full", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell: str, dtype: torch.dtype, pattern: str, seed: int) -> None:
    shapes = itertools.cycle(SHAPES[seed % 5 :] + SHAPES[: seed % 5])
    for index, (T, states) in enumerate(itertools.product(SEQUENCE_LENGTHS, (True, False))):
        B, H = next(shapes)
        if H > 100 and T > 3:
            T = 2
        options = {"states": states, "cell_states": states, "has_dy": index % 4 != 1}
        problem = Problem(cell, dtype, (T, B, H), draw_lengths(pattern, T, B), **options)
        run = Run(problem)
        check(problem, run)
        check_inference(problem, run)


@pytest.mark.parametrize("pattern", ["none", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("cell", CELLS)
def test_resets(cell: str, dtype: torch.dtype, pattern: str) -> None:
    for T, B, H, states in ((1, 5, 3, True), (2, 6, 5, False), (5, 7, 8, True), (7, 4, 33, True)):
        lengths, resets = draw_lengths(pattern, T, B), draw_resets(T, B)
        options = {"states": states, "cell_states": states, "resets": resets}
        problem = Problem(cell, dtype, (T, B, H), lengths, **options)
        run = Run(problem)
        check(problem, run)
        check_inference(problem, run)


def test_more_sequences_than_blocks() -> None:
    """2,048 blocks stride over the batch: the last sequences are the first blocks' second ones."""
    problem = Problem("lstm", torch.float64, (1, 2048 + 3, 2), states=False)
    whole = Run(problem)
    whole.backward()
    last = Problem("lstm", torch.float64, (1, 5, 2), states=False)
    for name in ("weight_hh", "norm_hh", "bias_hh", "norm_c", "bias_c"):
        setattr(last, name, getattr(problem, name))
    last.gates_x, last.dy = (t[:, -5:].clone() for t in (problem.gates_x, problem.dy))  # type: ignore[index]
    last.dhy, last.dcy = problem.dhy[:, -5:].clone(), problem.dcy[:, -5:].clone()
    alone = Run(last)
    check(last, alone)
    assert is_equal([whole.output[:, -5:], whole.dsums[:, -5:]], [alone.output, alone.dsums])


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_run_is_bitwise_equal(cell: str) -> None:
    """Under another schedule of the threads, too, and in calls of some steps each."""
    lengths = draw_lengths("mixed", 5, 6)
    problem = Problem(cell, torch.float32, (5, 6, 100), lengths, cell_states=True)
    kept: list[Tensor] | None = None
    for steps, (order, landing) in ((1000, ("shuffle", "random")), (2, ("reverse", "late"))):
        run = Run(problem, steps_of_a_call=steps)
        run.emulator.configure(order=order, landing=landing, seed=7)
        run = Run(problem, steps_of_a_call=steps)
        written = [*run.states(), *run.backward()]
        assert run.reserve is not None
        written.append(run.reserve)
        assert kept is None or is_equal(kept, written), f"{order}, {landing}"
        kept = written
        run.emulator.configure()


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell: str) -> None:
    problem = Problem(cell, torch.float32, (4, 3, 9))
    clean = Run(problem)
    clean.backward()
    columns = clean.columns
    problem.gates_x[2, 1, [3, columns + 3]] = NAN
    run = Run(problem)
    assert run.hy[:, 1].isnan().all()
    assert is_equal([run.hy[:, [0, 2]]], [clean.hy[:, [0, 2]]])
    assert problem.dy is not None
    problem.gates_x[2, 1] = 0.0
    problem.dy[2, 1] = NAN
    run = Run(problem)
    run.backward()
    assert run.dhx[:, 1].isnan().all()
    assert is_equal([run.dhx[:, [0, 2]]], [clean.dhx[:, [0, 2]]])


def test_a_large_mean_takes_nothing_of_the_variance() -> None:
    """1,000 deviations from zero: of squares less a squared mean, fp32 would keep a digit."""
    problem = Problem("lstm", torch.float32, (2, 3, 16))
    problem.weight_hh /= 16
    problem.weight_hh += 10.0
    assert problem.hx is not None
    problem.hx.fill_(6.25)  # exact in fp32, as are the products with it nearly
    exact = Problem("lstm", torch.float64, (2, 3, 16))
    for name, tensor in problem.operands().items():
        setattr(exact, name, tensor.double())
    outputs = [Run(p).output.double() for p in (problem, exact)]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-2


@pytest.mark.parametrize("cell", CELLS)
def test_errors_are_returned(cell: str) -> None:
    run = Run(Problem(cell, torch.float32, (3, 2, 4)))
    for backward, before in itertools.product((False, True), range(3)):
        assert run.launch(backward, products_before_error=before) == GEMM_ERROR
    assert run.launch(True, products_before_error=6) == 0
    run.problem.dtype = torch.float16
    assert [run.launch(backward) for backward in (False, True)] == [NO_INSTANCE] * 2


@pytest.mark.long
@pytest.mark.parametrize("variant", SANITIZERS)
def test_clean_under_sanitizers(variant: str) -> None:
    check_clean_under_sanitizers("normalised", variant)
