"""recompute_activations: the same gradients, bit for bit, from less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CELLS, call, make_layer, make_states
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda

T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = torch.tensor([6, 0, 3, 1])


def run(layer: Any, recompute: bool, form: str, **options: Any) -> tuple[list[Tensor], int]:
    """Outputs and gradients, and the bytes that autograd kept between forward and backward."""
    layer.recompute_activations = recompute
    torch.manual_seed(1)
    dtype = layer.weight_ih_l0.dtype
    given: Any = torch.randn(T, B, I).to(dtype).requires_grad_()
    leaves = [given, *layer.parameters()]
    if form == "packed":
        given = pack_padded_sequence(given, LENGTHS.clamp_min(1), enforce_sorted=False)
    states = make_states(layer, B, dtype) if form == "states" else []
    if form == "lengths":
        options["lengths"] = LENGTHS
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        outputs = call(layer, given, states, **options)
    loss = sum((o.double().square().sum() for o in outputs), torch.zeros((), dtype=torch.double))
    return [*outputs, *torch.autograd.grad(loss, leaves)], sum(kept.values())


@pytest.mark.parametrize("form", ["plain", "states", "lengths", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_from_less(cell: str, form: str) -> None:
    layer = make_layer(birnn_cuda, cell, I, H, num_layers=2, bidirectional=True)
    (expected, all_kept), (actual, kept) = (run(layer, flag, form) for flag in (False, True))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    if cell in ("tanh", "relu"):
        assert kept == all_kept
    else:
        blocks = 4 if cell == "gru" else 5
        rows = int(LENGTHS.clamp_min(1).sum()) if form == "packed" else T * B
        assert all_kept - kept == 2 * 2 * rows * blocks * H * 4  # two layers of two directions


def test_with_the_cell_states() -> None:
    layer = birnn_cuda.LSTM(I, H, bidirectional=True, dtype=torch.float64)
    input = torch.randn(T, B, I, dtype=torch.float64)
    results = []
    for layer.recompute_activations in (False, True):
        output, _, cell_states = layer(input, lengths=LENGTHS, return_cell_states=True)
        loss = output.square().sum() + cell_states.pow(3).sum()
        results.append([cell_states, *torch.autograd.grad(loss, list(layer.parameters()))])
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(cell: str) -> None:
    layer = make_layer(birnn_cuda, cell, 2, 3, bidirectional=True, dtype=torch.float64)
    layer.recompute_activations = True
    input = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], input, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], input)


def test_compiled() -> None:
    layer = birnn_cuda.GRU(I, H, num_layers=2, bidirectional=True)
    layer.recompute_activations = True
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    input = torch.randn(T, B, I, requires_grad=True)
    results = []
    for run_layer in (layer, compiled):
        output = run_layer(input)[0]
        results.append([output, *torch.autograd.grad(output.square().sum(), [input])])
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


def test_a_layer_swapped_in_has_the_option() -> None:
    model = birnn_cuda.replace_rnns(torch.nn.Sequential(torch.nn.LSTM(I, H)))
    assert model[0].recompute_activations is False
    model[0].recompute_activations = True
    model(torch.randn(T, B, I))[0].sum().backward()
