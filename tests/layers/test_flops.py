"""What FlopCounterMode counts: the products of the recurrence, forward and backward."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, make_layer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import birnn_cuda

INPUT, HIDDEN = 3, 6


def count(function):
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


def matrices(layer, *names):
    return sum(w.numel() for n, w in layer.named_parameters() if n.startswith(names))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_backward(cell, device):
    layer = make_layer(birnn_cuda, cell, INPUT, HIDDEN, bidirectional=True, device=device)
    rows = 5 * 2
    input = torch.randn(5, 2, INPUT, device=device, requires_grad=True)
    forward, (output, _) = count(lambda: layer(input))
    assert forward == 2 * rows * matrices(layer, "weight")
    backward, _ = count(lambda: output.sum().backward())
    # dx, dh and the gradient of each weight; dh runs through weight_hh and weight_hr.
    assert backward == 2 * forward
    output = layer(input.detach())[0]
    backward, _ = count(lambda: output.sum().backward())
    assert backward == 2 * forward - 2 * rows * matrices(layer, "weight_ih")
    for name, weight in layer.named_parameters():
        weight.requires_grad_(name.startswith("weight_ih"))
    output = layer(input)[0]
    assert count(lambda: output.sum().backward())[0] == 2 * rows * (
        2 * matrices(layer, "weight_ih") + matrices(layer, "weight_hh", "weight_hr")
    )


@pytest.mark.parametrize("cell", CELLS)
def test_as_torch_counts_its_own_on_meta(cell):
    options = {"num_layers": 2, "bidirectional": True, "device": "meta"}
    layers = [make_layer(package, cell, INPUT, HIDDEN, **options) for package in (birnn_cuda, nn)]
    input = torch.randn(5, 2, INPUT, device="meta")
    ours, theirs = (count(lambda layer=layer: layer(input))[0] for layer in layers)
    assert ours == theirs


def test_lengths():
    layer = birnn_cuda.LSTM(INPUT, HIDDEN, bidirectional=True)
    input, lengths = torch.randn(5, 3, INPUT), torch.tensor([5, 0, 2])
    per_row = 2 * matrices(layer, "weight")
    forward, (output, _) = count(lambda: layer(input, lengths=lengths))
    assert forward == 7 * per_row
    backward, _ = count(lambda: output.sum().backward())
    assert backward == 2 * forward - 7 * 2 * matrices(layer, "weight_ih")
    packed = pack_padded_sequence(input, [5, 1, 2], enforce_sorted=False)
    assert count(lambda: layer(packed))[0] == 8 * per_row
    on_meta = birnn_cuda.LSTM(INPUT, HIDDEN, bidirectional=True, device="meta")
    unknown = count(lambda: on_meta(input.to("meta"), lengths=lengths.to("meta")))[0]
    assert unknown == 15 * per_row


def test_by_module_and_of_a_compiled_model():
    model = nn.Sequential(birnn_cuda.GRU(INPUT, HIDDEN))
    input = torch.randn(5, 2, INPUT)
    with FlopCounterMode(display=False) as counter:
        model(input)
    by_module = counter.get_flop_counts()
    assert sum(by_module["Sequential.0"].values()) == 2 * 10 * matrices(model[0], "weight")
