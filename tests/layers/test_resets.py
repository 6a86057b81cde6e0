"""`resets=`: several sequences in a row, against each of them alone."""

from __future__ import annotations

import copy

import pytest
import rounding
import rounding_model
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    assert_close,
    assert_like_oracle,
    call,
    copies,
    draw_operands,
    gradients,
    leave_the_kink,
    make_layer,
    make_pair,
    make_states,
)
from segments import call_by_segments, draw_resets
from test_cell_states import by_single_steps
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_sequence

import birnn_cuda
from birnn_cuda import ops, reference

PATTERNS = ("none", "all", "first", "rare", "mixed")
LENGTHS = [7, 0, 3, 1, 6]


def draw_call(pattern, seq_len=7, batch_size=5, has_lengths=False):
    """Resets, and options of a call."""
    resets = draw_resets(seq_len, batch_size, pattern)
    if not has_lengths:
        return resets, None, {"resets": resets}
    lengths = torch.tensor(LENGTHS[:batch_size]).clamp(max=seq_len)
    resets &= torch.arange(seq_len).unsqueeze(1) < lengths
    return resets, lengths.tolist(), {"resets": resets, "lengths": lengths}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, pattern, has_lengths, dtype):
    batch_first, with_states = pattern == "rare", pattern != "all"
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 6, 9, dtype=dtype, **options)
    resets, lengths, options = draw_call(pattern, has_lengths=has_lengths)
    if batch_first:
        resets = options["resets"] = resets.t()

    def draw():
        input = torch.randn(*resets.shape, 6, dtype=dtype)
        return [input, *(make_states(ours, 5, dtype) if with_states else [])]

    operands = draw_operands(ours, draw, **options)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    outputs = call(ours, operands[0], operands[1:], **options)
    expected = call_by_segments(oracle, exact[0], exact[1:], resets, lengths)
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, TOLERANCE[dtype])


# Few rows, few steps (weights in place), a full vector, more than one chunk of steps in backward,
# steps projected at once and one by one, two directions of rows shared out over threads.
SIZES = ((1, 1, 3, 4), (3, 2, 70, 130), (40, 3, 16, 16), (90, 16, 8, 33), (5, 33, 24, 64))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell, sizes, bidirectional):
    seq_len, batch_size, input_size, hidden_size = sizes
    options = {"bidirectional": bidirectional, "dtype": torch.float64}
    oracle, ours = make_pair(cell, input_size, hidden_size, **options)
    resets, _, options = draw_call("mixed", seq_len, batch_size)
    operands = [torch.randn(seq_len, batch_size, input_size, dtype=torch.float64)]
    operands += make_states(ours, batch_size, torch.float64)
    operands, exact = (copies(operands, torch.float64) for _ in range(2))
    outputs = call(ours, operands[0], operands[1:], **options)
    expected = call_by_segments(oracle, exact[0], exact[1:], resets)
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bits(cell, batch_size, dtype):
    oracle, ours = make_pair(cell, 6, 24, bidirectional=True, dtype=dtype)
    if cell == "relu":
        leave_the_kink(ours)
        oracle.load_state_dict(ours.state_dict())
    resets, lengths, options = draw_call("mixed", 7, batch_size, has_lengths=True)

    def draw():
        return [torch.randn(7, batch_size, 6).to(dtype), *make_states(ours, batch_size, dtype)]

    operands = copies(draw_operands(ours, draw, **options), dtype)
    exact = copies(operands, torch.float64)
    outputs = call(ours, operands[0], operands[1:], **options)
    expected = call_by_segments(oracle, exact[0], exact[1:], resets, lengths)
    cotangents = [torch.randn_like(o) for o in outputs]
    actual = [*outputs, *gradients(outputs, cotangents, [*operands, *ours.parameters()])]
    wide = [c.double() for c in cotangents]
    expected += gradients(expected, wide, [*exact, *oracle.parameters()])
    draws = rounding_model.drawn(
        oracle, rounding.OF_DTYPE[dtype], exact, wide, options["lengths"], False, resets
    )
    for index, (a, e, d) in enumerate(zip(actual, expected, draws, strict=True)):
        rounding.check(a, e, TOLERANCE[torch.float32], d, f"{cell}, result {index}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_a_segment_is_bit_for_bit_what_it_is_alone(cell, dtype):
    layer = make_layer(birnn_cuda, cell, 20, 33, bidirectional=True, dtype=dtype)
    input, states = torch.randn(9, 6, 20).to(dtype), make_states(layer, 6, dtype)
    resets = draw_resets(9, 6, "mixed")
    with torch.no_grad():
        together = call(layer, input, states, resets=resets)
        alone = call_by_segments(layer, input, states, resets)
        for a, e in zip(together, alone, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("cell", CELLS)
def test_int8(cell):
    layer = make_layer(birnn_cuda, cell, 9, 37, num_layers=2, bidirectional=True)
    layer = birnn_cuda.quantize(copy.deepcopy(layer).eval())
    input, states = torch.randn(8, 6, 9), make_states(layer, 6, torch.float32)
    resets = draw_resets(8, 6, "mixed")
    lengths = torch.tensor([8, 2, 8, 0, 5, 8])
    resets &= torch.arange(8).unsqueeze(1) < lengths
    with torch.no_grad():
        together = call(layer, input, states, resets=resets, lengths=lengths)
        alone = call_by_segments(layer, input, states, resets, lengths.tolist())
    for a, e in zip(together, alone, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("cell", CELLS)
def test_no_reset_changes_nothing(cell):
    layer = make_layer(birnn_cuda, cell, 4, 7, bidirectional=True)
    input = torch.randn(6, 3, 4, requires_grad=True)
    results = []
    for resets in (None, draw_resets(6, 3, "none")):
        outputs = call(layer, input, resets=resets)
        loss = sum(o.square().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [input, *layer.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("has_lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_stays_in_its_segment(cell, bad, has_lengths):
    layer = make_layer(birnn_cuda, cell, 5, 17, bidirectional=True)
    resets = torch.zeros(9, 3, dtype=torch.bool)
    resets[3], resets[6, 1:] = True, True
    options = {"resets": resets}
    if has_lengths:
        options["lengths"] = torch.tensor([9, 7, 8])
    clean = torch.randn(9, 3, 5)
    spoilt = clean.clone()
    spoilt[4, 1] = bad
    cotangent = torch.randn(9, 3, 2 * (layer.proj_size or 17))
    untouched = torch.ones(9, 3, dtype=torch.bool)
    untouched[3:6, 1] = False
    results = []
    for input in (clean, spoilt):
        leaf = input.clone().requires_grad_()
        output = layer(leaf, **options)[0]
        (d_input,) = torch.autograd.grad(output, leaf, cotangent)
        results.append([output[untouched], d_input[untouched]])
        if input is spoilt and bad != bad:
            assert output[4, 1].isnan().all()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("sizes", [(6, 2, 40, 320), (7, 16, 9, 33)], ids=["units", "sequences"])
@pytest.mark.parametrize("cell", CELLS)
def test_threads(cell, sizes, threads):
    """Shared out by units or by sequences, as on one."""
    seq_len, batch_size, input_size, hidden_size = sizes
    layer = make_layer(birnn_cuda, cell, input_size, hidden_size)
    resets, _, options = draw_call("mixed", seq_len, batch_size)
    options["lengths"] = torch.randint(0, seq_len + 1, (batch_size,))
    resets &= torch.arange(seq_len).unsqueeze(1) < options["lengths"]
    input = torch.randn(seq_len, batch_size, input_size, requires_grad=True)
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            outputs = call(layer, input, make_zeros(layer, batch_size), **options)
            results.append([*outputs, *torch.autograd.grad(outputs[0].sum(), [input])])
        finally:
            torch.set_num_threads(1)
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[1], results[0], 1e-6)


def make_zeros(layer, batch_size):
    return [torch.zeros_like(state) for state in make_states(layer, batch_size, torch.float32)]


@pytest.mark.parametrize("has_lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj"])
def test_cell_states(cell, has_lengths):
    oracle, ours = make_pair(cell, 3, 6, bidirectional=True, dtype=torch.float64)
    resets, lengths, options = draw_call("mixed", has_lengths=has_lengths)
    operands = [torch.randn(7, 5, 3, dtype=torch.float64), *make_states(ours, 5, torch.float64)]
    operands, exact = (copies(operands, torch.float64) for _ in range(2))

    def run(layer, segment, states):
        return by_single_steps(layer, segment, states, None)

    for ours.recompute_activations in (False, True):
        output, states, cells = ours(
            operands[0], tuple(operands[1:]), return_cell_states=True, **options
        )
        expected = call_by_segments(oracle, exact[0], exact[1:], resets, lengths, run)
        actual = [output, *states, cells]
        assert_like_oracle(oracle, ours, actual, expected, operands, exact, 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_recomputed_activations_are_the_same_bits(cell):
    layer = make_layer(birnn_cuda, cell, 3, 5, bidirectional=True, num_layers=2)
    _, _, options = draw_call("mixed", has_lengths=True)
    input = torch.randn(7, 5, 3, requires_grad=True)
    results = []
    for layer.recompute_activations in (False, True):
        outputs = call(layer, input, **options)
        loss = sum(o.square().sum() for o in outputs)
        results.append(torch.autograd.grad(loss, [input, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_unbatched_and_in_chunks():
    """A row in chunks that carry the state, as reinforcement learning has it, is the row."""
    layer = birnn_cuda.GRU(3, 4)
    input, resets = torch.randn(8, 3), torch.tensor([0, 0, 1, 0, 0, 1, 0, 0]).bool()
    whole, last = layer(input, resets=resets)
    state, outputs = None, []
    for part in range(0, 8, 3):
        chunk = slice(part, part + 3)
        output, state = layer(input[chunk], state, resets=resets[chunk])
        outputs.append(output)
    assert_close([torch.cat(outputs), state], [whole, last], 1e-6)
    assert_close([whole[2:5]], [layer(input[2:5])[0]], 1e-6)


# ---- derivatives of all orders, transforms


def make_function(cell, has_lengths):
    layer = make_layer(
        birnn_cuda, cell, 2, 3, bidirectional=True, num_layers=2, dtype=torch.float64
    )
    _, _, options = draw_call("mixed", 5, 3, has_lengths)
    names = [name for name, _ in layer.named_parameters()]
    operands = [torch.randn(5, 3, 2, dtype=torch.float64), *make_states(layer, 3, torch.float64)]
    count = len(operands)

    def function(*tensors):
        weights = dict(zip(names, tensors[count:], strict=True))
        states = tensors[1:count]
        hx = tuple(states) if layer.mode == "LSTM" else states[0]
        output, final = functional_call(layer, weights, (tensors[0], hx), options)
        return output, *(final if isinstance(final, tuple) else (final,))

    leaves = copies([*operands, *layer.parameters()], torch.float64)
    return function, leaves


@pytest.mark.parametrize(
    "has_lengths", [pytest.param(False, marks=pytest.mark.long), True], ids=["full", "lengths"]
)
@pytest.mark.parametrize("cell", ["tanh", "gru", pytest.param("lstm", marks=pytest.mark.long),
                                  "lstm_proj"])  # fmt: skip
def test_derivatives_by_difference_quotients(cell, has_lengths):
    function, leaves = make_function(cell, has_lengths)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda x: function(x, *leaves[1:])[0], leaves[0])


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_are_the_oracles(cell):
    oracle, ours = make_pair(cell, 3, 4, bidirectional=True, dtype=torch.float64)
    resets, lengths, options = draw_call("mixed", has_lengths=True)
    results = []
    drawn = draw_operands(ours, lambda: [torch.randn(7, 5, 3, dtype=torch.float64)], **options)
    for layer in (ours, oracle):
        (input,) = copies(drawn, torch.float64)
        if layer is ours:
            outputs = call(ours, input, **options)
        else:
            outputs = call_by_segments(oracle, input, [], resets, lengths)
        leaves = [input, *layer.parameters()]
        first = torch.autograd.grad(sum(o.pow(3).sum() for o in outputs), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    assert_close(*results, 1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference(cell):
    oracle, ours = make_pair(cell, 3, 4, bidirectional=True, dtype=torch.float64)
    resets, lengths, options = draw_call("mixed", has_lengths=True)
    input, states = torch.randn(7, 5, 3).double(), make_states(ours, 5, torch.float64)
    expected = call_by_segments(oracle, input, states, resets, lengths)
    weights = list(ours.parameters())
    name = {"lstm_proj": "lstm"}.get(cell, cell)
    hx, cx = [*states, None][:2]
    actual = reference.forward(input, hx, cx, weights, options["lengths"], None, name, 2, resets)
    assert_close(actual[: len(expected)], expected, 1e-12)


@pytest.mark.parametrize("has_lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_opcheck(cell, has_lengths):
    layer = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True)
    resets, _, options = draw_call("mixed", has_lengths=has_lengths)
    hx, cx = [*make_states(layer, 5, torch.float32), None][:2]
    weights = [w.detach() for w in layer.parameters()]
    arguments = (torch.randn(7, 5, 3), hx, cx, weights, options.get("lengths"), None, cell, 2)
    tests = ["test_schema", "test_faketensor"]
    if not has_lengths:
        # Otherwise rows of the reserve that no sequence fills differ from run to run.
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.forward, (*arguments, True, "ieee", resets), test_utils=tests)
    output, h_n, _, reserve = ops.forward(*arguments, True, "ieee", resets)
    needs_grad = [True, True, cx is not None] + [True] * len(weights)
    gradients_of = (torch.randn_like(output), torch.randn_like(h_n), None)
    torch.library.opcheck(
        ops.backward,
        (*gradients_of, *arguments[:6], output, reserve, cell, 2, "ieee", needs_grad, None, resets),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_vmap(cell):
    """Of input and resets, and of the resets alone; with gradients of each sample's weights."""
    layer = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, dtype=torch.float64)
    weights = {name: w.detach() for name, w in layer.named_parameters()}
    inputs = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    resets = torch.rand(4, 6, 2) < 0.4

    def loss(weights, input, begins):
        output, _ = functional_call(layer, weights, (input,), {"resets": begins})
        return output.square().sum()

    mapped = vmap(grad(loss), (None, 0, 0))(weights, inputs, resets)
    one_input = vmap(grad(loss), (None, None, 0))(weights, inputs[0], resets)
    values = vmap(loss, (None, 0, 2))(weights, inputs, resets.movedim(0, 2))
    for index in range(4):
        expected = grad(loss)(weights, inputs[index], resets[index])
        assert_close([mapped[n][index] for n in weights], list(expected.values()), 1e-12)
        expected = grad(loss)(weights, inputs[0], resets[index])
        assert_close([one_input[n][index] for n in weights], list(expected.values()), 1e-12)
        assert_close([values[index]], [loss(weights, inputs[index], resets[index])], 1e-12)


@pytest.mark.usefixtures("forgets_compiled")
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("cell", [*(pytest.param(cell, marks=pytest.mark.long)
                                    for cell in ("tanh", "gru")), "lstm"])  # fmt: skip
def test_compile(cell, dynamic):
    layer = make_layer(birnn_cuda, cell, 3, 5, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for has_lengths in (False, True):
        _, _, options = draw_call("mixed", has_lengths=has_lengths)
        input = torch.randn(7, 5, 3, requires_grad=True)
        results = []
        for run in (layer, compiled):
            output, _ = run(input, **options)
            results.append([output, *torch.autograd.grad(output.square().sum(), [input])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_export_and_trace():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = birnn_cuda.LSTM(3, 5, num_layers=2, bidirectional=True)

        def forward(self, input, resets):
            return self.rnn(input, resets=resets)[0]

    model = Model()
    example, other = (
        (torch.randn(T, B, 3), draw_resets(T, B, "mixed")) for T, B in ((7, 5), (4, 3))
    )
    sizes = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    exported = torch.export.export(model, example, dynamic_shapes=(sizes, sizes))
    traced = torch.jit.trace(model, example, check_trace=False)
    graph = torch.fx.symbolic_trace(model)
    for given in (example, other):
        expected = model(*given)
        assert torch.equal(exported.module()(*given), expected)
        assert torch.equal(traced(*given), expected)
        assert torch.equal(graph(*given), expected)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_autocast(cell):
    layer = make_layer(birnn_cuda, cell, 3, 5, bidirectional=True)
    low = copy.deepcopy(layer).bfloat16()
    input, resets = torch.randn(7, 5, 3), draw_resets(7, 5, "mixed")
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(layer, input, resets=resets)
    expected = call(low, input.bfloat16(), resets=resets)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_the_network():
    model = birnn_cuda.BiRNN(3, 4, 2, "gru", batch_first=True)
    input, resets = torch.randn(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool)
    resets[0, 2] = resets[1, 4] = True
    lengths = torch.tensor([6, 5])
    output = model(input, resets=resets, lengths=lengths)
    assert_close([output[:1, 2:]], [model(input[:1, 2:])], 1e-6)
    assert_close([output[1:, 4:5]], [model(input[1:, 4:5])], 1e-6)
    assert output[1, 5].eq(0).all()
    one = birnn_cuda.BiRNN(3, 4, 2, "gru", per_step=False)
    with pytest.raises(ValueError, match="per_step=False gives one output a row"):
        one(input, resets=resets)


# ---- errors


@pytest.mark.parametrize(
    ("resets", "error", "message"),
    [
        ([[True]], TypeError, "resets must be a tensor, got list"),
        (torch.zeros(6, 3), ValueError, r"must be bool.*got torch.float32: resets.bool\(\)"),
        (torch.zeros(6, 3, 1).bool(), ValueError, "resets must have 2 dimensions, got 3"),
        (torch.zeros(3, 6).bool(), ValueError, r"the sizes \(6, 3\) of the input.*got \(3, 6\)"),
        (
            torch.zeros(6, 3, device="meta").bool(),
            RuntimeError,
            "found input tensor at cpu and resets tensor at meta",
        ),
    ],
)
def test_errors_of_form(resets, error, message):
    layer = birnn_cuda.GRU(4, 5)
    with pytest.raises(error, match=message):
        layer(torch.randn(6, 3, 4), resets=resets)


def test_errors():
    layer = birnn_cuda.LSTM(4, 5, bidirectional=True)
    input, resets = torch.randn(6, 3, 4), torch.zeros(6, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="1 dimension for an unbatched input, got 2"):
        layer(input[:, 0], resets=resets)
    resets[4, 1] = True
    message = r"resets are true at step 4 of sequence 1, which ends before it: lengths\[1\] is 4"
    with pytest.raises(ValueError, match=message):
        layer(input, resets=resets, lengths=torch.tensor([6, 4, 6]))
    layer(input, resets=resets, lengths=torch.tensor([6, 5, 0]))
    packed = pack_sequence([input[:, 0], input[:2, 1]])
    message = r"resets= is for a padded input, got a PackedSequence.*pack_rows"
    with pytest.raises(ValueError, match=message):
        layer(packed, resets=resets)
    nested = torch.nested.nested_tensor([input[:, 0], input[:2, 1]], layout=torch.jagged)
    with pytest.raises(ValueError, match="resets= is for a padded input, got a NestedTensor"):
        layer(nested, resets=resets)


def test_errors_of_the_operator():
    layer = birnn_cuda.GRU(4, 5)
    weights = list(layer.parameters())
    input = torch.randn(6, 3, 4)
    options = (None, None, weights, None, None, "gru", 1, False, "ieee")
    for resets, message in (
        (torch.zeros(6, 4).bool(), r"expected resets of size \[6, 3\], got \[6, 4\]"),
        (torch.zeros(6, 3), "expected resets of dtype Bool, got Float"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.forward(input, *options, resets)
    sizes = torch.tensor([3] * 6)
    packed = (None, None, weights, None, sizes, "gru", 1, False, "ieee")
    with pytest.raises(RuntimeError, match="resets need a padded input, got batch_sizes of 6"):
        ops.forward(input.flatten(0, 1), *packed, torch.zeros(6, 3).bool())


def test_onnx_has_no_such_node(tmp_path):
    from birnn_cuda import onnx

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = birnn_cuda.GRU(3, 4)

        def forward(self, input, resets):
            return self.rnn(input, resets=resets)[0]

    example = torch.randn(3, 2, 3), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="export the model without resets="):
        onnx.export(Model().eval(), example, tmp_path / "model.onnx")


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)], ids=str)
def test_nothing_at_all(sizes):
    layer = birnn_cuda.LSTM(4, 5, bidirectional=True)
    input = torch.randn(*sizes, 4)
    output, _ = layer(input, resets=torch.zeros(sizes, dtype=torch.bool))
    assert output.shape == (*sizes, 10)


def test_plan():
    device = next(d for d in ops.known_devices() if d["name"] == "h100")
    sizes = dict(seq_len=64, batch_size=16, input_size=64, hidden_size=128)
    plan = ops.plan(device, cell="lstm", dtype="float16", resets=True, **sizes)
    without = ops.plan(device, cell="lstm", dtype="float16", **sizes)
    for name in ("forward", "backward"):
        assert plan[name]["kernel"] == without[name]["kernel"] != "stepwise"
