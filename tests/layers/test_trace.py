"""torch.jit.trace: a layer is one operator, with gradients, at any T and B, and can be saved."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from conftest import CELLS, assert_close, make_layer, make_states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import birnn_cuda


def traced(model, *example):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch.jit
        # Of the checks that are torch's own layer's.
        warnings.filterwarnings(
            "ignore", category=torch.jit.TracerWarning, module="torch.nn.modules.rnn"
        )
        warnings.filterwarnings("ignore", message=".*torch.jit.trace.*deprecated.*")
        return torch.jit.trace(model, example)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    return torch.jit.load(file)


class Tagger(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.linear = nn.LazyLinear(2, dtype=torch.float64)

    def forward(self, input):
        output, _ = self.rnn(input)
        return self.linear(output)


def gradients(model, input):
    input = input.detach().requires_grad_()
    output = model(input)
    return [output, *torch.autograd.grad(output.square().sum(), [input, *model.parameters()])]


@pytest.mark.parametrize("mode", ["with gradients", "no_grad", "inference_mode"])
@pytest.mark.parametrize("cell", CELLS)
def test_trace_trains_and_saves(cell, mode):
    rnn = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    model = Tagger(rnn)
    example = torch.randn(5, 2, 3, dtype=torch.float64)
    model(example)
    with torch.set_grad_enabled(mode == "with gradients"):
        script = traced(model, example)
    kinds = {node.kind() for node in script.inlined_graph.nodes()}
    assert "birnn_cuda::layer" in kinds and "prim::PythonOp" not in kinds
    for sizes in ((5, 2), (9, 4), (1, 1)):
        input = torch.randn(*sizes, 3, dtype=torch.float64)
        expected = gradients(model, input)
        for other in (script, saved_and_loaded(script)):
            for _ in range(3):  # the executor specializes itself in the first runs
                assert_close(gradients(other, input), expected, 1e-12)


class Layer(nn.Module):
    """The forms that a trace can be given: tensors, and a flag."""

    def __init__(self, rnn, form):
        super().__init__()
        self.rnn, self.form = rnn, form

    def forward(self, input, other):
        if self.form == "lengths":
            output, final = self.rnn(input, lengths=other)
        elif self.form == "states":
            output, final = self.rnn(input, other)
        elif self.form == "packed":
            packed, final = self.rnn(PackedSequence(input, other))
            output = packed.data
        else:
            output, final, cells = self.rnn(input, lengths=other, return_cell_states=True)
            output = torch.cat((output, cells), 2)
        return output, final


@pytest.mark.parametrize("form", ["lengths", "states", "packed", "cell states"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_forms(cell, form):
    if (cell, form) == ("gru", "cell states"):
        form = "lengths"
    rnn = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, batch_first=form == "states")
    model = Layer(rnn, form)

    def arguments(seq_len, batch_size):
        input = torch.randn(seq_len, batch_size, 3)
        lengths = torch.arange(batch_size) % seq_len + 1
        if form == "packed":
            packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
            return packed.data, packed.batch_sizes
        if form == "states":
            states = make_states(rnn, batch_size, torch.float32)
            return input.transpose(0, 1), tuple(states) if cell == "lstm" else states[0]
        return input, lengths

    script = saved_and_loaded(traced(model, *arguments(5, 3)))
    for sizes in ((5, 3), (8, 4), (2, 1)):
        given = arguments(*sizes)
        actual, expected = (torch.utils._pytree.tree_leaves(m(*given)) for m in (script, model))
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_a_trace_goes_on_training():
    """The layer of a trace made for deployment is the layer that is trained further."""
    model = birnn_cuda.LSTM(3, 4, bidirectional=True)
    with torch.no_grad():
        script = traced(model, torch.randn(5, 2, 3))
    script(torch.randn(7, 2, 3))[0].sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())
    model.weight_hh_l0.data.zero_()
    input = torch.randn(5, 2, 3)
    assert torch.equal(script(input)[0], model(input)[0])
