"""A layer-normalised recurrence of both directions, what its results are in fp64, and stepwise's
kernels of it on the emulator.

The oracle takes each sequence by itself, step by step, with torch's layer_norm and its derivatives.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import rounding
import torch
from conftest import TOLERANCE
from guard_zones import GuardZones
from kernel_run import addresses, bits, emulator, integers, is_equal, of, pointers
from problem import CELL_VALUES, DGATES_BLOCKS, DTYPES, NAN, NUM_GATES
from torch import Tensor
from torch.nn.functional import layer_norm

import build

EPS = 1e-3  # large enough that its place in the formula shows
# csrc/recurrence.h: kNormalisedBlock.
NORMALISED_BLOCK = {"gru": 4, "lstm": 6}
# A norm magnifies the rounding of what it is given, the more the less its numbers differ.
MAGNIFIED = 30


class Problem:
    """The operands of both directions, exact in `dtype`, and what backward is given."""

    def __init__(
        self,
        cell: str,
        dtype: torch.dtype,
        sizes: tuple[int, int, int],
        lengths: Sequence[int] | None = None,
        states: bool = True,
        cell_states: bool = False,
        resets: Tensor | None = None,  # bool [T, B]; past the ends nobody reads it
        has_dy: bool = True,
    ) -> None:
        self.cell, self.dtype, self.sizes = cell, dtype, sizes
        T, B, H = sizes
        self.is_lstm = lstm = cell == "lstm"
        columns = NUM_GATES[cell] * H
        inside = torch.arange(T)[:, None] < torch.tensor(lengths or [T] * B).clamp(0, T)
        self.inside = inside.unsqueeze(2)  # [T, B, 1]
        self.zones = GuardZones()

        def draw(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
            drawn = torch.randn(*shape, dtype=torch.float64) * scale + mean
            return self.zones.copy(drawn.to(dtype))

        def rows(columns: int) -> Tensor:
            return self.zones.copy(torch.where(self.inside, draw(T, B, columns), NAN))

        self.gates_x = rows(2 * columns)
        # Sums whose mean is not near zero.
        self.weight_hh = draw(2, columns, H, scale=H**-0.5, mean=0.2)
        self.norm_hh = draw(2, columns, scale=0.3, mean=1.0)
        self.bias_hh = draw(2, columns, scale=0.3)
        self.norm_c = draw(2, H, scale=0.3, mean=1.0) if lstm else None
        self.bias_c = draw(2, H, scale=0.3) if lstm else None
        self.hx = draw(2, B, H) if states else None
        self.cx = draw(2, B, H) if states and lstm else None
        self.lengths = None if lengths is None else self.zones.copy(torch.tensor(lengths))
        self.resets = None if resets is None else self.zones.copy(resets)
        self.dy = rows(2 * H) if has_dy else None
        self.dhy, self.dcy = draw(2, B, H), draw(2, B, H)
        self.dc = rows(2 * H) if cell_states and lstm else None

    def operands(self) -> dict[str, Tensor]:
        names = ["gates_x", "weight_hh", "norm_hh", "bias_hh", "hx"]
        if self.is_lstm:
            names += ["norm_c", "bias_c", "cx"]
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def exact(self) -> dict[str, Tensor]:
        """Values, and the gradient of each operand that there is, in fp64."""
        T, B, H = self.sizes
        leaves = {n: t.double().nan_to_num().requires_grad_() for n, t in self.operands().items()}
        output, hy, cy, cells = [], [], [], []
        zeros = torch.zeros(H, dtype=torch.float64)
        for d in range(2):
            of_rows, of_cells = {}, {}
            for b in range(B):
                length = int(self.inside[:, b].sum())
                h = leaves["hx"][d, b] if "hx" in leaves else zeros
                c = leaves["cx"][d, b] if "cx" in leaves else zeros
                times = range(length) if d == 0 else range(length - 1, -1, -1)
                for index, t in enumerate(times):
                    border = t if d == 0 else t + 1
                    if self.resets is not None and (d == 0 or index > 0) and self.resets[border, b]:
                        h, c = zeros, zeros
                    h, c = self.step(leaves, d, leaves["gates_x"][t, b].chunk(2)[d], h, c)
                    of_rows[t, b], of_cells[t, b] = h, c
                hy.append(h)
                cy.append(c)
            for rows, of_row in ((output, of_rows), (cells, of_cells)):
                grid = [of_row.get((t, b), zeros) for t in range(T) for b in range(B)]
                rows.append(torch.stack(grid).view(T, B, H))
        results = {"output": torch.cat(output, 2), "hy": torch.stack(hy).view(2, B, H)}
        # Where nothing steps, gradients are zero.
        loss = sum((0 * leaf).sum() for leaf in leaves.values())
        loss = loss + (results["hy"] * self.dhy).sum()
        if self.dy is not None:
            loss = loss + (results["output"] * self.dy.nan_to_num()).sum()
        if self.is_lstm:
            results["cy"] = torch.stack(cy).view(2, B, H)
            loss = loss + (results["cy"] * self.dcy).sum()
            if self.dc is not None:
                loss = loss + (torch.cat(cells, 2) * self.dc.nan_to_num()).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return results | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}

    def step(
        self, leaves: dict[str, Tensor], d: int, gates_x: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        H = self.sizes[2]
        weight, norm, bias = (leaves[name][d] for name in ("weight_hh", "norm_hh", "bias_hh"))
        gates_h = layer_norm(weight @ h, norm.shape, norm, bias, EPS)
        if self.is_lstm:
            i, f, g, o = (gates_x + gates_h).split(H)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            normalised = layer_norm(c, (H,), leaves["norm_c"][d], leaves["bias_c"][d], EPS)
            return o.sigmoid() * normalised.tanh(), c
        (x_r, x_z, x_n), (h_r, h_z, h_n) = gates_x.split(H), gates_h.split(H)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        return (1 - z) * (x_n + r * h_n).tanh() + z * h, c


class Run:
    """Both directions by the kernels, forward at once; outputs start as NaN."""

    def __init__(
        self,
        problem: Problem,
        training: bool = True,
        steps_of_a_call: int = 1000,
        on: build.Emulator | None = None,
    ) -> None:
        self.problem, self.steps_of_a_call = problem, steps_of_a_call
        self.emulator = on or emulator("normalised")
        T, B, H = problem.sizes
        self.columns = NUM_GATES[problem.cell] * H
        self.reserve_size = (NORMALISED_BLOCK[problem.cell] + NUM_GATES[problem.cell]) * H + 2
        self.zones = zones = GuardZones()

        def results(*shape: int) -> Tensor:
            return zones.full(shape, NAN, problem.dtype)

        self.output, self.hy = results(T, B, 2 * H), results(2, B, H)
        self.cy = results(2, B, H) if problem.is_lstm else None
        self.reserve = results(2, T * B, self.reserve_size) if training else None
        width = DGATES_BLOCKS[problem.cell] * H
        self.dgates, self.dsums = results(2, T * B, width), results(2, T * B, self.columns)
        self.dnorm_c = results(2, T * B, H) if problem.is_lstm else None
        self.dhx = zones.copy(problem.dhy)
        self.dcx = zones.copy(problem.dcy) if problem.is_lstm else None
        assert self.launch(backward=False) == 0
        self.check_zones()

    def launch(self, backward: bool, products_before_error: int | None = None) -> int:
        problem = self.problem
        T, B, H = problem.sizes
        sizes = (CELL_VALUES[problem.cell], DTYPES.index(problem.dtype), T, B, H, 0)
        strides = (2 * self.columns, 2 * H, 2 * H, 2 * H)
        run = self.emulator.library.normalised_driver
        lengths = problem.lengths
        left = None
        if products_before_error is not None:
            left = ctypes.byref(ctypes.c_int(products_before_error))
        for d in range(2):
            own = slice(d * H, (d + 1) * H)
            given = [
                problem.gates_x[..., d * self.columns :],
                *(of(t, d) for t in (problem.weight_hh, problem.norm_hh, problem.bias_hh)),
                *(of(t, d) for t in (problem.norm_c, problem.bias_c, problem.hx, problem.cx)),
                problem.resets,
                self.output[..., own],
                *(of(t, d) for t in (self.reserve, self.hy, self.cy)),
                *(None if t is None else t[..., own] for t in (problem.dy, problem.dc)),
                *(of(t, d) for t in (self.dgates, self.dsums, self.dnorm_c, self.dhx, self.dcx)),
            ]
            status = run(
                integers(*sizes),
                int(backward),
                d,
                ctypes.c_double(EPS),
                None if lengths is None else ctypes.c_void_p(lengths.data_ptr()),
                pointers(*addresses(given)),
                integers(*strides),
                ctypes.c_int64(self.steps_of_a_call),
                left,
            )
            if status != 0:
                return status
        return 0

    def check_zones(self) -> None:
        self.zones.check()
        self.problem.zones.check()

    def states(self) -> list[Tensor]:
        return [self.output, self.hy, *([] if self.cy is None else [self.cy])]

    def backward(self) -> list[Tensor]:
        assert self.reserve is not None
        kept = [self.reserve.clone(), self.output.clone()]
        assert self.launch(backward=True) == 0, self.emulator.last_error()
        assert is_equal(kept, [self.reserve, self.output]), "backward wrote to what it reads"
        self.check_zones()
        written = (self.dgates, self.dsums, self.dnorm_c, self.dhx, self.dcx)
        return [tensor for tensor in written if tensor is not None]

    def results(self) -> dict[str, Tensor]:
        """What Problem.exact names: of the operands of all rows, by sums over the rows."""
        problem = self.problem
        T, B, H = problem.sizes
        self.backward()
        assert self.reserve is not None
        past = ~problem.inside.reshape(-1)
        rows = (self.reserve, self.dgates, self.dsums, self.dnorm_c, self.output.view(1, T * B, -1))
        for tensor in rows:
            assert tensor is None or (tensor[:, past] == 0).all(), "what is past the ends"
        results = dict(zip(("output", "hy", "cy"), self.states(), strict=False))
        dgates, saved = self.dgates.double(), self.reserve.double()
        of_x, recurrent = dgates, dgates[..., -self.columns :]
        if not problem.is_lstm:
            of_x = torch.cat([dgates[..., H : 3 * H], dgates[..., :H]], 2)
        results["dgates_x"] = torch.cat(list(of_x.view(2, T, B, -1)), 2)
        results["dweight_hh"] = self.dweight_hh()
        block = NORMALISED_BLOCK[problem.cell]
        normalised = saved[..., block * H : block * H + self.columns]
        results["dnorm_hh"] = (recurrent * normalised).sum(1)
        results["dbias_hh"] = recurrent.sum(1)
        if problem.hx is not None:
            results["dhx"] = self.dhx
        if self.dnorm_c is not None:
            dnorm_c = self.dnorm_c.double()
            results["dnorm_c"] = (dnorm_c * saved[..., 5 * H : 6 * H]).sum(1)
            results["dbias_c"] = dnorm_c.sum(1)
            if problem.cx is not None:
                results["dcx"] = self.dcx
        return results

    def dweight_hh(self) -> Tensor:
        """By the state that each step continues, sequence by sequence."""
        problem = self.problem
        T, B, H = problem.sizes
        products = torch.zeros(2, self.columns, H, dtype=torch.float64)
        output, dsums = self.output.double(), self.dsums.double().view(2, T, B, -1)
        for d in range(2):
            for b in range(B):
                length = int(problem.inside[:, b].sum())
                for t in range(length):
                    before, border = (t - 1, t) if d == 0 else (t + 1, t + 1)
                    is_inside = 0 <= before < length
                    starts_with_hx = not is_inside and problem.hx is not None
                    if problem.resets is not None and border < length and problem.resets[border, b]:
                        continue
                    if is_inside:
                        state = output[before, b].chunk(2)[d]
                    elif starts_with_hx:
                        state = problem.hx[d, b].double()  # type: ignore[index]
                    else:
                        continue
                    products[d] += torch.outer(dsums[d, t, b], state)
        return products


def check(problem: Problem, run: Run) -> None:
    """All results within their limits, direction by direction."""
    actual, expected = run.results(), problem.exact()
    assert actual.keys() == expected.keys()
    tolerance = MAGNIFIED * TOLERANCE[problem.dtype]
    for name, wanted in expected.items():
        by_row = name in ("output", "dgates_x")
        parts = zip(*(t.chunk(2, 2 if by_row else 0) for t in (actual[name], wanted)), strict=True)
        for d, (ours, theirs) in enumerate(parts):
            rounding.check(ours, theirs, tolerance, None, f"{name}, direction {d}")


def check_inference(problem: Problem, training: Run, on: build.Emulator | None = None) -> None:
    """Without a reserve: the same bits, in calls of two steps."""
    alone = Run(problem, training=False, steps_of_a_call=2, on=on)
    assert is_equal([bits(t) for t in training.states()], [bits(t) for t in alone.states()])
