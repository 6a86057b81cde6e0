"""The cell states of every step of an LSTM: values, and gradients of every order through them."""

from __future__ import annotations

import pytest
import rounding
import rounding_model
import torch
from conftest import (
    TOLERANCE,
    assert_close,
    copies,
    gradients,
    make_layer,
    make_pair,
    make_states,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import birnn_cuda

LENGTHS = {
    "none": None,
    "full": [5, 5, 5, 5],
    "mixed": [2, 5, 3, 0],
}  # whose order is not its own inverse
CELLS = ("lstm", "lstm_proj")


def by_single_steps(oracle, input, states, lengths):
    """Output, h_n, c_n and cell states of one bidirectional layer of torch's, called once a step.

    Sequence after sequence, so that no padding enters.
    """
    seq_len, batch_size, _ = input.shape
    columns = []
    for b in range(batch_size):
        length = seq_len if lengths is None else lengths[b]
        directions = []
        for d in range(2):
            single = nn.LSTM(
                oracle.input_size,
                oracle.hidden_size,
                bias=oracle.bias,
                proj_size=oracle.proj_size,
                dtype=torch.float64,
            )
            suffix = "_l0_reverse" if d else "_l0"
            weights = {
                name.replace("_l0", "") + "_l0": getattr(oracle, name.replace("_l0", suffix))
                for name, _ in single.named_parameters()
            }
            h, c = (state[d : d + 1, b : b + 1] for state in states)
            outputs, cells = [None] * seq_len, [None] * seq_len
            for t in reversed(range(length)) if d else range(length):
                outputs[t], (h, c) = functional_call(
                    single, weights, (input[t : t + 1, b : b + 1], (h, c))
                )
                cells[t] = c
            for t in range(length, seq_len):
                outputs[t], cells[t] = torch.zeros_like(h), torch.zeros_like(c)
            directions.append([torch.cat(outputs), h, c, torch.cat(cells)])
        output, h_n, c_n, cells = zip(*directions, strict=True)
        columns.append([torch.cat(output, 2), torch.cat(h_n), torch.cat(c_n), torch.cat(cells, 2)])
    return [torch.cat(parts, 1) for parts in zip(*columns, strict=True)]


def run(layer, input, states=None, **options):
    hx = None if states is None else tuple(states)
    output, (h_n, c_n), cells = layer(input, hx, return_cell_states=True, **options)
    return [output, h_n, c_n, cells]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, pattern, dtype):
    oracle, ours = make_pair(cell, 3, 6, bidirectional=True, dtype=dtype)
    operands = [torch.randn(5, 4, 3, dtype=dtype), *make_states(ours, 4, dtype)]
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    options = {} if LENGTHS[pattern] is None else {"lengths": torch.tensor(LENGTHS[pattern])}
    actual = run(ours, operands[0], operands[1:], **options)
    expected = by_single_steps(oracle, exact[0], exact[1:], LENGTHS[pattern])
    assert_close(actual, expected, TOLERANCE[dtype])
    cotangents = [torch.randn_like(e) for e in expected]
    # All of them, and the cell states alone.
    for chosen in (slice(None), slice(3, None)):
        assert_close(
            gradients(
                actual[chosen],
                cotangents[chosen],
                [*operands, *ours.parameters()],
                retain_graph=True,
                materialize_grads=True,
            ),
            gradients(
                expected[chosen],
                cotangents[chosen],
                [*exact, *oracle.parameters()],
                retain_graph=True,
                materialize_grads=True,
            ),
            TOLERANCE[dtype],
        )


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed(enforce_sorted):
    ours = birnn_cuda.LSTM(3, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    lengths = [5, 4, 4, 1] if enforce_sorted else [2, 5, 1, 3]
    input = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(input, lengths, enforce_sorted=enforce_sorted)
    _, _, cells = ours(packed, return_cell_states=True)
    _, _, expected = ours(input, lengths=torch.tensor(lengths), return_cell_states=True)
    actual, _ = pad_packed_sequence(cells, total_length=5)
    assert_close([actual], [expected], 1e-12)
    operands = [input, *ours.parameters()]
    both = [gradients([c], [torch.ones_like(expected)], operands) for c in (actual, expected)]
    assert_close(*both, 1e-12)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2}], ids=str)
def test_they_are_the_last_layers_in_the_form_of_the_output(options):
    ours = birnn_cuda.LSTM(3, 6, bidirectional=True, **options)
    input = torch.randn(4, 5, 3) if "batch_first" in options else torch.randn(5, 4, 3)
    output, (h_n, c_n), cells = ours(input, return_cell_states=True)
    plain, (plain_h, plain_c) = ours(input)
    assert all(map(torch.equal, (output, h_n, c_n), (plain, plain_h, plain_c)))
    with torch.no_grad():
        assert torch.equal(ours(input, return_cell_states=True)[2], cells)
    assert cells.shape == output.shape and cells.is_contiguous() == output.is_contiguous()
    by_step = cells.transpose(0, 1) if "batch_first" in options else cells
    assert torch.equal(by_step[-1, :, :6], c_n[-2])  # the forward direction ends at the last step,
    assert torch.equal(by_step[0, :, 6:], c_n[-1])  # the reverse one at the first
    alone = ours(input[0] if "batch_first" in options else input[:, 0], return_cell_states=True)[2]
    assert_close([alone], [by_step[:, 0]], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit(dtype):
    oracle, ours = make_pair("lstm", 3, 6, bidirectional=True, dtype=dtype)
    operands = [torch.randn(5, 2, 3).to(dtype), *make_states(ours, 2, dtype)]
    low, exact = copies(operands, dtype), copies(operands, torch.float64)
    cells = run(ours, low[0], low[1:])[3]
    expected = by_single_steps(oracle, exact[0], exact[1:], None)[3]
    assert cells.dtype == dtype
    cotangent = torch.randn_like(expected)
    (d_low,), (d_exact,) = (
        gradients([c], [cotangent], [x[0]]) for c, x in ((cells, low), (expected, exact))
    )
    with torch.no_grad():
        format_ = rounding.OF_DTYPE[dtype]
        layer = rounding_model.Layer(
            "lstm", ours.all_weights, rounding.Rounding(format_), rounding.DRAWS, stores_gates=False
        )
        outputs = layer.forward(operands[0].unsqueeze(0), *operands[1:])
        zeros = [torch.zeros_like(o[:1]) for o in outputs]
        d_input, _, _ = layer.backward(*zeros, cotangent.to(dtype).unsqueeze(0))
    rounding.check(cells, expected, TOLERANCE[torch.float32], layer.cells, "cells")
    rounding.check(d_low, d_exact, TOLERANCE[torch.float32], d_input, "gradient")


# ---- derivatives of every kind


def make_function(cell, form):
    layer = make_layer(birnn_cuda, cell, 2, 3, bidirectional=True, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    shape = (5, 2) if form == "packed" else (3, 2, 2)
    operands = [torch.randn(shape, dtype=torch.float64), *make_states(layer, 2, torch.float64)]
    operands = [x.detach().clone().requires_grad_() for x in (*operands, *layer.parameters())]

    def function(input, hx, cx, *weights):
        options = {"return_cell_states": True}
        if form == "lengths":
            options["lengths"] = torch.tensor([1, 3])
        if form == "packed":
            input = nn.utils.rnn.PackedSequence(input, torch.tensor([2, 2, 1]))
        tensors = dict(zip(names, weights, strict=True))
        output, _, cells = functional_call(layer, tensors, (input, (hx, cx)), options)
        return (output.data, cells.data) if form == "packed" else (output, cells)

    return function, operands


@pytest.mark.parametrize("form", ["full", "lengths", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell, form):
    function, operands = make_function(cell, form)
    assert gradcheck(function, operands, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, operands, check_batched_grad=True, fast_mode=True)
    if form == "lengths":
        options = {"check_forward_ad": True, "check_backward_ad": False, "fast_mode": True}
        assert gradcheck(function, operands, **options)


def test_transforms():
    layer = birnn_cuda.LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    samples, lengths = torch.randn(4, 5, 2, dtype=torch.float64), torch.tensor([5, 2, 0, 1])

    def cells_of(sample, length):
        return layer(sample, lengths=length, return_cell_states=True)[2]

    expected = torch.stack([cells_of(s, n) for s, n in zip(samples, lengths, strict=True)])
    assert_close([vmap(cells_of)(samples, lengths)], [expected], 1e-12)
    with torch.no_grad():
        assert_close([vmap(cells_of)(samples, lengths)], [expected], 1e-12)

    def loss(sample, length):
        return cells_of(sample, length).square().sum()

    leaf = samples.clone().requires_grad_()
    sum(map(loss, leaf, lengths)).backward()
    assert_close([vmap(grad(loss))(samples, lengths)], [leaf.grad], 1e-12)
    jacobians = [jac(cells_of)(samples[0], lengths[0]) for jac in (jacrev, jacfwd)]
    assert_close(jacobians[:1], jacobians[1:], 1e-12)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    layer = birnn_cuda.LSTM(3, 4, num_layers=2, bidirectional=True)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    input = torch.randn(5, 3, 3, requires_grad=True)
    for options in ({}, {"lengths": torch.tensor([2, 5, 0])}):
        results = []
        for function in (layer, compiled):
            output, _, cells = function(input, return_cell_states=True, **options)
            loss = output.sum() + cells.square().sum()
            results.append([output, cells, *gradients([loss], [torch.ones(())], [input])])
        assert all(map(torch.equal, *results))


# ---- what is refused


@pytest.mark.parametrize("value", [1, "yes", None])
def test_it_is_a_bool(value):
    with pytest.raises(TypeError, match="return_cell_states must be True or False, got"):
        birnn_cuda.LSTM(3, 4)(torch.randn(5, 2, 3), return_cell_states=value)


def test_other_cells_have_none():
    with pytest.raises(TypeError, match="return_cell_states"):
        birnn_cuda.GRU(3, 4)(torch.randn(5, 2, 3), return_cell_states=True)
    weights = [torch.randn(12, 3), torch.randn(12, 4)]
    arguments = (torch.randn(5, 2, 3), None, None, weights, None, None, "gru", 1)
    output, _, _, reserve = torch.ops.birnn_cuda.forward(*arguments, True, "ieee")
    rest = (arguments[0], None, None, weights, None, None, output, reserve, "gru", 1, "ieee")
    with pytest.raises(RuntimeError, match="d_cell_states needs cell 'lstm', got 'gru'"):
        torch.ops.birnn_cuda.backward(output, None, None, *rest, [True] * 5, output)
