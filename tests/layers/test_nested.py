"""Nested tensors of layout torch.jagged, in and out."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer, make_pair, make_states

import birnn_cuda

LENGTHS = [3, 0, 5, 1]
jagged = torch.jagged


def make_sequences(lengths=LENGTHS, dtype=torch.float64):
    return [torch.randn(length, 3, dtype=dtype) for length in lengths]


def nest(sequences, **options):
    return torch.nested.nested_tensor(sequences, layout=jagged, **options)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_each_sequence_is_as_if_alone(cell, with_states):
    oracle, ours = make_pair(
        cell, 3, 4, num_layers=2, bidirectional=True, batch_first=with_states, dtype=torch.float64
    )
    sequences = make_sequences()
    nested = nest(sequences, requires_grad=True)
    states = make_states(ours, 4, torch.float64) if with_states else []
    output, *final = call(ours, nested, states)
    assert (
        output.is_nested
        and output.layout == jagged
        and output.shape[0::2] == (4, oracle(sequences[0])[0].size(1))
    )
    loss = output.values().square().sum() + sum(s.sum() for s in final)
    (d_input,) = torch.autograd.grad(loss, nested)

    expected_loss, leaves = 0.0, []
    for index, sequence in enumerate(sequences):
        own = [state[:, index] for state in states]
        if len(sequence) == 0:  # torch takes none such: its state stays
            expected = [output[index], *own]
        else:
            leaves.append(sequence.clone().requires_grad_())
            expected = call(oracle, leaves[-1], own)
            expected_loss += expected[0].square().sum() + sum(s.sum() for s in expected[1:])
        actual = [output[index], *(s[:, index] for s in final)]
        assert_close(actual[: len(expected)], expected, 1e-12)
        if not own and len(sequence) == 0:
            assert all(s[:, index].eq(0).all() for s in final)
    expected_loss.backward()
    assert_close([d_input.values()], [torch.cat([leaf.grad for leaf in leaves])], 1e-12)


def test_gradients_of_the_weights():
    oracle, ours = make_pair("gru", 3, 4, bidirectional=True, dtype=torch.float64)
    sequences = make_sequences()
    ours(nest(sequences))[0].values().sin().sum().backward()
    sum(oracle(s)[0].sin().sum() for s in sequences if len(s)).backward()
    assert_close([p.grad for p in ours.parameters()], [p.grad for p in oracle.parameters()], 1e-12)


def test_output_has_the_inputs_ragged_size():
    ours = birnn_cuda.LSTM(3, 3, dtype=torch.float64)
    nested = nest(make_sequences())
    residual = nested + ours(ours(nested)[0])[0]  # fails where ragged sizes differ
    assert residual.shape == nested.shape


def test_what_lies_between_the_sequences_is_never_read():
    """A view into a padded batch: NaN before, between and after the sequences."""
    ours = birnn_cuda.LSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    start, lengths = torch.tensor([1, 2, 0, 4]), torch.tensor([3, 0, 5, 1])
    padded = torch.randn(4, 6, 3, dtype=torch.float64)
    steps = torch.arange(6)
    inside = (steps >= start.unsqueeze(1)) & (steps < (start + lengths).unsqueeze(1))
    results = []
    for value in (0.0, float("nan")):
        leaf = torch.where(inside.unsqueeze(2), padded, value).requires_grad_()
        view = torch.nested.narrow(leaf, 1, start, lengths, layout=jagged)
        assert not view.is_contiguous()
        output, (h_n, c_n) = ours(view)
        assert (output + output).shape == output.shape
        dense = output.values()
        assert dense[~inside.flatten()].eq(0).all()
        loss = dense.square().sum() + h_n.sum()
        grads = torch.autograd.grad(loss, [leaf, *ours.parameters()])
        results.append([dense, h_n, c_n, *grads])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
    spans = zip(padded, start, lengths, strict=True)
    together = nest([sequence[first : first + length] for sequence, first, length in spans])
    assert_close(results[0][1:3], ours(together)[1], 1e-12)


def test_cell_states():
    ours = birnn_cuda.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    sequences = make_sequences()
    _, _, cells = ours(nest(sequences), return_cell_states=True)
    for index, sequence in enumerate(sequences):
        if len(sequence):
            alone = ours(sequence, return_cell_states=True)[2]
            assert_close([cells[index]], [alone], 1e-12)


@pytest.mark.parametrize("per_step", [True, False])
def test_birnn(per_step):
    model = birnn_cuda.BiRNN(3, 4, 2, cell="lstm", per_step=per_step).double()
    sequences = make_sequences([3, 2, 5])
    output = model(nest(sequences))
    for index, sequence in enumerate(sequences):
        assert_close([output[index]], [model(sequence)], 1e-12)


def test_autocast_and_no_grad():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True)
    nested = nest(make_sequences(dtype=torch.float32))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = ours(nested)
    assert output.dtype == h_n.dtype == torch.bfloat16


def test_compiled_once_for_other_lengths():
    ours = birnn_cuda.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    graphs = 0

    def backend(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True, dynamic=True)
    for lengths in ([3, 2, 5, 2], [2, 2], [7, 4, 9]):  # torch keeps lengths of 0 and 1 apart
        nested = nest(make_sequences(lengths), requires_grad=True)
        results = []
        for function in (compiled, ours):
            output, (h_n, _) = function(nested)
            loss = output.values().square().sum()
            results.append([output.values(), h_n, torch.autograd.grad(loss, nested)[0].values()])
        assert all(map(torch.equal, *results))
    assert graphs == 1


# ---- what is refused


def test_other_layouts():
    ours = birnn_cuda.GRU(3, 4)
    with pytest.warns(UserWarning, match="prototype"):
        strided = torch.nested.nested_tensor(make_sequences(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"layout torch.jagged, got torch.strided: make it"):
        ours(strided)
    converted = torch.nested.as_nested_tensor(list(strided.unbind()), layout=jagged)
    assert ours(converted)[0].shape[0] == 4


def test_other_dimensions():
    ours = birnn_cuda.GRU(3, 4)
    nested = nest(make_sequences(dtype=torch.float32))
    with pytest.raises(ValueError, match="3 dimensions of which number 2 is ragged"):
        ours(nested.transpose(1, 2))
    with pytest.raises(ValueError, match="4 dimensions of which number 1 is ragged"):
        ours(nested.unsqueeze(-1))


@pytest.mark.parametrize("cell", CELLS)
def test_errors_are_those_of_a_padded_batch(cell):
    ours = make_layer(birnn_cuda, cell, 5, 4)
    nested = nest(make_sequences(dtype=torch.float32))
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        ours(nested)
    ours = make_layer(birnn_cuda, cell, 3, 4, batch_first=True)
    with pytest.raises(ValueError, match="dtype"):
        ours(nested.double())
    with pytest.raises(RuntimeError, match="Expected hidden"):
        call(ours, nested, make_states(ours, 3, torch.float32))
    with pytest.raises(ValueError, match="leave out lengths="):
        ours(nested, lengths=torch.tensor(LENGTHS))
