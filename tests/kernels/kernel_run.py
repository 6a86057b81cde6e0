"""Runs both directions of a problem by the kernels that a test names, on the emulator.

A pass, forward or backward, is run by one kernel; the other pass of the same run may be another's:
so what a forward kernel keeps for backward is judged by the gradients that stepwise makes of it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import rounding
import torch
from guard_zones import GuardZones
from problem import (
    CELL_VALUES,
    CELLS,
    DGATES_BLOCKS,
    DTYPES,
    NAN,
    NUM_GATES,
    PRECISIONS,
    Problem,
    check,
    draw_lengths,
    draw_resets,
    exact,
)
from torch import Tensor

import build

KERNELS = Path(__file__).resolve().parent


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes: NaN equals itself there."""
    return tensor.detach().contiguous().view(torch.uint8)


def is_equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def addresses(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def pointers(*addresses: int | None) -> Any:
    return (ctypes.c_void_p * len(addresses))(*addresses)


def of(tensor: Tensor | None, d: int) -> Tensor | None:
    return None if tensor is None else tensor[d]


def sizes_of(problem: Problem) -> Any:
    return integers(
        CELL_VALUES[problem.cell],
        DTYPES.index(problem.dtype),
        problem.seq_len,
        problem.batch_size,
        problem.hidden_size,
        problem.proj_size,
    )


@functools.cache
def emulator(name: str) -> build.Emulator:
    """The driver of this name, built once: every kernel in NAME_driver.cpp."""
    found = build.Emulator(build.shared_library(KERNELS / f"{name}_driver.cpp"))
    found.configure()
    return found


class Kernel:
    """What runs a pass: a kernel of the driver of its name, and how it divides the problem.

    tiling: as the driver takes it; none for stepwise. together: both directions in one launch. on:
    a driver of its own, by default the one of that name.
    """

    def __init__(
        self,
        name: str,
        tiling: Sequence[int] = (),
        tf32: bool = False,
        together: bool = True,
        on: build.Emulator | None = None,
    ) -> None:
        self.name, self.tiling, self.tf32, self.together = name, tiling, tf32, together
        self.is_stepwise = name.startswith("stepwise")
        self.emulator = on or emulator("stepwise" if self.is_stepwise else name)

    def launch(
        self,
        problem: Problem,
        flags: Sequence[int],
        of_direction: Sequence[Sequence[int | None]],
        strides: Sequence[int],
    ) -> None:
        """of_direction: the addresses that each direction is given, last the regularisers, of which
        zoneout is stepwise's alone."""
        run = getattr(self.emulator.library, self.name + "_driver")
        lengths = None
        if problem.lengths is not None:
            lengths = ctypes.c_void_p(problem.lengths.data_ptr())
        last = integers(*self.tiling, int(self.tf32)) if self.tiling else None
        # Grid kernels take a number of directions, and whether the last one walks backwards.
        is_grid = self.name.startswith("grid")
        if is_grid and self.together:
            calls = [((2, 1), itertools.chain(*of_direction), (*strides, *strides))]
        else:
            calls = [((1, d) if is_grid else (d,), of_direction[d], strides) for d in range(2)]
        for directions, given, of_given in calls:
            status = run(
                sizes_of(problem),
                *directions,
                *flags,
                lengths,
                pointers(*given),
                integers(*of_given),
                last,
            )
            assert status == 0, f"status {status}: {self.emulator.last_error()}"


class Run:
    """Both directions by the kernels, forward at once; outputs start as NaN, and so does all that
    lies past a sequence's end. in_place: a vanilla RNN finds its gates in its output. without: what
    backward is given a null pointer for."""

    def __init__(
        self,
        problem: Problem,
        forward: Kernel | None = None,
        backward: Kernel | None = None,
        save_reserve: bool = True,
        in_place: bool = False,
        without: Sequence[str] = (),
    ) -> None:
        self.problem, self.without = problem, without
        self.backward_kernel = backward or Kernel("stepwise_backward")
        T, B, H, S = problem.seq_len, problem.batch_size, problem.hidden_size, problem.state_size
        G, dtype = NUM_GATES[problem.cell], problem.dtype
        self.zones = zones = GuardZones()
        self.output = zones.full((T, B, 2 * S), NAN, dtype)
        self.hy = zones.full((2, B, S), NAN, dtype)
        self.cy = zones.full((2, B, H), NAN, problem.carried)
        self.width = max(G, problem.reserve_blocks) * H
        self.gates = zones.full((2, T, B, self.width), NAN, dtype)
        self.gates[..., : G * H] = torch.where(problem.inside, problem.gates, NAN)
        if in_place:
            self.output.copy_(torch.cat(list(self.gates), 2))
        self.of_forward = [
            (
                problem.weight_hh[d],
                self.last_weight(d),
                of(problem.bias_ih, d),
                of(problem.bias_hh, d),
                of(problem.hx, d),
                of(problem.cx, d),
                self.output[..., d * S :] if in_place else self.gates[d],
                self.output[..., d * S :],
                self.hy[d],
                self.cy[d],
                problem.resets,
                *self.regularisers(d),
            )
            for d in range(2)
        ]
        self.share_strides = tuple(
            0 if shares is None or shares.size(0) < T else shares.size(2)
            for shares in (problem.zoneout_h, problem.zoneout_c)
        )
        self.forward_strides = (2 * S if in_place else self.width, 2 * S, *self.share_strides)
        (forward or Kernel("stepwise_forward")).launch(
            problem,
            [int(save_reserve)],
            [addresses(tensors) for tensors in self.of_forward],
            self.forward_strides,
        )
        self.check_zones()

    def regularisers(self, d: int) -> list[Tensor | None]:
        problem = self.problem
        columns = (problem.zoneout_h, problem.state_size), (problem.zoneout_c, problem.hidden_size)
        shares = [None if t is None else t[..., d * width :] for t, width in columns]
        return [of(problem.recurrent_mask, d), *shares]

    def last_weight(self, d: int) -> Tensor | None:
        """weight_hr, or the peepholes in its place."""
        problem = self.problem
        return of(problem.weight_hr if problem.weight_ch is None else problem.weight_ch, d)

    def check_zones(self) -> None:
        self.zones.check()
        self.problem.zones.check()

    def states(self) -> list[Tensor]:
        return [self.output, self.hy, *([self.cy] if self.problem.is_lstm else [])]

    def backward(self) -> dict[str, Tensor]:
        """What backward writes, by name; dweight_hh and dweight_hr follow from it, and after
        stepwise the gradients of the biases."""
        problem = self.problem
        T, B, H, S = problem.seq_len, problem.batch_size, problem.hidden_size, problem.state_size
        blocks, zones, dtype = DGATES_BLOCKS[problem.cell], self.zones, problem.dtype
        self.dgates = zones.full((2, T, B, blocks * H), NAN, dtype)
        self.first_dgates = zones.full((2, B, blocks * H), NAN, dtype)
        self.dproj = zones.full((2, T, B, S), NAN, dtype) if problem.proj_size else None
        self.dhx, self.dcx = zones.copy(problem.dhy), zones.copy(problem.dcy)
        columns = NUM_GATES[problem.cell] * H
        self.dbias_ih, self.dbias_hh = (zones.full((2, columns), NAN, dtype) for _ in range(2))
        dy = zones.copy(torch.where(problem.inside, problem.dy, NAN))
        dc = problem.dc
        if dc is not None:
            dc = zones.copy(torch.where(problem.inside, dc, NAN))
        reserve = self.gates if problem.reserve_blocks else None
        kept = [self.gates.clone(), self.output.clone(), dy.clone()]
        of_backward = []
        for d in range(2):
            given = {
                "weight_hh": problem.weight_hh[d],
                "weight_hr": self.last_weight(d),
                "hx": of(problem.hx, d),
                "cx": of(problem.cx, d),
                "output": self.output[..., d * S :],
                "reserve": of(reserve, d),
                "dy": dy[..., d * S :],
                "dc": None if dc is None else dc[..., d * H :],
                "dgates": self.dgates[d],
                "dproj": of(self.dproj, d),
                "dhx": self.dhx[d],
                "dcx": self.dcx[d] if problem.is_lstm else None,
                "dbias_ih": self.dbias_ih[d],
                "dbias_hh": self.dbias_hh[d],
                "resets": problem.resets,
                "first_dgates": self.first_dgates[d],
            }
            operands = [None if name in self.without else t for name, t in given.items()]
            of_backward.append([*operands, *self.regularisers(d)])
        self.of_backward = of_backward
        self.backward_strides = (
            *(2 * S, self.width, 2 * S, 2 * H, blocks * H),
            *self.share_strides,
        )
        self.backward_kernel.launch(
            problem, [], [addresses(tensors) for tensors in of_backward], self.backward_strides
        )
        assert is_equal(kept, [self.gates, self.output, dy]), "backward wrote to what it reads"
        self.check_zones()
        written = {"dgates": self.dgates, "dhx": self.dhx, "first_dgates": self.first_dgates}
        if problem.is_lstm:
            written["dcx"] = self.dcx
        if self.dproj is not None:
            written["dproj"] = self.dproj
        if not self.backward_kernel.is_stepwise:
            written |= {"dbias_ih": self.dbias_ih, "dbias_hh": self.dbias_hh}
        return written

    def results(self) -> dict[str, Tensor]:
        """The values and gradients that Problem.results names."""
        problem = self.problem
        H, S = problem.hidden_size, problem.state_size
        results = {"output": self.output, "hy": self.hy}
        if problem.is_lstm:
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
            before, hx = outputs[d][earlier], problem.hx
            if problem.resets is not None:  # zeros where a sequence begins between the two
                begins = problem.resets.unsqueeze(2)
                before = torch.where(begins[1:], 0, before)
                if hx is not None and d == 0:
                    hx = torch.where(begins[0], 0, hx)
            if problem.recurrent_mask is not None:
                mask = problem.recurrent_mask[d].double()
                before, hx = before * mask, None if hx is None else hx.double() * mask
            product = torch.einsum("tbg,tbs->gs", recurrent[later], before)
            if hx is not None:
                product += first.t() @ hx[d].double()
            if problem.cell == "gru_reset_before":  # its n by r * h, zeros past the ends
                reset = self.gates[d].double()[..., 3 * H : 4 * H]
                product[2 * H :] = torch.einsum("tbg,tbs->gs", recurrent[..., 2 * H :], reset)
            products.append(product)
            if self.dproj is not None:
                c_block = 5 if problem.has_zoneout else 4  # before zoneout mixes it
                gates = self.gates[d].double()
                o, c = (gates[..., k * H : (k + 1) * H] for k in (3, c_block))
                wide = torch.where(problem.inside, o * torch.tanh(c), 0)
                projections.append(torch.einsum("tbp,tbh->ph", self.dproj[d].double(), wide))
        recurrent = dgates
        if problem.cell == "gru":
            n, r, z, recurrent_n = dgates.split(H, 3)
            dgates, recurrent = torch.cat([r, z, n], 3), torch.cat([r, z, recurrent_n], 3)
        for name, summed in (("dbias_ih", dgates), ("dbias_hh", recurrent)):
            results[name] = written.get(name, summed.sum((1, 2)))
        results |= {"dgates": dgates, "dhx": written["dhx"], "dweight_hh": torch.stack(products)}
        if problem.is_lstm:
            results["dcx"] = written["dcx"]
        if projections:
            results["dweight_hr"] = torch.stack(projections)
        return results


# ---------------------------------------------------------------------------------------------
# What is asked of every kernel.


def format_of(kernel: Kernel) -> rounding.Format | None:
    return rounding.FORMATS["tf32"] if kernel.tf32 else None


def check_forward(problem: Problem, kernel: Kernel) -> Run:
    """Values within their limits, and, with stepwise's backward, gradients."""
    run = Run(problem, forward=kernel)
    check(problem, run.results(), problem.results(exact), format_of(kernel), backward_factors=False)
    return run


def check_inference(problem: Problem, kernel: Kernel, training: Run) -> None:
    """Without a reserve: the same bits, and nothing kept, not even in the gates."""
    inference = Run(problem, forward=kernel, save_reserve=False)
    assert is_equal(training.states(), inference.states())
    given = torch.where(problem.inside, problem.gates, NAN)
    assert is_equal([inference.gates[..., : given.size(3)]], [given]), "inference keeps nothing"


# What a persistent kernel may be given beside lengths: several sequences in a row; a mask of h.
GIVEN: tuple[dict[str, Any], ...] = (
    {"resets": True},
    {"regularisers": "dropout"},
    {"resets": True, "regularisers": "dropout"},
)
# In every run of the suite: all cells and precisions; those with gates in fp32 and in 16 bits.
GIVEN_IN_EVERY_RUN = {
    *(("tanh", "bf16"), ("relu", "ieee")),
    *itertools.product(("gru", "lstm"), ("tf32", "fp16")),
}
CASES_WITH_GIVEN = [
    pytest.param(*case, marks=() if case in GIVEN_IN_EVERY_RUN else pytest.mark.long)
    for case in itertools.product(CELLS, PRECISIONS)
]
# More steps than the bits of a word of resets, twice.
MANY_STEPS = 70
# What planted defects are looked for with: what is given, steps, a pattern of lengths.
GIVEN_OF_DEFECTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "resets": (GIVEN[0], 6, "none"),
    "masks": (GIVEN[1], 6, "none"),
    "many": (GIVEN[2], MANY_STEPS, "long"),
    "many_resets": (GIVEN[0], MANY_STEPS, "none"),
}


def with_given(
    given: dict[str, Any],
    cell: str,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    pattern: str,
    **options: Any,
) -> Problem:
    """A problem with what is given drawn for it."""
    T, B, _ = sizes
    drawn = given | ({"resets": draw_resets(T, B)} if given.get("resets") else {})
    return Problem(cell, dtype, sizes, draw_lengths(pattern, T, B), **drawn, **options)


def problems_with_given(
    cell: str,
    precision: str,
    seed: int,
    shapes: Sequence[tuple[int, ...]],
    patterns: Sequence[str],
    cell_states: bool = False,
) -> Iterator[tuple[Problem, list[int]]]:
    """Problems with resets, masks and both, over shapes (H, B, tiling) and patterns of lengths in
    turn; and their tilings."""
    first = seed % len(shapes)
    given_shapes = itertools.cycle([*shapes[first:], *shapes[:first]])
    given_patterns = itertools.cycle(patterns)
    for index, (given, T) in enumerate(itertools.product(GIVEN, (1, 2, 5, 7))):
        # Half of the combinations in one run, all of them in two.
        if (index + index // 4 + seed) % 2:
            continue
        H, B, *tiling = next(given_shapes)
        options = {"states": index % 4 != 2, "cell_states": cell_states and index % 3 == 0}
        sizes, pattern = (T, B, H), next(given_patterns)
        yield with_given(given, cell, PRECISIONS[precision], sizes, pattern, **options), tiling


def check_nan_stays_before_a_reset(kernel: Kernel, dtype: torch.dtype, hidden_size: int) -> None:
    """Zeros are chosen where a sequence begins, not multiplied by."""
    for cell in ("gru", "lstm"):
        resets = torch.zeros(5, 3, dtype=torch.bool)
        resets[3, 1] = True
        problem = Problem(cell, dtype, (5, 3, hidden_size), resets=resets)
        clean = Run(problem, forward=kernel)
        # Either direction comes from its own side of the boundary.
        for d, at, after in ((0, 2, slice(3, 5)), (1, 3, slice(0, 3))):
            problem.gates[d, at, 1] = NAN
            run = Run(problem, forward=kernel)
            columns = slice(d * hidden_size, (d + 1) * hidden_size)
            assert run.output[at, 1, columns].isnan().all()
            assert is_equal([run.output[after, :, columns]], [clean.output[after, :, columns]]), (
                f"{cell}, direction {d}"
            )
            problem.gates[d, at, 1] = 0.5
            clean = Run(problem, forward=kernel)


def check_nan_of_a_gradient_stays_behind_a_reset(
    kernel: Kernel, dtype: torch.dtype, hidden_size: int
) -> None:
    for cell in ("gru", "lstm"):
        resets = torch.zeros(5, 3, dtype=torch.bool)
        resets[3, 1] = True
        problem = Problem(cell, dtype, (5, 3, hidden_size), resets=resets)
        run = Run(problem, backward=kernel)
        run.backward()
        clean = run.dgates.clone()
        for d, at, before in ((0, 3, slice(0, 3)), (1, 2, slice(3, 5))):
            kept = problem.dy.clone()
            problem.dy[at, 1] = NAN
            run.backward()
            assert run.dgates[d, at, 1].isnan().any()
            assert is_equal([run.dgates[d, before]], [clean[d, before]]), f"{cell}, direction {d}"
            problem.dy.copy_(kept)


def check_in_place(problem: Problem, kernel: Kernel, training: Run) -> None:
    if problem.cell in ("tanh", "relu"):
        in_place = Run(problem, forward=kernel, in_place=True)
        assert is_equal(training.states(), in_place.states())


def check_nan_stays_in_its_sequence(
    kernel: Kernel, dtype: torch.dtype = torch.float32, hidden_size: int = 9
) -> None:
    """Not even weights that are zero bring it into another's."""
    problem = Problem("gru", dtype, (4, 3, hidden_size))
    clean = Run(problem, forward=kernel)
    problem.gates[:, 2, 1] = NAN
    run = Run(problem, forward=kernel)
    assert run.hy[:, 1].isnan().all()
    assert is_equal([run.hy[:, [0, 2]]], [clean.hy[:, [0, 2]]])


def check_nan_of_a_gradient_stays_in_its_sequence(kernel: Kernel, dtype: torch.dtype) -> None:
    problem = Problem("gru", dtype, (4, 3, 10))
    run = Run(problem, backward=kernel)
    clean = run.backward()["dhx"]
    problem.dy[2, 1] = NAN
    dhx = run.backward()["dhx"]
    assert dhx[:, 1].isnan().all()
    assert is_equal([dhx[:, [0, 2]]], [clean[:, [0, 2]]])


def check_backward(problem: Problem, kernel: Kernel, without: Sequence[str] = ()) -> None:
    """Every gradient of every direction within its limit, after stepwise's forward."""
    run = Run(problem, backward=kernel, without=without)
    actual, expected = run.results(), problem.results(exact)
    names = ["dgates", "dhx", "dweight_hh", "dbias_ih", "dbias_hh"]
    if problem.is_lstm:
        names.append("dcx")
    check(problem, actual, expected, format_of(kernel), names, forward_factors=False)
    firsts = run.first_dgates[:, (~problem.inside.any(0))[:, 0]]
    assert (firsts == 0).all(), "first_dgates of an empty sequence"


def check_first_dgates_may_be_absent(kernel: Kernel) -> None:
    problem = Problem("gru", torch.float32, (3, 2, 6), [3, 2])
    full, without = (
        Run(problem, backward=kernel, without=absent) for absent in ((), ("first_dgates",))
    )
    assert is_equal([full.backward()["dgates"]], [without.backward()["dgates"]])


def check_gradients_of_biases_may_be_absent(kernel: Kernel, batch_size: int) -> None:
    """What is not asked for is not written, and changes nothing else."""
    problem = Problem("gru", torch.float32, (3, batch_size, 6))
    full = Run(problem, backward=kernel).backward()
    for absent in (("dbias_ih",), ("dbias_hh",), ("dbias_ih", "dbias_hh")):
        written = Run(problem, backward=kernel, without=absent).backward()
        for name, expected in full.items():
            if name in absent:
                assert written[name].isnan().all()
            else:
                assert is_equal([written[name]], [expected])


def check_same_bits_under_every_schedule(
    kernel: Kernel, run: Callable[[], Sequence[Tensor]], schedules: Sequence[tuple[str, str]]
) -> None:
    kept: Sequence[Tensor] | None = None
    for order, landing in schedules:
        kernel.emulator.configure(order=order, landing=landing, seed=7)
        for written in (run(), run()):
            assert kept is None or is_equal(kept, written), f"{order}, {landing}"
            kept = written
    kernel.emulator.configure()


# When a kernel changes: races, and reads out of bounds. Writes meet the guard zones of every test.
SANITIZERS = ("address", "thread")


def check_clean_under_sanitizers(kernel: str, variant: str, landing: str = "late") -> None:
    """The program of a kernel, a few shapes, under a sanitizer."""
    program = build.program(KERNELS / f"{kernel}_program.cpp", variant)
    result = build.run(program, order="skew", landing=landing)
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout == "ok\n"
