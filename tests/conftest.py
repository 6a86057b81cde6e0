"""What the tests share: the seed, the layers under test beside torch's own, and the oracle."""

from __future__ import annotations

import copy
import gc
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What inductor keeps in /tmp for other processes does not know of which version of an operator its
# graphs are: those that another checkout's tests left there call this one's with other arguments.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")

import pytest
import rounding
import seeding
import torch
from seeding import (
    pytest_addoption,
    pytest_configure_node,
    pytest_report_header,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

import birnn_cuda

CELLS = ("tanh", "relu", "gru", "lstm", "lstm_proj")
VARIANTS = ("gru_reset_before", "lstm_peepholes")  # which torch.nn does not have

# Whole-tensor relative error allowed against fp64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


__all__ = [
    "pytest_addoption",
    "pytest_configure_node",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
]


def pytest_configure(config: pytest.Config) -> None:
    seeding.pytest_configure(config)
    # On tensors this small more threads only wait for each other; what runs on several threads
    # has a test of its own.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not walk through torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seeds torch and random for one test, from the run's seed and the test's name."""
    value = seeding.seed_of(request.node)
    torch.manual_seed(value)
    random.seed(value)
    return value


@pytest.fixture
def ieee(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 is exact on a GPU, unless a test asks for tf32."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")


@pytest.fixture
def forgets_compiled() -> Iterator[None]:
    """What a test compiles does not count for another: Dynamo compiles a function a few times."""
    yield
    torch._dynamo.reset()


def make_layer(package: Any, cell: str, input_size: int, hidden_size: int, **options: Any) -> Any:
    """A layer of `torch.nn` or `birnn_cuda` by the name of its cell."""
    if cell in ("tanh", "relu"):
        return package.RNN(input_size, hidden_size, nonlinearity=cell, **options)
    if cell == "gru_reset_before":
        return package.GRU(input_size, hidden_size, reset_after=False, **options)
    if cell == "lstm_peepholes":
        return package.LSTM(input_size, hidden_size, peepholes=True, **options)
    if cell == "gru":
        return package.GRU(input_size, hidden_size, **options)
    if cell == "lstm_proj":
        options["proj_size"] = max(1, hidden_size // 2)
    return package.LSTM(input_size, hidden_size, **options)


def make_pair(cell: str, input_size: int, hidden_size: int, **options: Any) -> tuple[Any, Any]:
    """Torch's layer (of a cell that it does not have, ours) in fp64, and ours as asked for, with
    the same weights."""
    ours = make_layer(birnn_cuda, cell, input_size, hidden_size, **options)
    package = birnn_cuda if cell in VARIANTS else nn
    oracle = make_layer(
        package, cell, input_size, hidden_size, **{**options, "dtype": torch.float64}
    )
    oracle.load_state_dict(ours.state_dict())
    return oracle, ours


def make_states(layer: Any, batch_size: int, dtype: torch.dtype) -> list[Tensor]:
    """Random hx, or hx and cx, for a layer."""
    num = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size]
    if layer.mode == "LSTM":
        sizes.append(layer.hidden_size)
    return [torch.randn(num, batch_size, size).to(dtype) for size in sizes]


def call(layer: Any, input: Any, states: Sequence[Tensor] = (), **options: Any) -> list[Tensor]:
    """Run a layer; output (the data of a packed one) and final states as one flat list."""
    hx = None
    if states:
        hx = tuple(states) if layer.mode == "LSTM" else states[0]
    output, final = layer(input, hx, **options)
    if isinstance(output, PackedSequence):
        output = output.data
    return [output, *(final if isinstance(final, tuple) else (final,))]


def call_by_lengths(
    layer: Any, input: Tensor, states: Sequence[Tensor], lengths: Sequence[int]
) -> list[Tensor]:
    """What torch's layer gives for each sequence alone up to its length, as a padded batch.

    Torch packs no sequence of length 0: such a one keeps its initial state.
    """
    batch_dim = 0 if layer.batch_first else 1
    seq_len = input.size(1 - batch_dim)
    running = [index for index, length in enumerate(lengths) if length > 0]
    packed = pack_padded_sequence(
        input.index_select(batch_dim, torch.tensor(running)),
        [lengths[index] for index in running],
        batch_first=layer.batch_first,
        enforce_sorted=False,
    )
    chosen = [state[:, running] for state in states]
    hx = None
    if chosen:
        hx = tuple(chosen) if layer.mode == "LSTM" else chosen[0]
    output, final = layer(packed, hx)
    output, _ = pad_packed_sequence(output, layer.batch_first, total_length=seq_len)
    final = final if isinstance(final, tuple) else (final,)
    shape = list(output.shape)
    shape[batch_dim] = len(lengths)
    index = torch.tensor(running)
    results = [output.new_zeros(shape).index_copy(batch_dim, index, output)]
    for position, state in enumerate(final):
        if states:
            start = states[position]
        else:
            start = state.new_zeros(state.size(0), len(lengths), state.size(2))
        results.append(start.index_copy(1, index, state))
    return results


def draw_operands(layer: Any, draw: Callable[[], list[Tensor]], **options: Any) -> list[Tensor]:
    """Random input and states; for relu none that brings a preactivation near its kink.

    There a rounding error decides between a gradient and none, in torch's layer as in ours.

    Raises:
        NoOperandsError: the weights alone bring one there, in a thousand draws.
    """
    for _ in range(1000):
        operands = draw()
        if layer.mode != "RNN_RELU":
            return operands
        exact = copies(operands, torch.float64)
        # While a forward-mode level is open, the layer runs the reference.
        with forward_ad.dual_level(), torch.no_grad(), _SmallestPreactivation() as smallest:
            call(copy.deepcopy(layer).double(), exact[0], exact[1:], **options)
        if smallest.value > 1e-5:
            return operands
    raise NoOperandsError


def leave_the_kink(layer: Any) -> None:
    """Moves the units of a relu layer far from zero, to either side: there rounding turns gradients
    on and off."""
    spread = (layer.input_size / layer.hidden_size) ** 0.5
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("weight_hh"):
                parameter *= 0.3
            if name.startswith("bias_ih"):
                parameter[::2] += 4 * max(1.0, spread)
                parameter[1::2] -= 40 * max(1.0, spread)


class NoOperandsError(Exception):
    pass


class _SmallestPreactivation(TorchFunctionMode):
    """Records the smallest absolute argument of torch.relu, but for zeros: those are exact."""

    value = float("inf")

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.relu:
            magnitudes = args[0].abs()
            magnitudes = torch.where(magnitudes > 0, magnitudes, float("inf"))
            self.value = min(self.value, magnitudes.min().item())
        return function(*args, **(kwargs or {}))


def gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], operands: Sequence[Tensor], **kw: Any
) -> list[Tensor]:
    """The gradients of the outputs, weighted by the cotangents."""
    cotangents = [d.to(o.dtype) for o, d in zip(outputs, cotangents, strict=True)]
    return list(torch.autograd.grad(list(outputs), list(operands), cotangents, **kw))


def copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Leaf copies in another dtype, requiring gradients."""
    return [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same values behind other strides; "expanded": those of the first index of dimension 1."""
    if how == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced":
        wide = tensor.new_full([2 * n for n in tensor.shape], float("nan"))
        view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
        view.copy_(tensor)
        return view
    assert how == "expanded"
    return tensor[:, :1].expand_as(tensor)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| over the whole tensor, in fp64."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    error, norm = (actual - expected).norm().item(), expected.norm().item()
    return error / norm if norm > 0 else error


def assert_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str = "tensor"
) -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        rounding.check(a, e, tolerance, what=f"{what} {index}")


def assert_like_oracle(oracle, ours, outputs, expected, operands, oracle_operands, tolerance):
    """Outputs, and the gradients of random cotangents, against the fp64 oracle's."""
    assert_close(outputs, expected, tolerance, "output")
    cotangents = [torch.randn_like(o) for o in outputs]
    assert_close(
        gradients(outputs, cotangents, [*operands, *ours.parameters()]),
        gradients(expected, cotangents, [*oracle_operands, *oracle.parameters()]),
        tolerance,
        "gradient",
    )
