"""The GPU layer of layer-normalised cells without a GPU: its own code and kernels on CPU tensors,
on the emulator, against an oracle in fp64, and against the CPU's results.
"""

from __future__ import annotations

from typing import Any

import pytest
import rounding
import torch
from conftest import TOLERANCE
from kernel_run import is_equal
from normalised_problem import EPS, MAGNIFIED, Problem
from problem import draw_lengths, draw_resets
from test_gpu_layer import forced, module
from test_stream_order import check as check_order
from test_stream_order import run as record
from torch import Tensor

from birnn_cuda import ops

CELLS = ("gru", "lstm")
NO_MISTAKE = (-1, -1, -1)
NAMES = ("weight_hh", "norm_hh", "bias_hh", "norm_c", "bias_c")


class Call:
    """The operators' arguments for the first `directions` of a problem."""

    def __init__(self, problem: Problem, directions: int = 2) -> None:
        self.problem, self.directions = problem, directions
        self.names = NAMES if problem.is_lstm else NAMES[:3]

        def first(tensor: Tensor | None, columns: bool = True) -> Tensor | None:
            """Of both directions' columns, or states."""
            if tensor is None or directions == 2:
                return tensor
            return tensor.chunk(2, 2)[0] if columns else tensor[:1]

        self.gates_x = first(problem.gates_x)
        self.hx, self.cx = (first(t, False) for t in (problem.hx, problem.cx))
        each = [getattr(problem, n)[d] for d in range(directions) for n in self.names]
        self.weights = [weight.clone() for weight in each]  # each in memory of its own
        self.common = (self.gates_x, self.hx, self.cx, self.weights, problem.lengths)
        self.options = (problem.cell, directions, EPS)
        self.last = (problem.resets, "ieee")
        d_cells = first(problem.dc)
        self.cotangents = (first(problem.dy), first(problem.dhy, False))
        self.cotangents += (first(problem.dcy, False) if problem.is_lstm else None, d_cells)
        self.needs_grad = [t is not None for t in (self.gates_x, self.hx, self.cx, *self.weights)]

    def forward(self, on: Any, training: bool = True) -> tuple[Tensor, ...]:
        return on.normalised_forward(*self.common, *self.options, training, *self.last)

    def backward(self, on: Any, output: Tensor, reserve: Tensor) -> list[Tensor]:
        d_gates, d_hx, d_cx, d_weights = on.normalised_backward(
            *(*self.cotangents, *self.common, output, reserve, *self.options),
            *(self.needs_grad, *self.last),
        )
        return [d_gates, d_hx, d_cx, *d_weights]

    def results(self, on: Any) -> dict[str, Tensor]:
        output, hy, cy, reserve = self.forward(on)
        alone = self.forward(on, training=False)
        assert is_equal([output, hy, cy], alone[:3]), "inference differs from training"
        d_gates, d_hx, d_cx, *d_weights = self.backward(on, output, reserve)
        results = {"output": output, "hy": hy, "dgates_x": d_gates}
        if self.problem.is_lstm:
            results["cy"] = cy
        given = {"dhx": (self.hx, d_hx), "dcx": (self.cx, d_cx)}
        results |= {name: d for name, (state, d) in given.items() if state is not None}
        for i, name in enumerate(self.names):
            results[f"d{name}"] = torch.stack(d_weights[i :: len(self.names)])
        return results

    def check(self, on: Any) -> None:
        actual, expected = self.results(on), self.problem.exact()
        assert actual.keys() == expected.keys()
        for name, wanted in expected.items():
            dim = 2 if name in ("output", "dgates_x") else 0
            wanted = wanted if self.directions == 2 else wanted.chunk(2, dim)[0]
            tolerance = MAGNIFIED * TOLERANCE[self.problem.dtype]
            rounding.check(actual[name], wanted, tolerance, None, name)


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"states": False, "pattern": "mixed"},
    {"cell_states": True, "pattern": "mixed", "resets": True},
    {"states": False, "cell_states": True, "resets": True, "has_dy": False},
    {"directions": 1, "pattern": "mixed"},
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell: str, dtype: torch.dtype) -> None:
    for options in OPTIONS:
        call = make(cell, dtype, (5, 6, 9), **options)
        call.check(module())


def make(
    cell: str,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    pattern: str = "none",
    resets: bool = False,
    directions: int = 2,
    **options: Any,
) -> Call:
    T, B, _ = sizes
    lengths = draw_lengths(pattern, T, B)
    if lengths is not None:  # the layer refuses others
        lengths = [min(max(length, 0), T) for length in lengths]
    drawn = draw_resets(T, B) if resets else None
    return Call(Problem(cell, dtype, sizes, lengths, resets=drawn, **options), directions)


@pytest.mark.parametrize("cell", CELLS)
def test_the_cpu_computes_the_same(cell: str) -> None:
    """And its backward pass takes what the GPU's layer has kept: the reserves are alike."""
    call = make(cell, torch.float64, (5, 4, 9), cell_states=True)
    ours, cpu = (call.results(on) for on in (module(), ops))
    for name, wanted in cpu.items():
        rounding.check(ours[name], wanted, 1e-12, None, name)
    output, _, _, reserve = call.forward(module())
    crossed = call.backward(ops, output, reserve)
    for ours_, wanted in zip(crossed, call.backward(ops, *call.forward(ops)[::3]), strict=True):
        rounding.check(ours_, wanted, 1e-12)


def test_another_kernel_is_refused() -> None:
    call = make("gru", torch.float32, (2, 2, 4))
    with forced("grid"), pytest.raises(RuntimeError, match='"grid" does not take a layer-normal'):
        call.forward(module())
    with forced("stepwise"):
        call.check(module())


def test_nan_of_the_state_of_an_empty_sequence_stays_there() -> None:
    call = make("gru", torch.float32, (3, 3, 4))
    call.problem.lengths = torch.tensor([3, 0, 2])
    call.common = (*call.common[:4], call.problem.lengths)
    assert call.hx is not None
    call.hx[:, 1] = float("nan")
    results = call.results(module())
    assert results["dweight_hh"].isfinite().all() and results["dnorm_hh"].isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
def test_directions_do_not_wait_for_each_other(cell: str) -> None:
    for capture, options in ((False, {}), (True, {"states": False}), (False, {"resets": True})):
        call = make(cell, torch.float32, (40, 2, 5), **options)
        known = {"gates_x": call.gates_x, "hx": call.hx, "cx": call.cx}
        places = [f"{name}.{d}" for d in range(2) for name in call.names]
        known |= dict(zip(places, call.weights, strict=True))
        stream = (capture, 0, 0, NO_MISTAKE)

        def of_forward(results: Any) -> dict[str, Tensor]:
            return dict(zip(("output", "h_n", "c_n", "reserve"), results, strict=True))

        def of_backward(results: Any, places: list[str] = places) -> dict[str, Tensor]:
            named = dict(zip(("d_gates", "d_hx", "d_cx"), results, strict=False))
            return named | {f"d_{at}": d for at, d in zip(places, results[3], strict=True)}

        arguments = (*call.common, *call.options, True, *call.last)
        function = module().normalised_forward
        (output, _, _, reserve), forward = record(function, arguments, known, stream, of_forward)
        arguments = (*call.cotangents, *call.common, output, reserve, *call.options)
        arguments += (call.needs_grad, *call.last)
        known |= {"output": output, "reserve": reserve}
        function = module().normalised_backward
        _, backward = record(function, arguments, known, stream, of_backward)
        for recorded in (forward, backward):
            check_order(recorded, 2)
