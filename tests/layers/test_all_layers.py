"""`return_all_layers`: the output, and the cell states, of every layer of a stack."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CELLS, assert_close, call, gradients, make_layer, make_states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import birnn_cuda

LAYERS = 3
LENGTHS = torch.tensor([5, 0, 3, 2])


def one_by_one(stack, cell, input, states):
    """What torch's layers, each by itself, give of each other: outputs, final states."""
    num_directions = 2 if stack.bidirectional else 1
    outputs, finals = [], []
    for k in range(stack.num_layers):
        options = {"bidirectional": stack.bidirectional, "batch_first": stack.batch_first}
        size = input.size(-1)
        layer = make_layer(nn, cell, size, stack.hidden_size, dtype=torch.float64, **options)
        layer.load_state_dict(
            {
                name.replace(f"_l{k}", "_l0"): value
                for name, value in stack.state_dict().items()
                if f"_l{k}" in name
            }
        )
        here = slice(k * num_directions, (k + 1) * num_directions)
        input, *final = call(layer, input, [state[here] for state in states])
        outputs.append(input)
        finals.append(final)
    return outputs, [torch.cat(states) for states in zip(*finals, strict=True)]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs(cell, bidirectional, batch_first):
    options = {"num_layers": LAYERS, "bidirectional": bidirectional, "batch_first": batch_first}
    stack = make_layer(birnn_cuda, cell, 3, 6, dtype=torch.float64, **options)
    input = torch.randn(4, 4, 3, dtype=torch.float64)
    states = make_states(stack, 4, torch.float64)
    hx = tuple(states) if cell.startswith("lstm") else states[0]
    output, final, outputs = stack(input, hx, return_all_layers=True)
    final = final if isinstance(final, tuple) else (final,)
    assert output is outputs[-1] and len(outputs) == LAYERS
    expected, expected_final = one_by_one(stack, cell, input, states)
    assert_close([*outputs, *final], [*expected, *expected_final], 1e-12)
    assert torch.equal(output, stack(input, hx)[0])


def test_gradients_flow_from_every_layer():
    stack = birnn_cuda.GRU(3, 6, LAYERS, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)

    def function(x):
        return stack(x, return_all_layers=True)[2]

    assert torch.autograd.gradcheck(function, input)
    outputs = function(input)
    # Of the first layer's output the layers above have no part.
    cotangent = torch.randn_like(outputs[0])
    above = [w for name, w in stack.named_parameters() if "_l0" not in name]
    asked = gradients([outputs[0]], [cotangent], above, allow_unused=True, retain_graph=True)
    assert all(d is None for d in asked)
    (d_input,) = gradients([outputs[0]], [cotangent], [input])
    assert d_input.abs().sum() > 0


@pytest.mark.parametrize("form", ["padded", "lengths", "resets", "packed", "nested", "unbatched"])
def test_forms_and_cell_states(form):
    stack = birnn_cuda.LSTM(3, 6, LAYERS, bidirectional=True, dtype=torch.float64)
    input, options = torch.randn(5, 4, 3, dtype=torch.float64), {}
    given = input
    if form == "lengths":
        options["lengths"] = LENGTHS
    if form == "resets":
        options["resets"] = torch.rand(5, 4) < 0.3
    if form == "packed":
        given = pack_padded_sequence(input, LENGTHS.clamp(min=1), enforce_sorted=False)
    if form == "nested":
        sequences = [input[:n, b] for b, n in enumerate(LENGTHS.tolist())]
        given = torch.nested.as_nested_tensor(sequences, layout=torch.jagged)
    if form == "unbatched":
        given = input[:, 0]
    asks = {"return_all_layers": True, "return_cell_states": True, **options}
    output, states, cells, outputs = stack(given, **asks)
    assert len(cells) == len(outputs) == LAYERS and output is outputs[-1]
    alone, states_alone, cells_alone = stack(given, return_cell_states=True, **options)

    def values(x):
        if isinstance(x, PackedSequence):
            return x.data
        return x.values() if x.is_nested else x

    assert torch.equal(values(output), values(alone))
    assert torch.equal(values(cells[-1]), values(cells_alone))
    assert all(torch.equal(a, b) for a, b in zip(states, states_alone, strict=True))
    # A stack without the layers above gives what those see: outputs and cell states below.
    below = birnn_cuda.LSTM(3, 6, LAYERS - 1, bidirectional=True, dtype=torch.float64)
    below.load_state_dict(
        {n: w for n, w in stack.state_dict().items() if f"_l{LAYERS - 1}" not in n}
    )
    expected = below(given, return_cell_states=True, **options)
    assert torch.equal(values(outputs[-2]), values(expected[0]))
    assert torch.equal(values(cells[-2]), values(expected[2]))


def test_dropout_lies_behind_them():
    stack = birnn_cuda.RNN(3, 6, 2, dropout=0.999999, bidirectional=True)
    _, _, outputs = stack(torch.randn(5, 4, 3), return_all_layers=True)
    assert (outputs[0] != 0).all()


@pytest.mark.usefixtures("forgets_compiled")
def test_int8_compiled_and_traced_by_fx():
    stack = birnn_cuda.LSTM(3, 6, 2, bidirectional=True).eval()
    input = torch.randn(5, 4, 3)
    low = birnn_cuda.quantize(copy.deepcopy(stack))
    asks = {"return_all_layers": True, "return_cell_states": True}
    with torch.no_grad():
        output, _, cells, outputs = low(input, **asks)
        assert torch.equal(output, low(input)[0]) and len(cells) == len(outputs) == 2
        assert (outputs[0] - stack(input, **asks)[3][0]).abs().max() < 0.05
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    for a, b in zip(compiled(input, **asks)[3], stack(input, **asks)[3], strict=True):
        assert torch.equal(a, b)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = birnn_cuda.GRU(3, 6, 2)

        def forward(self, x):
            return self.rnn(x, return_all_layers=True)[2]

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    for a, b in zip(graph(input), model(input), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_errors(cell):
    layer = make_layer(birnn_cuda, cell, 3, 6)
    with pytest.raises(TypeError, match="return_all_layers must be True or False, got int"):
        layer(torch.randn(5, 4, 3), return_all_layers=1)
