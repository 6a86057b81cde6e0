"""The GPU layer without a GPU: its own code, plan and kernels on CPU tensors, on the emulator.

What is tested is what lies between the operators and the kernels: which kernel is chosen and given
what, the streams' order, packed batches, the weight gradients in one part or several. The oracle is
the reference in fp64; what may differ from it in 16 bits and tf32: rounding.py.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import rounding
import rounding_model
import torch
from conftest import TOLERANCE, VARIANTS
from drawn_regularisers import draw_regularisers
from problem import draw_resets
from torch import Tensor

import build
from birnn_cuda import reference
from birnn_cuda.reference import is_lstm
from birnn_cuda.sequences import (
    packed_lengths,
    packed_to_padded,
    padded_to_packed,
    padding_mask,
)

CELLS = ("tanh", "relu", "gru", "lstm")
PERSISTENT = ("block", "cluster", "grid")
FORMATS = {
    "ieee": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
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
        cell_states: bool = False,
        resets: bool = False,
        regularisers: str = "none",  # of draw_regularisers
    ) -> None:
        T, B, input_size, H = sizes
        S, G = proj_size or H, {"lstm": 4, "gru": 3}.get(cell.partition("_")[0], 1)
        self.cell, self.directions = cell, directions
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.resets = draw_resets(T, B) if resets else None
        self.batch_sizes = None
        if packed:
            assert self.lengths is not None
            self.batch_sizes = (self.lengths > torch.arange(T).unsqueeze(1)).sum(1)
            self.lengths = None
        rows = (int(self.batch_sizes.sum()),) if packed else (T, B)  # type: ignore[union-attr]

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape) * scale).to(dtype)

        def away_from_zero(tensor: Tensor, sign: Tensor | float = 1.0) -> Tensor:
            return (sign * (1 + tensor.abs())).to(dtype)

        self.is_lstm = lstm = is_lstm(cell)
        self.input = draw(*rows, input_size)
        self.hx = draw(directions, B, S) if states else None
        self.cx = draw(directions, B, H) if states and lstm else None
        scale = H**-0.5
        self.weights: list[Tensor] = []
        for _ in range(directions):
            weight_ih = draw(G * H, input_size, scale=scale)
            weight_hh = draw(G * H, S, scale=scale)
            if cell == "relu":
                # Each unit stays on its side of the kink, where a rounding error decides between a
                # gradient and none.
                weight_ih = away_from_zero(weight_ih, draw(G * H, 1).sign())
                weight_hh = (weight_hh / 32).to(dtype)
            self.weights += [weight_ih, weight_hh]
            if bias:
                self.weights += [draw(G * H, scale=scale), draw(G * H, scale=scale)]
            if proj_size:
                self.weights += [draw(S, H, scale=scale)]
            if cell == "lstm_peepholes":
                self.weights += [draw(3 * H)]
        if cell == "relu":
            self.input = away_from_zero(self.input)
        drawn = draw_regularisers(regularisers, (T, B, H), S, lstm, directions)
        self.recurrent_mask, *shares = (None if t is None else t.to(dtype) for t in drawn)
        self.zoneout = [self.in_rows(t) for t in shares]
        self.d_output = draw(*rows, directions * S)
        self.d_h_n = draw(directions, B, S)
        self.d_c_n = draw(directions, B, H) if lstm else None
        self.d_cells = draw(*rows, directions * H) if lstm and cell_states else None

    def in_rows(self, shares: Tensor | None) -> Tensor | None:
        if shares is None or self.batch_sizes is None:
            return shares
        return shares[0] if shares.size(0) == 1 else padded_to_packed(shares, self.batch_sizes)

    def regularisers(self) -> list[Tensor | None]:
        return [self.recurrent_mask, *self.zoneout]

    def operands(self) -> list[Tensor | None]:
        return [self.input, self.hx, self.cx, *self.weights]

    def exact(self) -> list[Tensor]:
        """Outputs, then the gradients of the operands that there are, in fp64."""
        operands = [
            None if t is None else t.detach().double().requires_grad_() for t in self.operands()
        ]
        regularisers = [None if t is None else t.double() for t in self.regularisers()]
        options = self.batch_sizes, self.cell, self.directions, self.resets, *regularisers
        *outputs, cells = reference.forward_with_cell_states(
            *operands[:3], operands[3:], self.lengths, *options
        )
        outputs = outputs[: 3 if self.is_lstm else 2]
        given = [self.d_output, self.d_h_n, self.d_c_n][: len(outputs)]
        cotangents = [d.double() for d in given]  # type: ignore[union-attr]
        differentiated = outputs
        if self.d_cells is not None:
            differentiated, cotangents = [*outputs, cells], [*cotangents, self.d_cells.double()]
        present = [t for t in operands if t is not None]
        gradients = torch.autograd.grad(differentiated, present, cotangents)
        return [*(t.detach() for t in outputs), *gradients]

    def run(self, precision: str) -> list[Tensor]:
        """The same by the GPU layer."""
        common = (self.input, self.hx, self.cx, self.weights, self.lengths, self.batch_sizes)
        constants = (self.resets, *self.regularisers())
        output, h_n, c_n, reserve = module().forward(
            *common, self.cell, self.directions, True, precision, *constants
        )
        inference = module().forward(
            *common, self.cell, self.directions, False, precision, *constants
        )
        for kept, alone in zip((output, h_n, c_n), inference, strict=False):
            assert torch.equal(kept, alone), "inference differs from training"
        needs_grad = [t is not None for t in self.operands()]
        arguments = (self.d_output, self.d_h_n, self.d_c_n, *common, output, reserve)
        bits = reserve.view(torch.uint8).clone()  # where padding is, it may hold NaN
        results = module().backward(
            *arguments, self.cell, self.directions, precision, needs_grad, self.d_cells, *constants
        )
        assert torch.equal(reserve.view(torch.uint8), bits), "backward wrote to the reserve"
        d_input, d_hx, d_cx, d_weights = results
        outputs = [output, h_n, *([c_n] if self.is_lstm else [])]
        gradients = [t for t in (d_input, d_hx, d_cx, *d_weights) if t.dim() > 1 or t.numel()]
        return [*outputs, *gradients]

    def padded_regularisers(self) -> list[Tensor | None]:
        if self.batch_sizes is None:
            return self.regularisers()
        return [
            self.recurrent_mask,
            *(
                t
                if t is None
                else t.unsqueeze(0)
                if t.size(0) == 1
                else packed_to_padded(t, self.batch_sizes)
                for t in self.zoneout
            ),
        ]

    @torch.no_grad()
    def drawn(self, format: rounding.Format) -> list[Tensor]:
        """What exact() gives, by draws of a model that rounds to a format."""
        lengths, rows = self.lengths, [self.input, self.d_output]
        if self.d_cells is not None:
            rows.append(self.d_cells)
        if self.batch_sizes is not None:
            lengths = packed_lengths(self.batch_sizes)
            rows = [packed_to_padded(tensor, self.batch_sizes) for tensor in rows]
        elif lengths is not None:
            inside = padding_mask(lengths, self.input.size(0)).unsqueeze(2)
            rows = [torch.where(inside, tensor, 0) for tensor in rows]
        input, d_output = (tensor.unsqueeze(0) for tensor in rows[:2])
        count = len(self.weights) // self.directions
        weights = [self.weights[d * count : (d + 1) * count] for d in range(self.directions)]
        layer = rounding_model.Layer(
            self.cell,
            weights,
            rounding.Rounding(format),
            rounding.DRAWS,
            lengths,
            True,
            self.resets,
            self.padded_regularisers(),
        )
        outputs = layer.forward(input, self.hx, self.cx)
        d_c_n = None if self.d_c_n is None else self.d_c_n.unsqueeze(0)
        d_cells = None if self.d_cells is None else rows[2].unsqueeze(0)
        d_input, d_states, d_weights = layer.backward(
            d_output, self.d_h_n.unsqueeze(0), d_c_n, d_cells
        )
        if self.batch_sizes is not None:
            outputs[0], d_input = (
                torch.stack([padded_to_packed(draw, self.batch_sizes) for draw in tensor])
                for tensor in (outputs[0], d_input)
            )
        if self.hx is None:
            d_states = []
        return [*outputs, d_input, *d_states, *itertools.chain.from_iterable(d_weights)]


def check(
    problem: Problem, format_: str, kernel: str, parts: int = 0, divisions: Any = None
) -> None:
    with forced(kernel, parts):
        if divisions is not None:
            module().force_divisions(*divisions)
        actual, expected = problem.run(FORMATS[format_][1]), problem.exact()
    drawn: Sequence[Tensor | None] = [None] * len(expected)
    if format_ != "ieee":
        drawn = problem.drawn(rounding.FORMATS[format_])
    for index, (a, e, d) in enumerate(zip(actual, expected, drawn, strict=True)):
        rounding.check(a, e, TOLERANCE[torch.float32], d, f"{kernel}, result {index}")


KERNELS = ("block", "cluster", "grid", "stepwise")


def kernels_for(cell: str, number: int) -> tuple[str, ...]:
    """Two of them, in turn; the cells of VARIANTS run stepwise alone."""
    return ("",) if cell in VARIANTS else (KERNELS[number % 4], KERNELS[(number + 2) % 4])


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"states": False, "bias": False},
    {"lengths": [5, 0, 2, 4, 1]},
    {"lengths": [5, 4, 4, 2, 1], "packed": True, "states": False},
    {"directions": 1},
    {"directions": 1, "lengths": [2, 5, 0, 3, 3], "bias": False},
    {"cell_states": True},
    {"cell_states": True, "lengths": [4, 0, 5, 1, 2]},
    {"cell_states": True, "lengths": [5, 4, 4, 2, 1], "packed": True},
)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernel", PERSISTENT)
def test_values_and_gradients(kernel: str, cell: str, format_: str, seed: int) -> None:
    dtype = FORMATS[format_][0]
    chosen = OPTIONS if format_ == "ieee" else OPTIONS[seed % 3 :: 3]
    for options in chosen:
        if options.get("cell_states") and not is_lstm(cell):
            continue
        problem = Problem(cell, dtype, (5, 5, 3, 20), **options)
        check(problem, format_, kernel)


@pytest.mark.parametrize("format_", [pytest.param("ieee", marks=pytest.mark.long), "fp16"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernel", ("block", "grid"))
def test_backward_in_parts(kernel: str, cell: str, format_: str) -> None:
    dtype = FORMATS[format_][0]
    for directions, states, parts in itertools.product((1, 2), (True, False), (2, 7)):
        problem = Problem(cell, dtype, (7, 3, 4, 9), directions, states=states)
        check(problem, format_, kernel, parts)


def test_parts_need_sequences_that_are_full() -> None:
    """With lengths the steps of a part lie at different times: then there is one part."""
    problem = Problem("lstm", torch.float32, (5, 3, 4, 9), lengths=[5, 2, 0])
    check(problem, "ieee", "block", parts=3)


@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_stepwise(cell: str) -> None:
    for options in OPTIONS:
        check(Problem(cell, torch.float32, (5, 5, 3, 20), **options), "ieee", "stepwise")
    if cell == "lstm":
        problem = Problem(cell, torch.float32, (5, 5, 3, 20), proj_size=7, lengths=[5, 1, 0, 3, 3])
        check(problem, "ieee", "")


@pytest.mark.parametrize("format_", ("ieee", "fp16"))
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_resets(cell: str, format_: str, seed: int) -> None:
    """With lengths they may lie past the ends, where nobody reads them."""
    for index, options in enumerate(OPTIONS):
        chosen = kernels_for(cell, index + seed)
        if options.get("packed") or (options.get("cell_states") and not is_lstm(cell)):
            continue
        problem = Problem(cell, FORMATS[format_][0], (5, 5, 3, 20), resets=True, **options)
        for kernel in chosen:
            check(problem, format_, kernel, parts=3)
    if cell == "lstm":
        options = {"proj_size": 7, "lengths": [5, 1, 0, 3, 3], "resets": True}
        check(Problem(cell, torch.float32, (5, 5, 3, 20), **options), "ieee", "")


@pytest.mark.parametrize("format_", ("ieee", "fp16"))
@pytest.mark.parametrize("kind", ("dropout", "zoneout", "expectation"))
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_regularisers(cell: str, kind: str, format_: str, seed: int) -> None:
    for index, options in enumerate(OPTIONS):
        if options.get("cell_states") and not is_lstm(cell):
            continue
        given = {"regularisers": kind, "resets": index % 2 == 0 and not options.get("packed")}
        problem = Problem(cell, FORMATS[format_][0], (5, 5, 3, 20), **given, **options)
        kernel = kernels_for(cell, index + seed)[0] if kind == "dropout" else ""
        check(problem, format_, kernel, parts=3)
    if cell == "lstm":
        options = {"proj_size": 7, "lengths": [5, 1, 0, 3, 3], "resets": True}
        problem = Problem(cell, torch.float32, (5, 5, 3, 20), regularisers=kind, **options)
        check(problem, "ieee", "")


def test_kernels_without_zoneout_refuse_it() -> None:
    problem = Problem("lstm", torch.float32, (5, 3, 4, 20), regularisers="expectation")
    with forced("grid"), pytest.raises(RuntimeError, match=r'"grid" does not take.*: stepwise'):
        problem.run("ieee")


def test_the_layer_follows_the_plan() -> None:
    problem = Problem("lstm", torch.float32, (5, 3, 4, 20), lengths=[5, 3, 1])
    check(problem, "ieee", "")
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
    check(problem, "ieee", "", divisions=(forward, backward))


def test_a_division_that_does_not_fit_is_refused() -> None:
    problem = Problem("lstm", torch.float32, (2, 3, 4, 20))
    module().force_divisions(("cluster", 16, 8, 1, 1), ("stepwise", 1, 1, 1, 1))
    try:
        with pytest.raises(RuntimeError, match="no cluster of blocks 16, batch_tiles 8"):
            problem.run("ieee")
    finally:
        module().force("", 0)
