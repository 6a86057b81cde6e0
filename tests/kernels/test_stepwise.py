"""The stepwise kernels, run by the emulator, against the reference in fp64.

Both directions of a layer, forward and backward. The input projection is no part of the kernels:
the reference is given the gates as its input and the identity as weight_ih. What may differ from
it in 16 bits and tf32: rounding.py.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import rounding
import rounding_model
import torch
from conftest import TOLERANCE
from guard_zones import GuardZones
from torch import Tensor

import build
from birnn_cuda import reference

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "tests" / "kernels"

CELLS = ("tanh", "relu", "gru", "lstm", "lstm_proj")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# csrc/recurrence.h: the values of Cell and Element, num_gates, reserve_blocks, dgates_blocks.
CELL_VALUES = {"tanh": 0, "relu": 1, "gru": 2, "lstm": 3}
NUM_GATES = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}
RESERVE_BLOCKS = {"tanh": 0, "relu": 0, "gru": 4, "lstm": 5}
DGATES_BLOCKS = {"tanh": 1, "relu": 1, "gru": 4, "lstm": 4}
GEMM_ERROR = 77  # of the driver's product

NAN = float("nan")


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes: NaN equals itself there."""
    return tensor.detach().contiguous().view(torch.uint8)


def is_equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


@functools.cache
def driver() -> build.Emulator:
    emulator = build.Emulator(build.shared_library(KERNELS / "stepwise_driver.cpp"))
    emulator.configure()
    return emulator


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def pointers(*tensors: Tensor | None) -> Any:
    return (ctypes.c_void_p * len(tensors))(*map(pointer, tensors))


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
    ) -> None:
        self.seq_len, self.batch_size, self.hidden_size = T, B, H = sizes
        self.dtype = dtype
        self.carried = torch.float64 if dtype == torch.float64 else torch.float32
        self.proj_size = max(1, H // 2) if cell == "lstm_proj" else 0
        self.cell = cell = "lstm" if cell == "lstm_proj" else cell
        self.state_size = S = self.proj_size or H
        G = NUM_GATES[cell]
        self.lengths = None if lengths is None else torch.tensor(lengths)
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
        self.bias_ih = draw(2, G * H, scale=0.1) if bias else None
        self.bias_hh = draw(2, G * H, scale=0.1) if bias else None
        self.hx = draw(2, B, S) if states else None
        self.cx = draw(2, B, H) if states and cell == "lstm" else None
        self.dy = draw(T, B, 2 * S)
        self.dhy = draw(2, B, S).to(self.carried)
        self.dcy = draw(2, B, H).to(self.carried)
        self.dc = draw(T, B, 2 * H) if cell_states and cell == "lstm" else None
        # What kernels read as it stands here.
        self.zones = GuardZones()
        for name in ("lengths", "weight_hh", "weight_hr", "bias_ih", "bias_hh", "hx", "cx"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, self.zones.copy(tensor))

    def results(self, recurrence: Any) -> dict[str, Tensor]:
        """Values and gradients, in fp64, of a recurrence in differentiable torch:
        (problem, gates, hx, cx, weight_hh, weight_hr) -> output, hy, cy, and c of every step."""

        def leaf(tensor: Tensor | None, *shape: int) -> Tensor:
            if tensor is None:
                return torch.zeros(*shape, dtype=torch.float64, requires_grad=True)
            return tensor.double().requires_grad_()

        B, H, S = self.batch_size, self.hidden_size, self.state_size
        gates, weight_hh = leaf(self.gates), leaf(self.weight_hh)
        hx, cx = leaf(self.hx, 2, B, S), leaf(self.cx, 2, B, H)
        weight_hr = leaf(self.weight_hr) if self.proj_size else None
        output, hy, cy, cells = recurrence(self, gates, hx, cx, weight_hh, weight_hr)
        loss = (output * torch.where(self.inside, self.dy, 0)).sum() + (hy * self.dhy).sum()
        results = {"output": output, "hy": hy}
        operands = {"dgates": gates, "dhx": hx, "dweight_hh": weight_hh}
        if self.cell == "lstm":
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference: its input, the gates of both directions, from which weight_ih picks one's."""
    columns = gates.size(3)
    identity = torch.eye(columns, dtype=torch.float64)
    weights = []
    for d in range(2):
        weight_ih = torch.zeros(columns, 2 * columns, dtype=torch.float64)
        weight_ih[:, d * columns : (d + 1) * columns] = identity
        weights += [weight_ih, weight_hh[d]]
        if problem.bias_ih is not None and problem.bias_hh is not None:
            weights += [problem.bias_ih[d].double(), problem.bias_hh[d].double()]
        if weight_hr is not None:
            weights.append(weight_hr[d])
    input = torch.cat([gates[0], gates[1]], 2)
    lengths = None if problem.lengths is None else problem.lengths.clamp(0, problem.seq_len)
    return reference.forward_with_cell_states(
        input, hx, cx, weights, lengths, None, problem.cell, 2
    )


# ---------------------------------------------------------------------------------------------
# What the format costs at best.


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
    )
    # The test itself multiplies for the gradients of the weights.
    which["weight_factors"] = False
    model = rounding_model.Model(operands, rounding.Rounding(format), draws, **which)
    results = model.forward()
    is_lstm = problem.cell == "lstm"
    results |= model.backward(
        by_direction(problem.dy),
        problem.dhy.double().unsqueeze(1),
        problem.dcy.double().unsqueeze(1) if is_lstm else None,
        None if problem.dc is None else by_direction(problem.dc),
    )
    return results


# ---------------------------------------------------------------------------------------------
# The kernels.


def sizes_of(problem: Problem) -> Any:
    return integers(
        CELL_VALUES[problem.cell],
        DTYPES.index(problem.dtype),
        problem.seq_len,
        problem.batch_size,
        problem.hidden_size,
        problem.proj_size,
    )


class Run:
    """Both directions by the kernels, forward at once; outputs start as NaN, and so does all that
    lies past a sequence's end. in_place: a vanilla RNN finds its gates in its output."""

    def __init__(
        self,
        emulator: build.Emulator,
        problem: Problem,
        save_reserve: bool = True,
        in_place: bool = False,
    ) -> None:
        self.library, self.last_error, self.problem = emulator.library, emulator.last_error, problem
        T, B, H, S = problem.seq_len, problem.batch_size, problem.hidden_size, problem.state_size
        G, dtype = NUM_GATES[problem.cell], problem.dtype
        self.zones = zones = GuardZones()
        self.output = zones.full((T, B, 2 * S), NAN, dtype)
        self.hy = zones.full((2, B, S), NAN, dtype)
        self.cy = zones.full((2, B, H), NAN, problem.carried)
        self.width = max(G, RESERVE_BLOCKS[problem.cell]) * H
        self.gates = zones.full((2, T, B, self.width), NAN, dtype)
        self.gates[..., : G * H] = torch.where(problem.inside, problem.gates, NAN)
        if in_place:
            self.output.copy_(torch.cat(list(self.gates), 2))
        for d in range(2):
            gates = self.output[..., d * S :] if in_place else self.gates[d]
            status = self.library.stepwise_forward_driver(
                sizes_of(problem),
                d,
                int(save_reserve),
                *self.lengths(),
                pointers(
                    problem.weight_hh[d],
                    self.of(problem.weight_hr, d),
                    self.of(problem.bias_ih, d),
                    self.of(problem.bias_hh, d),
                    self.of(problem.hx, d),
                    self.of(problem.cx, d),
                    gates,
                    self.output[..., d * S :],
                    self.hy[d],
                    self.cy[d],
                ),
                integers(2 * S if in_place else self.width, 2 * S),
                None,
            )
            assert status == 0, f"status {status}: {emulator.last_error()}"
        self.check_zones()

    def check_zones(self) -> None:
        self.zones.check()
        self.problem.zones.check()

    @staticmethod
    def of(tensor: Tensor | None, d: int) -> Tensor | None:
        return None if tensor is None else tensor[d]

    def lengths(self) -> tuple[Any]:
        lengths = self.problem.lengths
        return (None if lengths is None else ctypes.c_void_p(lengths.data_ptr()),)

    def backward(self) -> dict[str, Tensor]:
        """What backward writes, by name; dweight_hh and dweight_hr follow from it."""
        problem = self.problem
        T, B, H, S = problem.seq_len, problem.batch_size, problem.hidden_size, problem.state_size
        blocks, zones, dtype = DGATES_BLOCKS[problem.cell], self.zones, problem.dtype
        self.dgates = zones.full((2, T, B, blocks * H), NAN, dtype)
        self.first_dgates = zones.full((2, B, blocks * H), NAN, dtype)
        self.dproj = zones.full((2, T, B, S), NAN, dtype) if problem.proj_size else None
        self.dhx, self.dcx = zones.copy(problem.dhy), zones.copy(problem.dcy)
        dy = zones.copy(torch.where(problem.inside, problem.dy, NAN))
        dc = problem.dc
        if dc is not None:
            dc = zones.copy(torch.where(problem.inside, dc, NAN))
        reserve = self.gates if RESERVE_BLOCKS[problem.cell] else None
        kept = [self.gates.clone(), self.output.clone(), dy.clone()]
        for d in range(2):
            status = self.library.stepwise_backward_driver(
                sizes_of(problem),
                d,
                *self.lengths(),
                pointers(
                    problem.weight_hh[d],
                    self.of(problem.weight_hr, d),
                    self.of(problem.hx, d),
                    self.of(problem.cx, d),
                    self.output[..., d * S :],
                    self.of(reserve, d),
                    dy[..., d * S :],
                    None if dc is None else dc[..., d * H :],
                    self.dgates[d],
                    self.of(self.dproj, d),
                    self.dhx[d],
                    self.dcx[d] if problem.cell == "lstm" else None,
                    self.first_dgates[d],
                ),
                integers(2 * S, self.width, 2 * S, 2 * H, blocks * H),
                None,
            )
            assert status == 0, f"status {status}: {self.last_error()}"
        assert is_equal(kept, [self.gates, self.output, dy]), "backward wrote to what it reads"
        self.check_zones()
        written = {"dgates": self.dgates, "dhx": self.dhx, "first_dgates": self.first_dgates}
        if problem.cell == "lstm":
            written["dcx"] = self.dcx
        if self.dproj is not None:
            written["dproj"] = self.dproj
        return written

    def results(self) -> dict[str, Tensor]:
        """The values and gradients that Problem.results names."""
        problem = self.problem
        H, S = problem.hidden_size, problem.state_size
        results = {"output": self.output, "hy": self.hy}
        if problem.cell == "lstm":
            results["cy"] = self.cy
        written = self.backward()
        dgates = self.dgates.double()
        outputs = self.output.double().split(S, 2)
        products, projections = [], []
        for d in range(2):
            recurrent = dgates[d][..., H:] if problem.cell == "gru" else dgates[d]
            first = self.first_dgates[d].double()[:, -recurrent.size(2) :]
            later, earlier = (slice(1, None), slice(None, -1))
            if d:
                later, earlier = earlier, later
            product = torch.einsum("tbg,tbs->gs", recurrent[later], outputs[d][earlier])
            if problem.hx is not None:
                product += first.t() @ problem.hx[d].double()
            products.append(product)
            if self.dproj is not None:
                o, c = self.gates[d].double()[..., 3 * H :].split(H, 2)
                wide = torch.where(problem.inside, o * torch.tanh(c), 0)
                projections.append(torch.einsum("tbp,tbh->ph", self.dproj[d].double(), wide))
        if problem.cell == "gru":
            n, r, z, _ = dgates.split(H, 3)
            dgates = torch.cat([r, z, n], 3)
        results |= {"dgates": dgates, "dhx": written["dhx"], "dweight_hh": torch.stack(products)}
        if problem.cell == "lstm":
            results["dcx"] = written["dcx"]
        if projections:
            results["dweight_hr"] = torch.stack(projections)
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


def draw_lengths(pattern: str, seq_len: int, batch_size: int) -> list[int] | None:
    if pattern == "none":
        return None
    if pattern == "full":
        return [seq_len] * batch_size
    # With 0 and T, unsorted, and beyond what is allowed: clamped.
    wild = [seq_len // 2, 0, seq_len + 3, 1, -2, seq_len]
    return [wild[b % len(wild)] for b in range(batch_size)]


SEQUENCE_LENGTHS = (1, 2, 3, 5, 7)
OPTIONS = tuple(itertools.product((True, False), repeat=2))  # bias, states
SHAPES = ((1, 1), (6, 5), (3, 33), (7, 8), (2, 130))  # B, H: 130 units are two blocks


@pytest.mark.parametrize("pattern", ["none", "full", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[1])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell: str, dtype: torch.dtype, pattern: str, seed: int) -> None:
    emulator = driver()
    shapes = itertools.cycle(SHAPES[seed % 5 :] + SHAPES[: seed % 5])
    for index, (T, (bias, states)) in enumerate(itertools.product(SEQUENCE_LENGTHS, OPTIONS)):
        # Half of the combinations of T and options in one run, all of them in two.
        if (index + index // len(OPTIONS) + seed) % 2:
            continue
        B, H = next(shapes)
        lengths = draw_lengths(pattern, T, B)
        problem = Problem(cell, dtype, (T, B, H), lengths, bias, states, cell_states=states)
        run = Run(emulator, problem)
        check(problem, run.results(), problem.results(exact))

        inference = Run(emulator, problem, save_reserve=False)
        assert is_equal(
            [run.output, run.hy, run.cy], [inference.output, inference.hy, inference.cy]
        )
        given = torch.where(problem.inside, problem.gates, NAN)
        assert is_equal([inference.gates[..., : given.size(3)]], [given]), "inference keeps nothing"
        if cell in ("tanh", "relu"):
            in_place = Run(emulator, problem, in_place=True)
            assert is_equal([run.output, run.hy], [in_place.output, in_place.hy])


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_run_is_bitwise_equal(cell: str) -> None:
    """Under another schedule of the threads, too; and a second backward."""
    emulator = driver()
    problem = Problem(cell, torch.float32, (5, 6, 33), draw_lengths("mixed", 5, 6))
    runs = []
    for order in ("shuffle", "reverse"):
        emulator.configure(order=order)
        run = Run(emulator, problem)
        first, second = run.backward(), run.backward()
        assert is_equal(list(first.values()), list(second.values()))
        runs.append([run.output, run.hy, run.cy, run.gates, *first.values()])
    emulator.configure()
    assert is_equal(*runs)


def test_nan_stays_in_its_sequence() -> None:
    problem = Problem("gru", torch.float32, (4, 3, 9))
    clean = Run(driver(), problem)
    problem.gates[:, 2, 1] = NAN
    run = Run(driver(), problem)
    assert run.hy[:, 1].isnan().all()
    assert is_equal([run.hy[:, [0, 2]]], [clean.hy[:, [0, 2]]])


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm_proj"])
def test_errors_of_the_product_are_returned(cell: str) -> None:
    problem = Problem(cell, torch.float32, (3, 2, 4))
    run = Run(driver(), problem)
    run.backward()
    library, H, S = driver().library, problem.hidden_size, problem.state_size
    forward = pointers(
        problem.weight_hh[0],
        Run.of(problem.weight_hr, 0),
        None,
        None,
        problem.hx[0],
        Run.of(problem.cx, 0),
        run.gates[0],
        run.output,
        run.hy[0],
        run.cy[0],
    )
    products = 3 * (2 if problem.proj_size else 1)
    for before in range(products + 1):
        left = ctypes.byref(ctypes.c_int(before))
        status = library.stepwise_forward_driver(
            sizes_of(problem), 0, 1, None, forward, integers(run.width, 2 * S), left
        )
        assert status == (0 if before == products else GEMM_ERROR)
    backward = pointers(
        problem.weight_hh[0],
        Run.of(problem.weight_hr, 0),
        None,
        None,
        run.output,
        run.gates[0],
        None,
        None,
        run.dgates[0],
        Run.of(run.dproj, 0),
        run.dhx[0],
        run.dcx[0],
        None,
    )
    strides = integers(2 * S, run.width, 2 * S, 0, DGATES_BLOCKS[problem.cell] * H)
    for before in range(products + 1):
        left = ctypes.byref(ctypes.c_int(before))
        status = library.stepwise_backward_driver(
            sizes_of(problem), 0, None, backward, strides, left
        )
        assert status == (0 if before == products else GEMM_ERROR)


@pytest.mark.parametrize("variant", ["address", "thread"])
def test_clean_under_sanitizers(variant: str) -> None:
    program = build.program(KERNELS / "stepwise_program.cpp", variant)
    result = build.run(program, order="skew", landing="late")
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout == "ok\n"
