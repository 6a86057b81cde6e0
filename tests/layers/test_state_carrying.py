"""A long sequence in chunks: the state goes on from one to the next."""

from __future__ import annotations

import re
import textwrap

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer, make_pair

import birnn_cuda

CHUNK_SIZES = (1, 3, 4, 11)  # of 11 steps


def in_chunks(layer, input, chunk_size, lengths=None):
    """Output and final states; gradients flow through the states."""
    outputs, states, first = [], [], 0
    for chunk in input.split(chunk_size):
        options = {}
        if lengths is not None:
            options["lengths"] = (lengths - first).clamp(0, len(chunk))
        output, *states = call(layer, chunk, states, **options)
        outputs.append(output)
        first += len(chunk)
    return [torch.cat(outputs), *states]


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_are_the_whole(cell, with_lengths):
    """Values, and gradients where no state is detached."""
    oracle, ours = make_pair(cell, 3, 4, num_layers=2, dtype=torch.float64)
    input = torch.randn(11, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([11, 0, 4, 7]) if with_lengths else None
    options = {} if lengths is None else {"lengths": lengths}
    expected = call(ours, input, **options) if with_lengths else call(oracle, input)
    model = ours if with_lengths else oracle
    loss = sum(e.square().sum() for e in expected)
    expected += torch.autograd.grad(loss, [input, *model.parameters()])
    for chunk_size in CHUNK_SIZES:
        actual = in_chunks(ours, input, chunk_size, lengths)
        loss = sum(a.square().sum() for a in actual)
        actual += torch.autograd.grad(loss, [input, *ours.parameters()])
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_loop_in_the_documentation(cell):
    """Truncated back-propagation, as RNN.forward shows it, beside torch's own layer."""
    documentation = birnn_cuda.RNN.forward.__doc__
    (code,) = re.findall(r"^ +state = None\n(?:.*\n)+?.*detach\(\)\n", documentation, re.M)
    code = textwrap.dedent(code)
    if cell == "lstm":
        (change,) = re.findall(r"``(state = tuple.*)``", birnn_cuda.LSTM.forward.__doc__)
        code = code.replace("state = state.detach()", change)
    oracle, ours = make_pair(cell, 3, 4, dtype=torch.float64)
    input = torch.randn(11, 4, 3, dtype=torch.float64)
    for layer in (oracle, ours):
        names = {"layer": layer, "input": input, "chunk_size": 4, "loss": lambda y: y.sin().sum()}
        exec(code, names)
        whole = layer(input)[1]
        pairs = (
            zip(names["state"], whole, strict=True) if cell == "lstm" else [(names["state"], whole)]
        )
        for state, expected in pairs:
            assert not state.requires_grad
            assert_close([state], [expected], 1e-12)
    grads = [[p.grad for p in layer.parameters()] for layer in (ours, oracle)]
    assert_close(*grads, 1e-12)
    whole = make_layer(birnn_cuda, cell, 3, 4, dtype=torch.float64)
    whole.load_state_dict(ours.state_dict())
    whole(input)[0].sin().sum().backward()
    assert not torch.allclose(whole.weight_hh_l0.grad, ours.weight_hh_l0.grad)  # truncated, indeed
