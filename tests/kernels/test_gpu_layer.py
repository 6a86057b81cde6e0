"""The GPU layer without a GPU: its own code, plan and kernels on CPU tensors, on the emulator.

What is tested is what lies between the operators and the kernels: which kernel is chosen and given
what, the streams' order, packed batches, the weight gradients in one part or several. The oracle is
the reference in fp64. In 16 bits and tf32 a kernel may be twice as wrong as stepwise is on the same
operands, and one rounding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import TOLERANCE, relative_error
from test_stepwise import build
from torch import Tensor

from birnn_cuda import reference

CELLS = ("tanh", "relu", "gru", "lstm")
PERSISTENT = ("block", "cluster", "grid")
FORMATS = {
    "ieee": (torch.float32, "ieee", 0.0),
    "tf32": (torch.float32, "tf32", 2**-11),
    "fp16": (torch.float16, "ieee", 2**-11),
    "bf16": (torch.bfloat16, "ieee", 2**-8),
}


@functools.cache
def module() -> Any:
    return build.layer_module()


@contextmanager
def forced(kernel: str, backward_parts: int = 0) -> Iterator[None]:
    module().force(kernel, backward_parts)
    try:
        yield
    finally:
        module().force("", 0)


class Problem:
    """Random operands of one call, and its results by the reference in fp64."""

    def __init__(
        self,
        cell: str,
        dtype: torch.dtype,
        sizes: tuple[int, int, int, int],
        directions: int = 2,
        lengths: list[int] | None = None,
        packed: bool = False,
        states: bool = True,
        bias: bool = True,
        proj_size: int = 0,
    ) -> None:
        T, B, input_size, H = sizes
        S, G = proj_size or H, {"lstm": 4, "gru": 3}.get(cell, 1)
        self.cell, self.directions = cell, directions
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.batch_sizes = None
        if packed:
            assert self.lengths is not None
            self.batch_sizes = (self.lengths > torch.arange(T).unsqueeze(1)).sum(1)
            self.lengths = None
        rows = (int(self.batch_sizes.sum()),) if packed else (T, B)  # type: ignore[union-attr]

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape).to(dtype)

        lstm = cell == "lstm"
        self.input = draw(*rows, input_size)
        self.hx = draw(directions, B, S) if states else None
        self.cx = draw(directions, B, H) if states and lstm else None
        scale = H**-0.5
        self.weights: list[Tensor] = []
        for _ in range(directions):
            self.weights += [draw(G * H, input_size) * scale, draw(G * H, S) * scale]
            if bias:
                self.weights += [draw(G * H) * scale, draw(G * H) * scale]
            if proj_size:
                self.weights += [draw(S, H) * scale]
        self.d_output = draw(*rows, directions * S)
        self.d_h_n = draw(directions, B, S)
        self.d_c_n = draw(directions, B, H) if lstm else None

    def operands(self) -> list[Tensor | None]:
        return [self.input, self.hx, self.cx, *self.weights]

    def exact(self) -> list[Tensor]:
        """Outputs, then the gradients of the operands that there are, in fp64."""
        operands = [
            None if t is None else t.detach().double().requires_grad_() for t in self.operands()
        ]
        outputs = reference.forward(
            *operands[:3], operands[3:], self.lengths, self.batch_sizes, self.cell, self.directions
        )[: 3 if self.cell == "lstm" else 2]
        cotangents = [self.d_output, self.d_h_n, self.d_c_n][: len(outputs)]
        present = [t for t in operands if t is not None]
        gradients = torch.autograd.grad(outputs, present, [d.double() for d in cotangents])  # type: ignore[union-attr]
        return [*(t.detach() for t in outputs), *gradients]

    def run(self, precision: str) -> list[Tensor]:
        """The same by the GPU layer."""
        common = (self.input, self.hx, self.cx, self.weights, self.lengths, self.batch_sizes)
        output, h_n, c_n, reserve = module().forward(
            *common, self.cell, self.directions, True, precision
        )
        inference = module().forward(*common, self.cell, self.directions, False, precision)
        for kept, alone in zip((output, h_n, c_n), inference, strict=False):
            assert torch.equal(kept, alone), "inference differs from training"
        needs_grad = [t is not None for t in self.operands()]
        arguments = (self.d_output, self.d_h_n, self.d_c_n, *common, output, reserve)
        bits = reserve.view(torch.uint8).clone()  # where padding is, it may hold NaN
        results = module().backward(
            *arguments, self.cell, self.directions, precision, needs_grad, None
        )
        assert torch.equal(reserve.view(torch.uint8), bits), "backward wrote to the reserve"
        d_input, d_hx, d_cx, d_weights = results
        outputs = [output, h_n, *([c_n] if self.cell == "lstm" else [])]
        gradients = [t for t in (d_input, d_hx, d_cx, *d_weights) if t.dim() > 1 or t.numel()]
        return [*outputs, *gradients]


def errors(problem: Problem, precision: str) -> list[float]:
    actual, expected = problem.run(precision), problem.exact()
    assert len(actual) == len(expected)
    return [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]


def check(problem: Problem, precision: str, kernel: str, rounding: float, parts: int = 0) -> None:
    with forced(kernel, parts):
        found = errors(problem, precision)
    allowed = [TOLERANCE[torch.float32]] * len(found)
    if rounding:
        with forced("stepwise"):
            allowed = [2 * error + rounding for error in errors(problem, precision)]
    wrong = [(i, e, a) for i, (e, a) in enumerate(zip(found, allowed, strict=True)) if not e <= a]
    assert not wrong, f"{kernel}: (result, error, allowed) {wrong}"


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"states": False, "bias": False},
    {"lengths": [5, 0, 2, 4, 1]},
    {"lengths": [5, 4, 4, 2, 1], "packed": True, "states": False},
    {"directions": 1},
    {"directions": 1, "lengths": [2, 5, 0, 3, 3], "bias": False},
)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernel", PERSISTENT)
def test_values_and_gradients(kernel: str, cell: str, format_: str, seed: int) -> None:
    dtype, precision, rounding = FORMATS[format_]
    chosen = OPTIONS if format_ == "ieee" else OPTIONS[seed % 3 :: 3]
    for options in chosen:
        problem = Problem(cell, dtype, (5, 5, 3, 20), **options)
        check(problem, precision, kernel, rounding)


@pytest.mark.parametrize("format_", ("ieee", "fp16"))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernel", ("block", "grid"))
def test_backward_in_parts(kernel: str, cell: str, format_: str) -> None:
    dtype, precision, rounding = FORMATS[format_]
    for directions, states, parts in itertools.product((1, 2), (True, False), (2, 7)):
        problem = Problem(cell, dtype, (7, 3, 4, 9), directions, states=states)
        check(problem, precision, kernel, rounding, parts)


def test_parts_need_sequences_that_are_full() -> None:
    """With lengths the steps of a part lie at different times: then there is one part."""
    problem = Problem("lstm", torch.float32, (5, 3, 4, 9), lengths=[5, 2, 0])
    check(problem, "ieee", "block", 0.0, parts=3)


@pytest.mark.parametrize("cell", CELLS)
def test_stepwise(cell: str) -> None:
    for options in OPTIONS:
        check(Problem(cell, torch.float32, (5, 5, 3, 20), **options), "ieee", "stepwise", 0.0)
    if cell == "lstm":
        problem = Problem(cell, torch.float32, (5, 5, 3, 20), proj_size=7, lengths=[5, 1, 0, 3, 3])
        check(problem, "ieee", "", 0.0)


def test_the_layer_follows_the_plan() -> None:
    problem = Problem("lstm", torch.float32, (5, 3, 4, 20), lengths=[5, 3, 1])
    check(problem, "ieee", "", 0.0)
    proj = Problem("lstm", torch.float32, (2, 2, 4, 20), proj_size=3)
    with forced("cluster"), pytest.raises(RuntimeError, match=r'"cluster" does not take.*stepwise'):
        proj.run("ieee")
    with pytest.raises(ValueError, match="valid: block, cluster, grid, stepwise"):
        module().force("warp", 0)
    with pytest.raises(ValueError, match="got -1"):
        module().force("", -1)


# kernel, blocks, batch_tiles, k_split, groups_at_once of both passes, B: several clusters, a K
# split; groups that follow each other, and side by side.
DIVISIONS = (
    (("cluster", 3, 1, 2, 1), ("cluster", 4, 1, 1, 1), 5),
    (("cluster", 2, 1, 1, 1), ("grid", 4, 1, 1, 1), 17),
    (("grid", 4, 1, 1, 2), ("cluster", 2, 1, 1, 1), 17),
    (("stepwise", 1, 1, 1, 1), ("cluster", 2, 2, 1, 1), 9),
)


@pytest.mark.parametrize("cell", ("gru", "lstm"))
@pytest.mark.parametrize("divisions", DIVISIONS, ids=str)
def test_a_division_that_is_asked_for_runs(divisions: Any, cell: str) -> None:
    forward, backward, batch_size = divisions
    problem = Problem(cell, torch.float32, (5, batch_size, 3, 34))
    module().force_divisions(forward, backward)
    try:
        assert max(errors(problem, "ieee")) <= TOLERANCE[torch.float32]
    finally:
        module().force("", 0)


def test_a_division_that_does_not_fit_is_refused() -> None:
    problem = Problem("lstm", torch.float32, (2, 3, 4, 20))
    module().force_divisions(("cluster", 16, 8, 1, 1), ("stepwise", 1, 1, 1, 1))
    try:
        with pytest.raises(RuntimeError, match="no cluster of blocks 16, batch_tiles 8"):
            problem.run("ieee")
    finally:
        module().force("", 0)
