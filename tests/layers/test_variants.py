"""`reset_after=False` and `peepholes=True`: cells that torch.nn does not have, step by step."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from conftest import (
    TOLERANCE,
    VARIANTS,
    assert_close,
    assert_like_oracle,
    call,
    copies,
    make_layer,
    make_states,
)
from own_cells import (
    LENGTHS,
    check_autocast,
    check_compiled,
    check_export_and_trace,
    check_nothing_at_all,
    check_packed_and_unbatched,
    check_second_derivatives,
    check_sizes,
    check_vmap,
    expected_of,
    function_and_leaves,
    run,
)
from segments import draw_resets
from step_by_step import call_step_by_step
from torch.autograd import gradcheck, gradgradcheck

import birnn_cuda
from birnn_cuda import ops


def make(cell, input_size, hidden_size, dtype=torch.float32, **options):
    return make_layer(birnn_cuda, cell, input_size, hidden_size, dtype=dtype, **options)


@pytest.mark.parametrize("has_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("form", ["full", "lengths", "resets", "both"])
@pytest.mark.parametrize("cell", VARIANTS)
def test_values_and_gradients(cell, form, has_states):
    dtype = torch.float32 if has_states == (form in ("full", "both")) else torch.float64
    layer = make(cell, 6, 9, dtype, num_layers=2, bidirectional=True)
    oracle = copy.deepcopy(layer).double()
    given = {}
    if form in ("lengths", "both"):
        given["lengths"] = LENGTHS
    if form in ("resets", "both"):
        given["resets"] = draw_resets(7, 5, "mixed")
    if form == "both":
        given["resets"] &= torch.arange(7).unsqueeze(1) < LENGTHS
    operands = [torch.randn(7, 5, 6).to(dtype)]
    if "lengths" in given:  # what is read past an end spoils every result
        operands[0][torch.arange(7).unsqueeze(1) >= LENGTHS] = float("nan")
    if has_states:
        operands += make_states(layer, 5, dtype)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    outputs = run(layer, operands[0], operands[1:], **given)
    expected = expected_of(oracle, exact[0], exact[1:], **given)
    assert_like_oracle(oracle, layer, outputs, expected, operands, exact, TOLERANCE[dtype])
    with torch.no_grad():
        alone = run(layer, operands[0], operands[1:], **given)
    assert all(torch.equal(a, b) for a, b in zip(alone, outputs, strict=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def onnx_gru(x, h, w, r, w_b, r_b):
    """GRU-14 with linear_before_reset=0, default activations; rows z, r, h."""
    (w_z, w_r, w_h), (r_z, r_r, r_h) = np.split(w, 3), np.split(r, 3)
    (w_bz, w_br, w_bh), (r_bz, r_br, r_bh) = np.split(w_b, 3), np.split(r_b, 3)
    for x_t in x:
        z = sigmoid(x_t @ w_z.T + h @ r_z.T + w_bz + r_bz)
        reset = sigmoid(x_t @ w_r.T + h @ r_r.T + w_br + r_br)
        hidden = np.tanh(x_t @ w_h.T + (reset * h) @ r_h.T + r_bh + w_bh)
        h = (1 - z) * hidden + z * h
        yield h


def onnx_lstm(x, h, c, w, r, w_b, r_b, p):
    """LSTM-14, default activations; rows i, o, f, c, and P i, o, f."""
    (w_i, w_o, w_f, w_c), (r_i, r_o, r_f, r_c) = np.split(w, 4), np.split(r, 4)
    b_i, b_o, b_f, b_c = np.split(w_b + r_b, 4)
    p_i, p_o, p_f = np.split(p, 3)
    for x_t in x:
        i = sigmoid(x_t @ w_i.T + h @ r_i.T + p_i * c + b_i)
        f = sigmoid(x_t @ w_f.T + h @ r_f.T + p_f * c + b_f)
        c = f * c + i * np.tanh(x_t @ w_c.T + h @ r_c.T + b_c)
        o = sigmoid(x_t @ w_o.T + h @ r_o.T + p_o * c + b_o)
        h = o * np.tanh(c)
        yield h


@pytest.mark.parametrize("cell", VARIANTS)
def test_the_equations_are_those_of_onnx(cell):
    layer = make(cell, 3, 5, torch.float64)
    states = make_states(layer, 2, torch.float64)
    input = torch.randn(6, 2, 3).double()
    output = call(layer, input, states)[0]

    def rows(tensor, *order):
        blocks = tensor.detach().numpy().reshape(len(order), 5, -1)
        return np.concatenate([blocks[k] for k in order]).reshape(tensor.shape)

    weights = [getattr(layer, f"{name}_l0") for name in ("weight_ih", "weight_hh")]
    weights += [getattr(layer, f"{name}_l0") for name in ("bias_ih", "bias_hh")]
    x, *initial = (tensor.numpy() for tensor in (input, *(state[0] for state in states)))
    if cell == "lstm_peepholes":
        steps = onnx_lstm(
            x, *initial, *(rows(w, 0, 3, 1, 2) for w in weights), rows(layer.weight_ch_l0, 0, 2, 1)
        )
    else:
        steps = onnx_gru(x, *initial, *(rows(w, 1, 0, 2) for w in weights))
    assert_close([output], [torch.from_numpy(np.stack(list(steps)))], 1e-12)


SIZES = ((1, 1, 3, 4), (3, 2, 70, 130), (40, 3, 16, 16), (5, 33, 24, 64), (300, 8, 4, 200))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", VARIANTS)
def test_sizes(cell, sizes):
    """The last takes several chunks."""
    check_sizes(make, cell, sizes, 1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", VARIANTS)
def test_packed_and_unbatched(cell, bias):
    check_packed_and_unbatched(make, cell, bias)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", VARIANTS)
def test_sixteen_bits_are_computed_in_float32(cell, dtype, batch_size):
    layer = make(cell, 6, 9, dtype, bidirectional=True)
    wide = copy.deepcopy(layer).float()
    input = torch.randn(7, batch_size, 6).to(dtype).requires_grad_()
    results = []
    for each, x in ((layer, input), (wide, input.detach().float().requires_grad_())):
        outputs = call(each, x, lengths=LENGTHS[:batch_size])
        cotangent = torch.ones_like(outputs[0])
        grads = torch.autograd.grad(outputs[0], [x, *each.parameters()], cotangent)
        results.append([t.to(dtype) for t in (*outputs, *grads)])
    assert_close(*results, 1e-2)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("cell", VARIANTS)
def test_autocast(cell):
    check_autocast(make, cell)


@pytest.mark.parametrize("sizes", [(40, 2, 40, 320), (7, 16, 9, 33)], ids=["units", "sequences"])
@pytest.mark.parametrize("cell", VARIANTS)
def test_threads_and_recomputed_activations_change_no_bit(cell, sizes):
    T, B, input_size, hidden_size = sizes
    layer = make(cell, input_size, hidden_size)
    input, results = torch.randn(T, B, input_size, requires_grad=True), []
    lengths = torch.randint(0, T + 1, (B,))
    # Threads that do not wait for each other are seen in one call or another, not in each.
    runs = ((1, False), (1, True), *[(2, False), (4, False)] * 5)
    for threads, layer.recompute_activations in runs:
        torch.set_num_threads(threads)
        try:
            outputs = run(layer, input, [], lengths=lengths)
            loss = sum(o.square().sum() for o in outputs)
            results.append([*outputs, *torch.autograd.grad(loss, [input, *layer.parameters()])])
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert_close(other, results[0], 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("cell", VARIANTS)
def test_what_is_not_finite_stays_in_its_sequence(cell, bad):
    layer = make(cell, 5, 17, bidirectional=True)
    input, lengths = torch.randn(6, 3, 5), torch.tensor([6, 3, 5])
    expected = layer(input, lengths=lengths)[0]
    input[2, 1] = bad
    output = layer(input, lengths=lengths)[0]
    assert torch.equal(output[:, [0, 2]], expected[:, [0, 2]])
    assert not torch.equal(output[:3, 1], expected[:3, 1])


# ---- derivatives of all orders, transforms


@pytest.mark.parametrize("cell", VARIANTS)
def test_derivatives_by_difference_quotients(cell):
    function, leaves = function_and_leaves(make, cell, 2)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda x, *w: function(x, *leaves[1:-2], *w)[0], (leaves[0], *leaves[-2:]))


@pytest.mark.parametrize("cell", VARIANTS)
def test_second_derivatives_are_the_oracles(cell):
    check_second_derivatives(make, cell, 1e-11)


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("cell", VARIANTS)
def test_opcheck(cell, form):
    layer = make(cell, 3, 5, bidirectional=True)
    hx, cx = [*make_states(layer, 3, torch.float32), None][:2]
    batch_sizes = torch.tensor([3, 3, 1]) if form == "packed" else None
    input = torch.randn(4, 3, 3) if batch_sizes is None else torch.randn(7, 3)
    weights = [w.detach() for w in layer._flat_weights]
    arguments = (input, hx, cx, weights, None, batch_sizes, cell, 2)
    torch.library.opcheck(ops.forward, (*arguments, True, "ieee"))
    output, h_n, _, reserve = ops.forward(*arguments, True, "ieee")
    needs_grad = [True, True, cx is not None] + [True] * len(weights)
    given = (torch.randn_like(output), torch.randn_like(h_n), None, *arguments[:6], output, reserve)
    torch.library.opcheck(ops.backward, (*given, cell, 2, "ieee", needs_grad))


@pytest.mark.parametrize("cell", VARIANTS)
def test_vmap(cell):
    check_vmap(make, cell)


@pytest.mark.usefixtures("forgets_compiled")
@pytest.mark.parametrize("cell", VARIANTS)
def test_compile(cell):
    check_compiled(make, cell)


@pytest.mark.parametrize("cell", VARIANTS)
def test_export_and_trace(cell):
    check_export_and_trace(make, cell)


# ---- the module


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)], ids=str)
@pytest.mark.parametrize("cell", VARIANTS)
def test_nothing_at_all(cell, sizes):
    check_nothing_at_all(make, cell, sizes)


def test_parameters():
    torch.manual_seed(0)
    plain = birnn_cuda.LSTM(3, 4, 2, bidirectional=True)
    torch.manual_seed(0)
    layer = birnn_cuda.LSTM(3, 4, 2, bidirectional=True, peepholes=True)
    suffixes = ("l0", "l0_reverse", "l1", "l1_reverse")
    own = {f"weight_ch_{suffix}" for suffix in suffixes}
    assert set(layer.state_dict()) == {*plain.state_dict(), *own}
    assert all(torch.equal(layer.state_dict()[n], w) for n, w in plain.state_dict().items())
    assert all(getattr(layer, name).shape == (12,) for name in own)
    assert [len(weights) for weights in layer.all_weights] == [5] * 4
    assert layer.all_weights[3][4] is layer.weight_ch_l1_reverse
    in_order = [weight for weights in layer.all_weights for weight in weights]
    assert all(a is b for a, b in zip(layer.parameters(), in_order, strict=True))
    before = layer.weight_ch_l0.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight_ch_l0, before) and layer.weight_ch_l0.abs().max() <= 0.5
    assert "peepholes=True" in repr(layer) and "peepholes" not in repr(plain)
    gru = birnn_cuda.GRU(3, 4, reset_after=False)
    assert "reset_after=False" in repr(gru) and set(gru.state_dict()) == set(
        birnn_cuda.GRU(3, 4).state_dict()
    )
    for made in (layer, gru):
        expected = made(torch.ones(2, 1, 3))[0]
        for same in (
            copy.deepcopy(made),
            pickle.loads(pickle.dumps(made)),
            birnn_cuda.replace_rnns(made),
        ):
            assert torch.equal(same(torch.ones(2, 1, 3))[0], expected)


@pytest.mark.parametrize("cell", VARIANTS)
def test_regularisers_of_the_layer(cell):
    """In evaluation a share of the state before, in training a mask: other values than without."""
    layer = make(cell, 3, 8, recurrent_dropout=0.5, zoneout=0.25)
    plain = make(cell, 3, 8)
    plain.load_state_dict(layer.state_dict())
    input, expected = torch.randn(5, 2, 3), None
    outputs = [layer(input)[0], layer(input)[0], layer.eval()(input)[0], plain(input)[0]]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(outputs))
    share = torch.full((1, 1, 8), 0.25)
    shares = (None, share, share if layer.mode == "LSTM" else None)
    expected = call_step_by_step(
        copy.deepcopy(plain).double(),
        input.double(),
        [],
        [[None if s is None else s.double() for s in shares]],
    )
    assert_close([outputs[2]], [expected[0]], 1e-5)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("LSTM", {"peepholes": 1}, TypeError, "peepholes must be True or False, got int: 1"),
        ("GRU", {"reset_after": None}, TypeError, "reset_after must be True or False, got NoneTy"),
        ("LSTM", {"peepholes": True, "proj_size": 2}, ValueError, "not go with proj_size=2: leave"),
        ("LSTM", {"peepholes": True, "layer_norm": True}, ValueError, "with layer_norm=True"),
        ("GRU", {"reset_after": False, "layer_norm": True}, ValueError, "with layer_norm=True"),
        ("LSTM", {"reset_after": False}, ValueError, "of a GRU, got an LSTM, which has no reset"),
        ("GRU", {"peepholes": True}, ValueError, "of an LSTM, got a GRU: it has no cell state"),
        ("RNN", {"peepholes": True}, ValueError, "of an LSTM, got an RNN: it has no cell state"),
    ],
)
def test_errors(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(birnn_cuda, name)(3, 4, **options)


@pytest.mark.parametrize("cell", VARIANTS)
def test_errors_of_others(cell):
    layer = make(cell, 3, 4).eval()
    option = "peepholes=True" if cell == "lstm_peepholes" else "reset_after=False"
    with pytest.raises(ValueError, match=f"has {option}, which torch's layer does not have"):
        birnn_cuda.to_torch(layer)
    with pytest.raises(ValueError, match=f"has {option}, which an int8 layer does not have"):
        birnn_cuda.quantize(layer)
    with pytest.raises(ValueError, match=r"lengths\[1\] is 7 but must be between 0 and the 6"):
        layer(torch.randn(6, 3, 3), lengths=torch.tensor([6, 7, 1]))
    weights = [w.detach() for w in layer._flat_weights]
    arguments = (torch.randn(2, 1, 3), None, None)
    with pytest.raises(RuntimeError, match="int8 weights need cell 'tanh', 'relu', 'gru' or"):
        ops.quantized_forward(*arguments, weights, [torch.ones(12)] * 2, None, None, cell, 1, False)
    if cell == "lstm_peepholes":
        with pytest.raises(RuntimeError, match="needs weight_ch as the last of 3 or 5 weights"):
            ops.forward(*arguments, weights[:4], None, None, cell, 1, False, "ieee")
        with pytest.raises(RuntimeError, match=r"expected weight_ch of size \[12\], got \[4\]"):
            bad = [*weights[:4], weights[4][:4]]
            ops.forward(*arguments, bad, None, None, cell, 1, False, "ieee")


@pytest.mark.parametrize("cell", VARIANTS)
def test_the_command_line(cell, capsys):
    from birnn_cuda.__main__ import main

    main(["plan", "--device", "h100", "--cell", cell])
    text = capsys.readouterr().out
    reason = "the reset gate before the product runs stepwise, a second product a step"
    if cell == "lstm_peepholes":
        reason = "an LSTM with peepholes runs stepwise, where each gate reads c"
    assert text.count(reason) == 2 and "cluster" not in text.replace("clusters of", "")
    main(["plan", "--device", "cpu", "--cell", cell, "--dtype", "bfloat16"])
    assert "computes in float32" in capsys.readouterr().out
