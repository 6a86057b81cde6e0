"""One problem for all entrants, its right answer, and the check that every entrant passes first.

The answer is torch.nn in fp64 on the very numbers the entrants get (rounded to their dtype, then
widened). An entrant whose relative error ||out - ref|| / ||ref|| is too large in any tensor is
not timed. The limits: 1e-5 in fp32, 1e-12 in fp64; in 16 bits twice torch.nn's own error on the
same numbers, plus one rounding step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.cases import Case
from benchmarks.flops import flops

DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FIXED_TOLERANCES = {"fp32": 1e-5, "fp64": 1e-12}

# Below this the answer is computed on one thread: threads that meet at every small product are
# slow wherever other work keeps one of them from its core.
MANY_FLOPS = 10**10

# How sequences of unequal length are handed to a layer.
FEEDS = ("padded", "lengths", "packed")

Tensors = dict[str, torch.Tensor]


def make_layer(namespace: ModuleType | Any, case: Case, dtype: torch.dtype) -> torch.nn.RNNBase:
    """A bidirectional layer of the case's size, from torch.nn or a stand-in for it."""
    layer_class = getattr(namespace, case.cell.upper())
    layer: torch.nn.RNNBase = layer_class(
        case.input_size, case.hidden_size, bidirectional=True, dtype=dtype
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
        self.layer = make_layer(namespace, case, dtype)
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
                self.kwargs["lengths"] = problem.lengths
        self.leaves = [self.leaf, *self.layer.parameters()]

    def step(self) -> Any:
        """What is timed. Returns what the layer returned."""
        if not self.training:
            with torch.inference_mode():
                return self.layer(self.input, **self.kwargs)
        for leaf in self.leaves:
            leaf.grad = None
        returned = self.layer(self.input, **self.kwargs)
        output = returned[0]
        flat = output.data if isinstance(output, PackedSequence) else output
        torch.autograd.backward(flat, self.d_output)
        return returned

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
    d_output: torch.Tensor  # [T, B, 2*H]
    lengths: torch.Tensor  # [B], int64

    @classmethod
    def random(cls, case: Case, seed: int, equal_lengths: bool = True) -> Problem:
        """Fresh numbers. Unequal lengths are uniform in 1..T, and one of them is T."""
        dtype = DTYPES[case.dtype]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = make_layer(torch.nn, case, torch.float64).to(dtype).state_dict()
            steps = case.seq_len, case.batch_size
            inputs = torch.randn(*steps, case.input_size, dtype=torch.float64).to(dtype)
            d_output = torch.randn(*steps, 2 * case.hidden_size, dtype=torch.float64).to(dtype)
            lengths = torch.full((case.batch_size,), case.seq_len, dtype=torch.int64)
            if not equal_lengths:
                lengths = torch.randint(1, case.seq_len + 1, (case.batch_size,))
                lengths[int(torch.randint(case.batch_size, ()))] = case.seq_len
        return cls(case, weights, inputs, d_output, lengths)

    @cached_property
    def answer(self) -> Tensors:
        """What a step must compute: torch.nn in fp64."""
        threads = torch.get_num_threads()
        if flops(self.case) < MANY_FLOPS:
            torch.set_num_threads(1)
        try:
            return self._torch_results(torch.float64)
        finally:
            torch.set_num_threads(threads)

    @cached_property
    def tolerances(self) -> dict[str, float]:
        """The largest relative error allowed in each tensor."""
        fixed = FIXED_TOLERANCES.get(self.case.dtype)
        if fixed is not None:
            return dict.fromkeys(self.answer, fixed)
        dtype = DTYPES[self.case.dtype]
        results = self._torch_results(dtype)
        rounding = torch.finfo(dtype).eps
        return {
            name: 2 * relative_error(results[name], expected) + rounding
            for name, expected in self.answer.items()
        }

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
