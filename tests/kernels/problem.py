"""A recurrence of both directions, what its results are in fp64, and how far a kernel may be off.

The input projection is no part of the kernels: the reference is given the gates as its input and
the identity as weight_ih. What may differ from it in 16 bits and tf32: rounding.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rounding
import rounding_model
import torch
from conftest import TOLERANCE
from drawn_regularisers import draw_regularisers
from guard_zones import GuardZones
from torch import Tensor

from birnn_cuda import reference

CELLS = ("tanh", "relu", "gru", "lstm")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PRECISIONS = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# csrc/recurrence.h: the values of Cell and Element, num_gates, reserve_blocks, dgates_blocks.
ALL_CELLS = (*CELLS, "gru_reset_before", "lstm_peepholes")
CELL_VALUES = {cell: value for value, cell in enumerate(ALL_CELLS)}
NUM_GATES = dict(zip(ALL_CELLS, (1, 1, 3, 4, 3, 4), strict=True))
RESERVE_BLOCKS = dict(zip(ALL_CELLS, (0, 0, 4, 5, 4, 5), strict=True))
DGATES_BLOCKS = dict(zip(ALL_CELLS, (1, 1, 4, 4, 3, 4), strict=True))

NAN = float("nan")


def draw_resets(seq_len: int, batch_size: int) -> Tensor:
    """Bool [T, B]: in some sequences none, in some at every step, else at random steps."""
    resets = torch.rand(seq_len, batch_size) < 0.4
    resets[:, 0::4], resets[:, 1::4] = False, True
    return resets


def draw_lengths(pattern: str, seq_len: int, batch_size: int) -> list[int] | None:
    """By pattern: "none", "full"; "mixed": with 0 and T, unsorted, and beyond what is allowed,
    where they are clamped; "short": of those, none that reaches the last step; "long": each has
    half of the steps."""
    if pattern == "none":
        return None
    if pattern == "full":
        return [seq_len] * batch_size
    if pattern == "long":
        return [seq_len - b % (seq_len // 2 + 1) for b in range(batch_size)]
    wild = [seq_len // 2, 0, seq_len + 3, 1, -2, seq_len]
    lengths = [wild[b % len(wild)] for b in range(batch_size)]
    return [min(length, seq_len - 1) for length in lengths] if pattern == "short" else lengths


class Problem:
    """The operands of both directions, exact in `dtype`, and what backward is given."""

    def __init__(
        self,
        cell: str,
        dtype: torch.dtype,
        sizes: tuple[int, int, int],
        lengths: Sequence[int] | None = None,
        bias: bool = True,
        states: bool = True,
        cell_states: bool = False,
        resets: Tensor | None = None,  # bool [T, B]; past the ends nobody reads it
        regularisers: str = "none",  # of draw_regularisers
    ) -> None:
        self.seq_len, self.batch_size, self.hidden_size = T, B, H = sizes
        self.dtype = dtype
        self.carried = torch.float64 if dtype == torch.float64 else torch.float32
        self.proj_size = max(1, H // 2) if cell == "lstm_proj" else 0
        self.cell = cell = "lstm" if cell == "lstm_proj" else cell
        self.is_lstm = lstm = reference.is_lstm(cell)
        self.state_size = S = self.proj_size or H
        G = NUM_GATES[cell]
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.resets = resets
        inside = torch.arange(T)[:, None] < (torch.tensor(lengths or [T] * B).clamp(0, T))
        self.inside = inside.unsqueeze(2)  # [T, B, 1]

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype)

        # A relu's preactivations stay away from its kink, where a rounding error decides between a
        # gradient and none.
        weight_scale = 0.1 if cell == "relu" else 1.0
        self.gates = draw(2, T, B, G * H)
        if cell == "relu":
            self.gates = (2 * self.gates.sign() + self.gates / 4).to(dtype)
        self.weight_hh = draw(2, G * H, S, scale=weight_scale * S**-0.5)
        self.weight_hr = draw(2, S, H, scale=H**-0.5) if self.proj_size else None
        self.weight_ch = draw(2, 3 * H) if cell == "lstm_peepholes" else None
        self.bias_ih = draw(2, G * H, scale=0.1) if bias else None
        self.bias_hh = draw(2, G * H, scale=0.1) if bias else None
        self.hx = draw(2, B, S) if states else None
        self.cx = draw(2, B, H) if states and lstm else None
        self.dy = draw(T, B, 2 * S)
        self.dhy = draw(2, B, S).to(self.carried)
        self.dcy = draw(2, B, H).to(self.carried)
        self.dc = draw(T, B, 2 * H) if cell_states and lstm else None
        # Shares past the ends are read by nobody.
        drawn = draw_regularisers(regularisers, sizes, S, lstm)
        self.recurrent_mask, *shares = (None if t is None else t.to(dtype) for t in drawn)
        self.zoneout_h, self.zoneout_c = (
            t if t is None or t.size(0) < T else torch.where(self.inside, t, NAN) for t in shares
        )
        self.has_zoneout = self.zoneout_h is not None or self.zoneout_c is not None
        self.reserve_blocks = RESERVE_BLOCKS[cell] + (
            self.has_zoneout and not cell.startswith("gru")
        )
        # What kernels read as it stands here.
        self.zones = GuardZones()
        read = ("lengths", "weight_hh", "weight_hr", "bias_ih", "bias_hh", "hx", "cx", "resets")
        for name in (*read, "weight_ch", "recurrent_mask", "zoneout_h", "zoneout_c"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, self.zones.copy(tensor))

    def regularisers(self) -> list[Tensor | None]:
        """As one layer takes them, in fp64, with zeros past the ends."""
        given = (self.recurrent_mask, self.zoneout_h, self.zoneout_c)
        return [None if t is None else t.double().nan_to_num(0.0) for t in given]

    def results(self, recurrence: Any) -> dict[str, Tensor]:
        """Values and gradients, in fp64, of a recurrence in differentiable torch:
        (problem, gates, hx, cx, weight_hh, weight_hr, biases) -> output, hy, cy, and c of every
        step. biases: bias_ih and bias_hh of both directions, zeros where there are none."""

        def leaf(tensor: Tensor | None, *shape: int) -> Tensor:
            if tensor is None:
                return torch.zeros(*shape, dtype=torch.float64, requires_grad=True)
            return tensor.double().requires_grad_()

        B, H, S = self.batch_size, self.hidden_size, self.state_size
        gates, weight_hh = leaf(self.gates), leaf(self.weight_hh)
        hx, cx = leaf(self.hx, 2, B, S), leaf(self.cx, 2, B, H)
        weight_hr = leaf(self.weight_hr) if self.proj_size else None
        columns = gates.size(3)
        biases = (leaf(self.bias_ih, 2, columns), leaf(self.bias_hh, 2, columns))
        output, hy, cy, cells = recurrence(self, gates, hx, cx, weight_hh, weight_hr, biases)
        loss = (output * torch.where(self.inside, self.dy, 0)).sum() + (hy * self.dhy).sum()
        results = {"output": output, "hy": hy}
        operands = {"dgates": gates, "dhx": hx, "dweight_hh": weight_hh}
        operands |= {"dbias_ih": biases[0], "dbias_hh": biases[1]}
        if self.is_lstm:
            loss = loss + (cy * self.dcy).sum()
            if self.dc is not None:
                loss = loss + (cells * torch.where(self.inside, self.dc, 0)).sum()
            results["cy"] = cy
            operands["dcx"] = cx
        if weight_hr is not None:
            operands["dweight_hr"] = weight_hr
        gradients = torch.autograd.grad(loss, list(operands.values()), materialize_grads=True)
        return results | dict(zip(operands, gradients, strict=True))


def exact(
    problem: Problem,
    gates: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    biases: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference: its input, the gates of both directions, from which weight_ih picks one's."""
    columns = gates.size(3)
    identity = torch.eye(columns, dtype=torch.float64)
    weights = []
    for d in range(2):
        weight_ih = torch.zeros(columns, 2 * columns, dtype=torch.float64)
        weight_ih[:, d * columns : (d + 1) * columns] = identity
        weights += [weight_ih, weight_hh[d], *(bias[d] for bias in biases)]
        if weight_hr is not None:
            weights.append(weight_hr[d])
        if problem.weight_ch is not None:
            weights.append(problem.weight_ch[d].double())
    input = torch.cat([gates[0], gates[1]], 2)
    lengths = None if problem.lengths is None else problem.lengths.clamp(0, problem.seq_len)
    return reference.forward_with_cell_states(
        input,
        hx,
        cx,
        weights,
        lengths,
        None,
        problem.cell,
        2,
        problem.resets,
        *problem.regularisers(),
    )


@torch.no_grad()
def drawn(problem: Problem, format: rounding.Format, **which: bool) -> dict[str, Tensor]:
    """The values and gradients that Problem.results names, by draws of a model that rounds to a
    format: [directions, draws, ...]."""
    draws = rounding_model.number_of_draws(problem.inside.numel() * problem.hidden_size)

    def double(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.double()

    def by_direction(tensor: Tensor) -> Tensor:  # [T, B, D * n] to [D, 1, T, B, n]
        return torch.stack(torch.where(problem.inside, tensor, 0).double().chunk(2, 2)).unsqueeze(1)

    bias = None
    if problem.bias_ih is not None and problem.bias_hh is not None:
        bias = torch.stack([problem.bias_ih, problem.bias_hh]).double()
    lengths = None if problem.lengths is None else problem.lengths.clamp(0, problem.seq_len)
    operands = rounding_model.Operands(
        problem.cell,
        torch.where(problem.inside, problem.gates, 0).double().unsqueeze(1),
        problem.weight_hh.double(),
        double(problem.weight_hr),
        bias,
        double(problem.hx),
        double(problem.cx),
        lengths,
        problem.resets,
        *rounding_model.regularisers_by_direction(*problem.regularisers(), num_directions=2),
        double(problem.weight_ch),
    )
    # The test itself multiplies for the gradients of the weights.
    which["weight_factors"] = False
    model = rounding_model.Model(operands, rounding.Rounding(format), draws, **which)
    results = model.forward()
    is_lstm = problem.is_lstm
    results |= model.backward(
        by_direction(problem.dy),
        problem.dhy.double().unsqueeze(1),
        problem.dcy.double().unsqueeze(1) if is_lstm else None,
        None if problem.dc is None else by_direction(problem.dc),
    )
    for bias, summed in (("dbias_ih", "dgates"), ("dbias_hh", "drecurrent")):
        results[bias] = model.rounding.stored(results[summed].sum((2, 3)))
    return results


def check(
    problem: Problem,
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    format: rounding.Format | None = None,
    names: Sequence[str] | None = None,
    **which: bool,
) -> None:
    """All results, or those named, within their limits, direction by direction. format: what the
    kernel rounds to, if that is not the problem's dtype; which: see rounding.Model."""
    if format is None and problem.dtype not in TOLERANCE:
        format = rounding.OF_DTYPE[problem.dtype]
    draws = None if format is None else drawn(problem, format, **which)

    def directions(name: str, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.chunk(2, 2) if name == "output" else tensor.unbind(0)

    for name in names or expected:
        for d in range(2):
            wanted = directions(name, expected[name])[d]
            rounding.check(
                directions(name, actual[name])[d],
                wanted,
                TOLERANCE.get(problem.dtype, TOLERANCE[torch.float32]),
                None if draws is None else draws[name][d],
                f"{name}, direction {d}",
            )
    past = ~problem.inside.expand(-1, -1, problem.state_size)
    for half in actual["output"].chunk(2, 2):
        assert (half[past] == 0).all(), "output past the end is not zero"
    assert (actual["dgates"][:, ~problem.inside[..., 0]] == 0).all(), "dgates past the end"
