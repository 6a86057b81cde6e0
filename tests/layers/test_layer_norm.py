"""`layer_norm=True`: normalised GRU and LSTM, against a stack of layers step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import (
    TOLERANCE,
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
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import birnn_cuda
from birnn_cuda import normalised, ops

CELLS = ("gru", "lstm")


def make(cell, input_size, hidden_size, dtype=torch.float32, **options):
    layer = make_layer(
        birnn_cuda, cell, input_size, hidden_size, dtype=dtype, layer_norm=True, **options
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("norm"):
                parameter += 0.3 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("has_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("form", ["full", "lengths", "resets", "both"])
@pytest.mark.parametrize("cell", CELLS)
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
    if has_states:
        operands += make_states(layer, 5, dtype)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    outputs = run(layer, operands[0], operands[1:], **given)
    expected = expected_of(oracle, exact[0], exact[1:], **given)
    # A norm magnifies the rounding of what it is given, the more the less its numbers differ.
    tolerance = 30 * TOLERANCE[dtype]
    assert_like_oracle(oracle, layer, outputs, expected, operands, exact, tolerance)
    with torch.no_grad():
        alone = run(layer, operands[0], operands[1:], **given)
    assert all(torch.equal(a, b) for a, b in zip(alone, outputs, strict=True))


SIZES = ((1, 1, 3, 4), (3, 2, 70, 130), (40, 3, 16, 16), (90, 16, 8, 33), (5, 33, 24, 64))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell, sizes):
    check_sizes(make, cell, sizes, 1e-12, num_draws=12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_and_unbatched(cell, bias):
    check_packed_and_unbatched(make, cell, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bits_are_computed_in_float32(cell, dtype):
    layer = make(cell, 6, 9, dtype, bidirectional=True)
    wide = copy.deepcopy(layer).float()
    input = torch.randn(7, 5, 6).to(dtype).requires_grad_()
    results = []
    for each, x in ((layer, input), (wide, input.detach().float().requires_grad_())):
        outputs = call(each, x, lengths=LENGTHS)
        grads = torch.autograd.grad(outputs[0].float().square().sum(), [x, *each.parameters()])
        results.append([t.to(dtype) for t in (*outputs, *grads)])
    assert_close(*results, 1e-2)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("cell", CELLS)
def test_autocast(cell):
    check_autocast(make, cell)


@pytest.mark.parametrize("cell", CELLS)
def test_recomputed_activations_change_no_bit_and_threads_few(cell):
    """The input is projected by torch, whose BLAS divides long sums by threads."""
    layer = make(cell, 9, 33, bidirectional=True)
    input, results = torch.randn(7, 16, 9, requires_grad=True), []
    lengths = torch.randint(0, 8, (16,))
    for threads, layer.recompute_activations in ((1, False), (1, True), (4, False)):
        torch.set_num_threads(threads)
        try:
            outputs = run(layer, input, [], lengths=lengths)
            loss = sum(o.square().sum() for o in outputs)
            results.append([*outputs, *torch.autograd.grad(loss, [input])])
        finally:
            torch.set_num_threads(1)
    assert torch.equal(results[0][0], results[1][0])
    for other in results[1:]:
        assert_close(other, results[0], 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_stays_in_its_sequence(cell, bad):
    layer = make(cell, 5, 17, bidirectional=True)
    input = torch.randn(6, 3, 5)
    lengths = torch.tensor([6, 3, 5])
    spoilt = input.clone()
    spoilt[4, 1] = bad  # past the end
    results = []
    for x in (input, spoilt):
        leaf = x.clone().requires_grad_()
        output = layer(leaf, lengths=lengths)[0]
        results.append([output, *torch.autograd.grad(output.sum(), [leaf, *layer.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    spoilt[2, 1] = bad
    output = layer(spoilt, lengths=lengths)[0]
    assert torch.equal(output[:, [0, 2]], results[0][0][:, [0, 2]]) and output[:3, 1].isnan().any()


# ---- derivatives of all orders, transforms


@pytest.mark.parametrize("cell", CELLS)
def test_derivatives_by_difference_quotients(cell):
    function, leaves = function_and_leaves(make, cell, 3)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda x: function(x, *leaves[1:])[0], leaves[0])


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_are_the_oracles(cell):
    check_second_derivatives(make, cell, 1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell):
    gates = 3 if cell == "gru" else 4
    gates_x, hx = torch.randn(4, 3, 2 * gates * 5), torch.randn(2, 3, 5)
    cx = torch.randn(2, 3, 5) if cell == "lstm" else None
    own = [torch.randn(gates * 5, 5), torch.randn(gates * 5), torch.randn(gates * 5)]
    own += [torch.randn(5), torch.randn(5)] if cell == "lstm" else []
    weights = [w.clone() for _ in range(2) for w in own]
    arguments = (gates_x, hx, cx, weights, None)
    torch.library.opcheck(ops.normalised_forward, (*arguments, cell, 2, 1e-5, True))
    output, h_n, _, reserve = ops.normalised_forward(*arguments, cell, 2, 1e-5, True)
    needs_grad = [True, True, cx is not None] + [True] * len(weights)
    given = (torch.randn_like(output), torch.randn_like(h_n), None, None)
    torch.library.opcheck(
        ops.normalised_backward,
        (*given, *arguments, output, reserve, cell, 2, 1e-5, needs_grad),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_vmap(cell):
    check_vmap(make, cell)


@pytest.mark.usefixtures("forgets_compiled")
@pytest.mark.parametrize("cell", CELLS)
def test_compile(cell):
    check_compiled(make, cell)


def test_export_and_trace():
    check_export_and_trace(make, "lstm")


# ---- the module


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)], ids=str)
def test_nothing_at_all(sizes):
    check_nothing_at_all(make, "lstm", sizes)


def test_parameters():
    layer = birnn_cuda.LSTM(3, 4, bidirectional=True, layer_norm=True)
    names = {name for name in layer.state_dict() if name.startswith("norm")}
    of_one = {"norm_ih_l0.weight", "norm_hh_l0.weight", "norm_c_l0.weight", "norm_c_l0.bias"}
    assert names == of_one | {name.replace("l0", "l0_reverse") for name in of_one}
    assert layer.norm_ih_l0.weight.shape == (16,) and layer.norm_c_l0_reverse.bias.shape == (4,)
    torch.manual_seed(0)
    plain = birnn_cuda.LSTM(3, 4, bidirectional=True)
    torch.manual_seed(0)
    layer = birnn_cuda.LSTM(3, 4, bidirectional=True, layer_norm=True)
    assert torch.equal(layer.weight_hh_l0, plain.weight_hh_l0)
    layer.reset_parameters()
    assert layer.norm_hh_l0.weight.eq(1).all() and layer.norm_c_l0.bias.eq(0).all()
    assert "layer_norm=True" in repr(layer)
    assert len(list(birnn_cuda.GRU(3, 4, layer_norm=True).parameters())) == 6
    for same in (copy.deepcopy(layer), birnn_cuda.replace_rnns(layer)):
        assert torch.equal(same(torch.ones(2, 1, 3))[0], layer(torch.ones(2, 1, 3))[0])


def test_a_device_without_the_operator_runs_the_reference(monkeypatch):
    """Step by step in torch's operators, with the same values."""
    layer, input = (
        make("gru", 3, 4, torch.float64, bidirectional=True),
        torch.randn(5, 2, 3).double(),
    )
    expected = layer(input)[0]
    seen = []
    original = normalised._reference
    monkeypatch.setattr(normalised, "HAS_OPERATOR", ())
    monkeypatch.setattr(
        normalised, "_reference", lambda *args: (seen.append(1), original(*args))[1]
    )
    assert_close([layer(input)[0]], [expected], 1e-12)
    assert seen


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer_norm": 1}, TypeError, "layer_norm must be True or False, got int: 1"),
        ({"proj_size": 2}, ValueError, "does not go with proj_size=2"),
        ({"recurrent_dropout": 0.5}, ValueError, r"does not go with recurrent_dropout=0\.5"),
        ({"zoneout": (0.0, 0.25)}, ValueError, r"does not go with zoneout=0\.25"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        birnn_cuda.LSTM(3, 4, **{"layer_norm": True, **options})


def test_errors_of_others(tmp_path):
    from birnn_cuda import onnx

    with pytest.raises(ValueError, match="layer_norm=True is for GRU and LSTM, got an RNN"):
        birnn_cuda.RNN(3, 4, layer_norm=True)
    layer = birnn_cuda.GRU(3, 4, layer_norm=True).eval()
    with pytest.raises(ValueError, match="has layer_norm=True, which torch's layer does not have"):
        birnn_cuda.to_torch(layer)
    with pytest.raises(ValueError, match="has layer_norm=True, which an int8 layer does not have"):
        birnn_cuda.quantize(layer)
    with pytest.raises(NotImplementedError, match="0 has layer_norm=True: no node of ONNX"):
        onnx.export(nn.Sequential(layer).eval(), (torch.randn(3, 2, 3),), tmp_path / "model.onnx")
    input = torch.randn(6, 3, 3)
    with pytest.raises(ValueError, match=r"lengths\[1\] is 7 but must be between 0 and the 6"):
        layer(input, lengths=torch.tensor([6, 7, 1]))
    with pytest.raises(RuntimeError, match=r"input\.size\(-1\) must be equal"):
        layer(torch.randn(6, 3, 4))
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        layer(input, torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        copy.deepcopy(layer).double()(input)


def test_the_command_line(capsys):
    from birnn_cuda.__main__ import main

    plan = ["plan", "--device", "h100", "--cell", "gru", "--layer-norm", "--steps", "9"]
    main(plan)
    printed = capsys.readouterr().out
    assert "a norm needs all sums of a sequence" in printed and "19 in each direction" in printed
    assert printed.count("  stepwise\n") == 2
    main([*plan, "--inference", "--kernel", "stepwise"])
    assert "backward" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*plan, "--kernel", "grid"])
    assert '"grid" does not take a layer-normalised cell: stepwise does' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "--device", "h100", "--cell", "tanh", "--layer-norm"])
    assert "--layer-norm is for gru and lstm, got tanh" in capsys.readouterr().err
