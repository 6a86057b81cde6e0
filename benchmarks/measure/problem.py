"""One problem for all entrants, its right answer, and the check that every entrant passes first.

The answer is torch.nn in fp64, without cuDNN, on the very numbers the entrants get (rounded to
their dtype, then widened). An entrant whose relative error ||out - ref|| / ||ref|| is too large in
any tensor is not timed. The limits: 1e-5 in fp32, 1e-12 in fp64; in fp16, bf16 and tf32 four times
torch.nn's own error on the same device and numbers, plus one rounding. Why four: TIMES_TORCH.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.measure.cases import Case
from benchmarks.measure.flops import flops

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FIXED_TOLERANCES = {"fp32": 1e-5, "fp64": 1e-12}
# An entrant that rounds as often as torch.nn errs as much, but otherwise: the squares of two such
# errors have a quotient distributed like F(f, f). Of all tensors that are measured, the gradients
# of the biases of the smallest layer (T=100, B=1, H=64) have the least degrees of freedom, f = 28,
# with which twice the error is exceeded in one of 4,000 tensors, four times in one of 10^10.
TIMES_TORCH = 4
ROUNDINGS = {"fp16": 2**-11, "tf32": 2**-11, "bf16": 2**-8}  # to the nearest

# Below this the answer is computed on one thread: threads that meet at every small product are
# slow wherever other work keeps one of them from its core.
MANY_FLOPS = 10**10

# How sequences of unequal length are handed to a layer.
FEEDS = ("padded", "lengths", "packed")

Tensors = dict[str, torch.Tensor]


@contextmanager
def products_as(dtype: str) -> Iterator[None]:
    """Let fp32 products on CUDA be rounded to TF32 if, and only if, the case's dtype is tf32."""
    rnn: Any = torch.backends.cudnn.rnn
    matmul = torch.backends.cuda.matmul
    before = rnn.fp32_precision, matmul.allow_tf32
    rnn.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    matmul.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        rnn.fp32_precision, matmul.allow_tf32 = before


@contextmanager
def without_cudnn() -> Iterator[None]:
    """torch.nn by its own kernels: the answer must not be that of a library under test."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def make_layer(
    namespace: ModuleType | Any,
    case: Case,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> torch.nn.RNNBase:
    """A layer of the case's size, from torch.nn or a stand-in for it."""
    layer_class = getattr(namespace, case.cell.upper())
    layer: torch.nn.RNNBase = layer_class(
        case.input_size,
        case.hidden_size,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        device=device,
        dtype=dtype,
    )
    return layer


class LayerRun:
    """A layer, its input and, for training, the gradient of its output: one step at a time.

    A training step is forward and backward with a fixed output gradient, which is what any loss
    hands down; gradients are set to None before it, as ``zero_grad`` does.
    """

    def __init__(
        self,
        namespace: ModuleType | Any,
        problem: Problem,
        dtype: torch.dtype,
        feed: str = "padded",
    ) -> None:
        if feed not in FEEDS:
            raise ValueError(f"feed {feed!r}: valid values are {', '.join(FEEDS)}")
        case = problem.case
        self.training = case.training
        self.cell = case.cell
        self.layer = make_layer(namespace, case, dtype, problem.input.device)
        self.layer.load_state_dict({k: v.to(dtype) for k, v in problem.weights.items()})
        self.layer.train(case.training)
        self.kwargs: dict[str, Any] = {}
        self.input: torch.Tensor | PackedSequence
        padded = problem.input.to(dtype)
        self.d_output = problem.d_output.to(dtype)
        if feed == "packed":
            self.input = _pack(padded, problem.lengths)
            self.leaf = self.input.data.requires_grad_(case.training)
            self.d_output = _pack(self.d_output, problem.lengths).data
        else:
            self.input = self.leaf = padded.clone().requires_grad_(case.training)
            if feed == "lengths":
                self.kwargs["lengths"] = problem.lengths.to(problem.input.device)
        self.leaves = [self.leaf, *self.layer.parameters()]

    def step(self) -> Any:
        """What is timed. Returns what the layer returned."""
        if not self.training:
            with torch.inference_mode():
                return self.layer(self.input, **self.kwargs)
        returned = self.forward()
        output = returned[0]
        flat = output.data if isinstance(output, PackedSequence) else output
        torch.autograd.backward(flat, self.d_output)
        return returned

    def forward(self) -> Any:
        """The first half of a training step: all that backward needs is kept."""
        self.clear_gradients()
        return self.layer(self.input, **self.kwargs)

    def clear_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def results(self, returned: Any) -> Tensors:
        """Everything a step computed, padded, by name."""
        output, state = returned
        tensors = {"output": self._padded(output)}
        if self.cell == "lstm":
            tensors["h_n"], tensors["c_n"] = state
        else:
            tensors["h_n"] = state
        if self.training:
            d_input = self.leaf.grad
            assert d_input is not None
            if isinstance(self.input, PackedSequence):
                d_input = self._padded(self.input._replace(data=d_input))
            tensors["d_input"] = d_input
            for name, parameter in self.layer.named_parameters():
                if parameter.grad is not None:
                    tensors[f"d_{name}"] = parameter.grad
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def _padded(self, sequence: torch.Tensor | PackedSequence) -> torch.Tensor:
        if isinstance(sequence, PackedSequence):
            return pad_packed_sequence(sequence)[0]
        return sequence


@dataclass
class Problem:
    """The numbers of one case: weights, input, output gradient, lengths; and the right answer."""

    case: Case
    weights: Tensors
    input: torch.Tensor  # [T, B, I]
    d_output: torch.Tensor  # [T, B, D*H]
    lengths: torch.Tensor  # [B], int64, always on the CPU: torch packs by such alone

    @classmethod
    def random(
        cls, case: Case, seed: int, equal_lengths: bool = True, device: str = "cpu"
    ) -> Problem:
        """Fresh numbers. Unequal lengths are uniform in 1..T, each in its B-th part of the range so
        that batches are filled alike, in random order; the longest is T."""
        dtype = DTYPES[case.dtype]

        def draw(features: int) -> torch.Tensor:
            size = (case.seq_len, case.batch_size, features)
            return torch.randn(size, dtype=torch.float64, device=device).to(dtype)

        devices = [torch.cuda.current_device()] if device == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            weights = make_layer(torch.nn, case, torch.float64, device).to(dtype).state_dict()
            inputs = draw(case.input_size)
            d_output = draw(case.num_directions * case.hidden_size)
            lengths = torch.full((case.batch_size,), case.seq_len, dtype=torch.int64)
            if not equal_lengths:
                parts = torch.randperm(case.batch_size)
                places = (parts + torch.rand(case.batch_size)) / case.batch_size  # in [0, 1)
                lengths = (places * case.seq_len).long() + 1
                lengths[parts == case.batch_size - 1] = case.seq_len
        return cls(case, weights, inputs, d_output, lengths)

    @cached_property
    def answer(self) -> Tensors:
        """What a step must compute: torch.nn in fp64."""
        threads = torch.get_num_threads()
        if flops(self.case) < MANY_FLOPS:
            torch.set_num_threads(1)
        try:
            with without_cudnn():
                return self._torch_results(torch.float64)
        finally:
            torch.set_num_threads(threads)

    @cached_property
    def tolerances(self) -> dict[str, float]:
        """The largest relative error allowed in each tensor."""
        fixed = FIXED_TOLERANCES.get(self.case.dtype)
        if fixed is not None:
            return dict.fromkeys(self.answer, fixed)
        results = self._torch_results(DTYPES[self.case.dtype])
        rounding = ROUNDINGS[self.case.dtype]
        return {
            name: TIMES_TORCH * relative_error(results[name], expected) + rounding
            for name, expected in self.answer.items()
        }

    def solve(self) -> None:
        """Compute what the check compares with, ahead of it."""
        assert self.tolerances.keys() == self.answer.keys()

    def check(self, results: Tensors) -> Verdict:
        """Compare what an entrant computed with the answer."""
        worst = Verdict("", 0.0, 1.0, None)
        for name, expected in self.answer.items():
            actual = results.get(name)
            if actual is None:
                return Verdict(name, float("nan"), 0.0, f"returned no {name}")
            if actual.shape != expected.shape:
                shapes = f"{list(actual.shape)} where {list(expected.shape)} was due"
                return Verdict(name, float("nan"), 0.0, f"{name} has shape {shapes}")
            error, tolerance = relative_error(actual, expected), self.tolerances[name]
            if not error <= tolerance:  # also catches NaN
                reason = f"wrong {name}: relative error {error:.1e}, allowed {tolerance:.1e}"
                return Verdict(name, error, tolerance, reason)
            if error * worst.tolerance >= worst.error * tolerance:
                worst = Verdict(name, error, tolerance, None)
        return worst

    def errors(self, results: Tensors) -> dict[str, float]:
        """The relative error of each tensor."""
        return {
            name: relative_error(results[name], expected) for name, expected in self.answer.items()
        }

    def _torch_results(self, dtype: torch.dtype) -> Tensors:
        equal = bool((self.lengths == self.case.seq_len).all())
        run = LayerRun(torch.nn, self, dtype, "padded" if equal else "packed")
        return run.results(run.step())


@dataclass(frozen=True)
class Verdict:
    """The tensor nearest its limit, or the first one beyond it with the reason."""

    tensor: str
    error: float
    tolerance: float
    reason: str | None


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected|| in fp64, of the whole tensor."""
    expected = expected.double()
    scale = expected.norm().item()
    return float((actual.double() - expected).norm().item() / (scale or 1.0))


def _pack(padded: torch.Tensor, lengths: torch.Tensor) -> PackedSequence:
    packed: PackedSequence = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    return packed
