"""Recurrent dropout, zoneout, dropout by the sequence: against a stack of layers step by step."""

from __future__ import annotations

import copy

import pytest
import rounding
import rounding_model
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    VARIANTS,
    assert_close,
    assert_like_oracle,
    copies,
    draw_operands,
    gradients,
    leave_the_kink,
    make_layer,
    make_states,
)
from drawn_regularisers import draw_regularisers
from segments import draw_resets
from step_by_step import call_step_by_step
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import birnn_cuda
from birnn_cuda import ops, reference
from birnn_cuda.functional import recurrent_layer
from birnn_cuda.sequences import padded_to_packed
from birnn_cuda.variants import cell_of

KINDS = ("dropout", "zoneout", "expectation")
LENGTHS = torch.tensor([7, 0, 3, 1, 6])
OP_CELLS = {"lstm_proj": "lstm"}


def draw(layer, kind, seq_len, batch_size, dtype):
    """Of each layer of a stack."""
    D, S = 2 if layer.bidirectional else 1, layer.proj_size or layer.hidden_size
    sizes = seq_len, batch_size, layer.hidden_size
    drawn = [
        draw_regularisers(kind, sizes, S, layer.mode == "LSTM", D) for _ in range(layer.num_layers)
    ]
    return [[None if t is None else t.to(dtype) for t in own] for own in drawn]


def in_dtype(regularisers, dtype):
    return [[None if t is None else t.to(dtype) for t in own] for own in regularisers]


def run(layer, input, states, regularisers, **options):
    """A stack by the operators, with these masks: output, final states, an LSTM's cell states."""
    D, count = 2 if layer.bidirectional else 1, len(layer._flat_weights) // layer.num_layers
    cell, is_lstm = cell_of(layer.mode, layer.reset_after, layer.peepholes), layer.mode == "LSTM"
    finals = []
    for index, own in enumerate(regularisers):
        of_layer = [state[index * D : (index + 1) * D] for state in states]
        hx, cx = [*of_layer, None, None][:2]
        input, h, c, *cells = recurrent_layer(
            input,
            hx,
            cx if is_lstm else None,
            layer._flat_weights[index * count : (index + 1) * count],
            cell=cell,
            num_directions=D,
            with_cell_states=is_lstm,
            recompute_activations=layer.recompute_activations,
            **dict(zip(("recurrent_mask", "zoneout_h", "zoneout_c"), own, strict=True)),
            **options,
        )
        finals.append([h, c] if is_lstm else [h])
    return [input, *(torch.cat(each) for each in zip(*finals, strict=True)), *cells]


def make_case(cell, dtype, kind, sizes=(7, 5, 6, 9), **options):
    """Layer, its oracle in fp64, input with states, masks."""
    T, B, input_size, hidden_size = sizes
    options = {"bidirectional": True, **options}
    layer = make_layer(birnn_cuda, cell, input_size, hidden_size, dtype=dtype, **options)
    if cell == "relu" and dtype not in TOLERANCE:
        leave_the_kink(layer)
    regularisers = draw(layer, kind, T, B, dtype)
    operands = draw_operands(
        layer,
        lambda: [torch.randn(T, B, input_size).to(dtype), *make_states(layer, B, dtype)],
    )
    return layer, copy.deepcopy(layer).double(), operands, regularisers


@pytest.mark.parametrize("has_lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_values_and_gradients(cell, kind, has_lengths):
    dtype = torch.float64 if has_lengths == (kind == "zoneout") else torch.float32
    layer, oracle, operands, drawn = make_case(cell, dtype, kind, num_layers=2)
    resets = draw_resets(7, 5, "mixed") if kind != "expectation" else None
    lengths = LENGTHS if has_lengths else None
    if has_lengths and resets is not None:
        resets &= torch.arange(7).unsqueeze(1) < lengths
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    given = {"lengths": lengths, "resets": resets}
    outputs = run(layer, operands[0], operands[1:], drawn, **given)
    expected = call_step_by_step(
        oracle, exact[0], exact[1:], in_dtype(drawn, torch.float64), **given
    )
    tolerance = 2 * TOLERANCE[dtype]  # 1 / 0.6 is not the same number in both
    assert_like_oracle(oracle, layer, outputs, expected, operands, exact, tolerance)
    with torch.no_grad():
        alone = run(layer, operands[0], operands[1:], drawn, **given)
    assert all(torch.equal(a, b) for a, b in zip(alone, outputs, strict=True))


@pytest.mark.parametrize("kind", ["dropout", "zoneout"])
@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell, kind):
    layer, oracle, operands, drawn = make_case(cell, torch.float64, kind, (4, 5, 3, 6))
    lengths = torch.tensor([4, 3, 3, 2, 1])
    batch_sizes = torch.tensor([5, 4, 3, 1])
    expected = call_step_by_step(oracle, operands[0], operands[1:], drawn, lengths)
    mask, *shares = drawn[0]
    packed = [mask, *(None if t is None else padded_to_packed(t, batch_sizes) for t in shares)]
    input = padded_to_packed(operands[0], batch_sizes)
    output, *rest = run(layer, input, operands[1:], [packed], batch_sizes=batch_sizes)
    by_step = [0] if layer.mode != "LSTM" else [0, 3]
    expected = [
        padded_to_packed(x, batch_sizes) if index in by_step else x
        for index, x in enumerate(expected)
    ]
    assert_close([output, *rest], expected, 1e-12)


# Few rows, few steps (weights in place), a full vector, more than one chunk of steps in backward,
# steps projected at once and one by one, two directions of rows shared out over threads.
SIZES = ((1, 1, 3, 4), (3, 2, 70, 130), (40, 3, 16, 16), (90, 16, 8, 33), (5, 33, 24, 64))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell, sizes):
    for bidirectional in (True, False):
        layer, _, operands, (drawn,) = make_case(
            cell, torch.float64, "zoneout", sizes, bidirectional=bidirectional
        )
        results = []
        for is_ours in (True, False):
            leaves = copies([*operands, *layer._flat_weights], torch.float64)
            count = len(operands)
            hx, cx = [*leaves[1:count], None][:2]
            name, D = OP_CELLS.get(cell, cell), 1 + bidirectional
            if is_ours:
                outputs = recurrent_layer(
                    leaves[0],
                    hx,
                    cx,
                    leaves[count:],
                    cell=name,
                    num_directions=D,
                    **dict(zip(("recurrent_mask", "zoneout_h", "zoneout_c"), drawn, strict=True)),
                )
            else:
                outputs = reference.forward(
                    leaves[0], hx, cx, leaves[count:], None, None, name, D, None, *drawn
                )
            outputs = outputs[: len(operands)]
            if is_ours:
                cotangents = [torch.randn_like(o) for o in outputs]
            results.append([*outputs, *gradients(outputs, cotangents, leaves)])
        assert_close(*results, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bits(cell, batch_size, dtype):
    layer, oracle, operands, drawn = make_case(cell, dtype, "zoneout", (7, batch_size, 6, 24))
    lengths, resets = LENGTHS[:batch_size], draw_resets(7, batch_size, "mixed")
    resets &= torch.arange(7).unsqueeze(1) < lengths
    given = {"lengths": lengths, "resets": resets}
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    outputs = run(layer, operands[0], operands[1:], drawn, **given)
    wide = in_dtype(drawn, torch.float64)
    expected = call_step_by_step(oracle, exact[0], exact[1:], wide, **given)
    outputs, expected = (results[: len(operands)] for results in (outputs, expected))
    cotangents = [torch.randn_like(o) for o in outputs]
    actual = [*outputs, *gradients(outputs, cotangents, [*operands, *layer.parameters()])]
    cotangents = [c.double() for c in cotangents]
    expected += gradients(expected, cotangents, [*exact, *oracle.parameters()])
    format_ = rounding.OF_DTYPE[dtype]
    draws = rounding_model.drawn(oracle, format_, exact, cotangents, lengths, False, resets, wide)
    for index, (a, e, d) in enumerate(zip(actual, expected, draws, strict=True)):
        rounding.check(a, e, TOLERANCE[torch.float32], d, f"{cell}, result {index}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_masks_of_ones_and_shares_of_zero_change_nothing(cell, dtype):
    layer, _, operands, _ = make_case(cell, dtype, "none")
    S = layer.proj_size or 9
    nothing = [
        torch.ones(2, 5, S, dtype=dtype),
        torch.zeros(7, 5, 2 * S, dtype=dtype),
        torch.zeros(1, 1, 18, dtype=dtype) if layer.mode == "LSTM" else None,
    ]
    results = []
    for own in ([None] * 3, nothing):
        leaves = copies(operands, dtype)
        outputs = run(layer, leaves[0], leaves[1:], [own])
        loss = sum(o.square().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])])
    exact = 3 if layer.mode == "LSTM" else 2
    assert all(torch.equal(a, b) for a, b in zip(*(r[:exact] for r in results), strict=True))
    assert_close(*results, 1e-5 if dtype == torch.float32 else 2e-2)


def test_a_share_of_one_keeps_the_state_bit_for_bit():
    layer, _, operands, _ = make_case("lstm", torch.float32, "none")
    ones = [None, torch.ones(7, 5, 18), torch.ones(1, 1, 18)]
    output, h_n, c_n, cells = run(layer, operands[0], operands[1:], [ones])
    assert torch.equal(h_n, operands[1]) and torch.equal(c_n, operands[2])
    assert torch.equal(output, torch.cat(list(operands[1]), 1).expand(7, 5, 18))
    assert torch.equal(cells[3], torch.cat(list(operands[2]), 1))


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("sizes", [(6, 2, 40, 320), (7, 16, 9, 33)], ids=["units", "sequences"])
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_threads(cell, sizes, threads):
    """Shared out by units or by sequences, as on one."""
    layer, _, operands, drawn = make_case(
        cell, torch.float32, "zoneout", sizes, bidirectional=False
    )
    results = []
    for number in (1, threads):
        leaves = copies(operands, torch.float32)
        torch.set_num_threads(number)
        try:
            outputs = run(layer, leaves[0], leaves[1:], drawn)
            results.append([*outputs, *torch.autograd.grad(outputs[0].sum(), leaves[:2])])
        finally:
            torch.set_num_threads(1)
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_recomputed_activations_are_the_same_bits(cell, kind):
    layer, _, operands, drawn = make_case(cell, torch.float32, kind)
    leaves, results = copies(operands, torch.float32), []
    for layer.recompute_activations in (False, True):
        outputs = run(layer, leaves[0], leaves[1:], drawn, lengths=LENGTHS)
        loss = sum(o.square().sum() for o in outputs)
        results.append(torch.autograd.grad(loss, [*leaves, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- derivatives of all orders, transforms of the operators


@pytest.mark.parametrize("kind", ["zoneout", pytest.param("expectation", marks=pytest.mark.long)])
@pytest.mark.parametrize("cell", ["tanh", "gru", pytest.param("lstm", marks=pytest.mark.long),
                                  "lstm_proj"])  # fmt: skip
def test_derivatives_by_difference_quotients(cell, kind):
    layer, _, operands, drawn = make_case(cell, torch.float64, kind, (3, 3, 1, 2))
    lengths = torch.tensor([3, 0, 2])
    names = [name for name, _ in layer.named_parameters()]
    count = len(operands)

    def function(*tensors):
        values = dict(zip(names, tensors[count:], strict=True))
        stack = copy.copy(layer)
        stack._flat_weights = [values[name] for name in layer._flat_weights_names]
        return tuple(run(stack, tensors[0], tensors[1:count], drawn, lengths=lengths))

    leaves = copies([*operands, *layer.parameters()], torch.float64)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda x: function(x, *leaves[1:])[0], leaves[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_second_derivatives_are_the_oracles(cell, kind):
    layer, oracle, operands, drawn = make_case(cell, torch.float64, kind, (4, 3, 3, 4))
    lengths, results = torch.tensor([4, 2, 0]), []
    for is_ours in (True, False):
        leaves = copies(operands, torch.float64)
        weights = list((layer if is_ours else oracle).parameters())
        if is_ours:
            outputs = run(layer, leaves[0], leaves[1:], drawn, lengths=lengths)
        else:
            outputs = call_step_by_step(oracle, leaves[0], leaves[1:], drawn, lengths)
        wanted = [*leaves, *weights]
        first = torch.autograd.grad(sum(o.pow(3).sum() for o in outputs), wanted, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    assert_close(*results, 1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_opcheck(cell, kind):
    layer, _, operands, (drawn,) = make_case(cell, torch.float32, kind)
    hx, cx = [*operands[1:], None][:2]
    weights = [w.detach() for w in layer.parameters()]
    arguments = (operands[0], hx, cx, weights, None, None, cell, 2)
    torch.library.opcheck(ops.forward, (*arguments, True, "ieee", None, *drawn))
    output, h_n, _, reserve = ops.forward(*arguments, True, "ieee", None, *drawn)
    needs_grad = [True, True, cx is not None] + [True] * len(weights)
    given = (torch.randn_like(output), torch.randn_like(h_n), None, *arguments[:6], output, reserve)
    options = (cell, 2, "ieee", needs_grad, None, None, *drawn)
    torch.library.opcheck(ops.backward, (*given, *options))


@pytest.mark.parametrize("kind", ["dropout", "zoneout"])
@pytest.mark.parametrize("cell", ["relu", "gru", "lstm"])
def test_vmap(cell, kind):
    """Of input and masks, with gradients of each sample's weights."""
    layer, _, _, _ = make_case(cell, torch.float64, "none", (6, 2, 3, 4))
    weights = {name: w.detach() for name, w in layer.named_parameters()}
    inputs = torch.randn(3, 6, 2, 3, dtype=torch.float64)
    drawn = [draw(layer, kind, 6, 2, torch.float64)[0] for _ in range(3)]
    stacked = [None if each[0] is None else torch.stack(each) for each in zip(*drawn, strict=True)]
    present = [index for index, each in enumerate(stacked) if each is not None]

    def loss(weights, input, *masks):
        own = [None] * 3
        for index, mask in zip(present, masks, strict=True):
            own[index] = mask
        stack = copy.copy(layer)
        stack._flat_weights = [weights[name] for name in layer._flat_weights_names]
        return run(stack, input, [], [own])[0].square().sum()

    masks = [stacked[index] for index in present]
    in_dims = (None, 0, *[0] * len(masks))
    mapped = vmap(grad(loss), in_dims)(weights, inputs, *masks)
    values = vmap(loss, in_dims)(weights, inputs, *masks)
    for index in range(3):
        own = [mask[index] for mask in masks]
        expected = grad(loss)(weights, inputs[index], *own)
        assert_close([mapped[n][index] for n in weights], list(expected.values()), 1e-12)
        assert_close([values[index]], [loss(weights, inputs[index], *own)], 1e-12)
