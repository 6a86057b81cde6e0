"""The reference recurrence against torch.nn, in fp64."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    call_by_lengths,
    copies,
    gradients,
    make_layer,
    make_states,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from birnn_cuda import reference
from birnn_cuda.sequences import packed_lengths, packed_to_padded, padded_to_packed

T, B, INPUT, H = 5, 4, 3, 6
LENGTHS = {
    "none": None,
    "full": [5, 5, 5, 5],
    "ones": [1, 1, 1, 1],
    "sorted": [5, 4, 2, 1],
    "unsorted": [2, 5, 1, 3],
    "zeros": [0, 3, 0, 5],
}


def run(layer, input, states, lengths=None, batch_sizes=None):
    hx, cx = [*states, None, None][:2]
    cell = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(layer.mode, layer.mode.lower())
    num_directions = 2 if layer.bidirectional else 1
    weights = list(layer.parameters())
    output, h_n, c_n = reference.forward(
        input, hx, cx, weights, lengths, batch_sizes, cell, num_directions
    )
    if layer.mode != "LSTM":
        assert c_n.shape == (0,)
        return [output, h_n]
    return [output, h_n, c_n]


@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, bidirectional, pattern):
    with_states, bias = pattern != "full", pattern != "unsorted"
    layer = make_layer(
        nn, cell, INPUT, H, bias=bias, bidirectional=bidirectional, dtype=torch.float64
    )
    operands = [torch.randn(T, B, INPUT, dtype=torch.float64)]
    if with_states:
        operands += make_states(layer, B, torch.float64)
    input, *states = operands = copies(operands, torch.float64)
    operands += layer.parameters()
    lengths = LENGTHS[pattern]
    if lengths is None:
        expected = call(layer, input, states)
        actual = run(layer, input, states)
    else:
        expected = call_by_lengths(layer, input, states, lengths)
        actual = run(layer, input, states, lengths=torch.tensor(lengths))
    assert_close(actual, expected, 1e-12, "output")
    cotangents = [torch.randn_like(e) for e in expected]
    options = {"allow_unused": True, "materialize_grads": True}
    assert_close(
        gradients(actual, cotangents, operands, **options),
        gradients(expected, cotangents, operands, **options),
        1e-12,
        "gradient",
    )


@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell):
    layer = make_layer(nn, cell, INPUT, H, bidirectional=True, dtype=torch.float64)
    input = torch.randn(T, B, INPUT, dtype=torch.float64)
    packed = pack_padded_sequence(input, [5, 4, 2, 2])
    states = make_states(layer, B, torch.float64)
    actual = run(layer, packed.data, states, batch_sizes=packed.batch_sizes)
    assert_close(actual, call(layer, packed, states), 1e-12)


def test_packed_and_padded_are_inverse():
    lengths = [5, 4, 2, 2]
    padded = torch.randn(T, B, INPUT)
    packed = pack_padded_sequence(padded, lengths)
    assert packed_lengths(packed.batch_sizes).tolist() == lengths
    back = packed_to_padded(packed.data, packed.batch_sizes)
    for b, length in enumerate(lengths):
        assert torch.equal(back[:length, b], padded[:length, b])
        assert back[length:, b].eq(0).all()
    assert torch.equal(padded_to_packed(back, packed.batch_sizes), packed.data)


def test_low_precision_is_computed_in_fp32():
    layer = make_layer(nn, "lstm", INPUT, H, bidirectional=True)
    input = torch.randn(T, B, INPUT)
    low = [w.bfloat16() for w in layer.parameters()]
    args = (None, None), (None, None, "lstm", 2)
    actual = reference.forward(input.bfloat16(), *args[0], low, *args[1])
    expected = reference.forward(
        input.bfloat16().float(), *args[0], [w.float() for w in low], *args[1]
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, e.bfloat16())


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell):
    """NaN past the ends, and in the state of an empty sequence, reaches neither result."""
    layer = make_layer(nn, cell, INPUT, H, bidirectional=True, dtype=torch.float64)
    lengths = torch.tensor([5, 0, 3, 1])
    clean = torch.randn(T, B, INPUT, dtype=torch.float64)
    poisoned = clean.clone()
    for b, length in enumerate(lengths.tolist()):
        poisoned[length:, b] = float("nan")
    states = make_states(layer, B, torch.float64)
    results = []
    for input, value in ((clean, 0.0), (poisoned, float("nan"))):
        input = input.requires_grad_()
        for state in states:
            state[:, 1] = value  # the state of the empty sequence
        outputs = [o[:, [0, 2, 3]] for o in run(layer, input, states, lengths)]
        loss = sum(o.square().sum() for o in outputs)
        grads = torch.autograd.grad(loss, [input, *layer.parameters()])
        results.append([*outputs, *grads])
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)


def test_unknown_cell():
    with pytest.raises(ValueError, match='got "swish"'):
        reference.forward(
            torch.randn(2, 1, 3),
            None,
            None,
            [torch.randn(4, 3), torch.randn(4, 4)],
            None,
            None,
            "swish",
            1,
        )
