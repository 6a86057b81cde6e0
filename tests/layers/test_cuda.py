"""The layers on a GPU: values and gradients against fp64.

The tests of the modules run on the CPU (test_layers.py and the others); here and in the other
test_cuda_*.py is what only a device can show. The oracle is torch's layer in fp64 on the CPU, of
cells that it does not have this package's, which test_variants.py compares step by step; what may
differ from it in tf32 and 16 bits: rounding.py.
"""

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
    call,
    copies,
    draw_operands,
    gradients,
    leave_the_kink,
    make_layer,
    make_pair,
    make_states,
)
from cuda_support import (
    BOUNDED,
    NEEDS_GPU,
    ROUNDED,
    assert_equal,
    check_against,
    on_device,
    training_step,
    use_precision,
)

import birnn_cuda

pytestmark = NEEDS_GPU

# T, B, I, H and the options of a layer.
CONFIGURATIONS = [
    (1, 1, 4, 4, {}),
    (1, 3, 5, 8, {"bidirectional": True}),
    (2, 3, 1, 5, {"bidirectional": True}),
    (3, 2, 7, 8, {"bidirectional": True, "bias": False, "num_layers": 2}),
    (5, 5, 3, 13, {"bidirectional": True, "batch_first": True}),
    (7, 1, 16, 17, {"num_layers": 2, "batch_first": True}),
    (6, 33, 40, 64, {"bidirectional": True}),
    (7, 9, 64, 129, {"bidirectional": True}),
    (7, 16, 128, 256, {"bidirectional": True}),
]


@pytest.mark.parametrize("mode", BOUNDED)
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_values_and_gradients(cell, config, mode):
    dtype, _, tolerance = BOUNDED[mode]
    seq_len, batch_size, input_size, hidden_size, options = config
    oracle, ours = make_pair(cell, input_size, hidden_size, dtype=dtype, **options)
    shape = (seq_len, batch_size, input_size)
    if options.get("batch_first"):
        shape = (batch_size, seq_len, input_size)
    with_states = config in CONFIGURATIONS[::2]

    def draw():
        states = make_states(ours, batch_size, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    check_against(oracle, ours.cuda(), on_device(operands), exact, tolerance)


@pytest.mark.parametrize("mode", ROUNDED)
@pytest.mark.parametrize("config", CONFIGURATIONS[4:], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_no_further_than_rounding(monkeypatch, cell, config, mode):
    """Where the format rounds, errors are no larger than its rounding explains."""
    dtype, precision, format_ = ROUNDED[mode]
    use_precision(monkeypatch, precision)
    seq_len, batch_size, input_size, hidden_size, options = config
    options = {**options, "dtype": dtype, "num_layers": 1, "batch_first": False}
    oracle, ours = make_pair(cell, input_size, hidden_size, **options)
    if cell == "relu":
        leave_the_kink(ours)
        oracle.load_state_dict(ours.state_dict())
    operands = [
        torch.randn(seq_len, batch_size, input_size).to(dtype),
        *make_states(ours, batch_size, dtype),
    ]
    cotangents, results = [], []
    for layer, leaves in (
        (oracle, copies(operands, torch.float64)),
        (ours.cuda(), on_device(copies(operands, dtype))),
    ):
        outputs = call(layer, leaves[0], leaves[1:])
        cotangents = cotangents or [torch.randn_like(o).to(dtype) for o in outputs]
        moved = [d.to(outputs[0].device) for d in cotangents]
        grads = gradients(outputs, moved, [*leaves, *layer.parameters()])
        results.append([t.cpu() for t in (*outputs, *grads)])
    drawn = rounding_model.drawn(oracle.cuda(), format_, on_device(operands), on_device(cotangents))
    for index, (exact, own, draws) in enumerate(zip(*results, drawn, strict=True)):
        assert own.dtype == dtype
        rounding.check(own, exact, TOLERANCE[torch.float32], draws, f"result {index}")


@pytest.mark.parametrize("mode", ["ieee", "tf32"])
def test_ignores_torchs_matmul_switch(monkeypatch, mode):
    """The precision of matrix products elsewhere changes nothing, and is not changed."""
    use_precision(monkeypatch, mode)
    ours = birnn_cuda.LSTM(64, 64, bidirectional=True).cuda()
    input = torch.randn(5, 8, 64, device="cuda", requires_grad=True)
    results, matmul = [], torch.backends.cuda.matmul
    usual = matmul.fp32_precision
    try:
        for switch in ("ieee", "tf32"):
            matmul.fp32_precision = switch
            left, right = torch.randn(2, 256, 256, device="cuda").unbind()
            before = left @ right
            results.append(training_step(ours, input))
            assert torch.equal(left @ right, before)
    finally:
        matmul.fp32_precision = usual
    assert_equal(*results)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_gradients(cell):
    ours = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, dtype=torch.float64).cuda()

    def draw():
        return [torch.randn(3, 2, 3, dtype=torch.float64)]

    (input,) = on_device(draw_operands(copy.deepcopy(ours).cpu(), draw))
    assert torch.autograd.gradcheck(lambda x: ours(x)[0], input.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], input)


def strided(tensor, how):
    if how == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced":
        view = tensor.new_full([2 * n for n in tensor.shape], float("nan"))[
            tuple(slice(None, None, 2) for _ in tensor.shape)
        ]
        return view.copy_(tensor)
    return tensor[:, :1].expand_as(tensor)


@pytest.mark.parametrize("how", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("cell", CELLS)
def test_strides(cell, how):
    oracle, ours = make_pair(cell, 6, 8, bidirectional=True, dtype=torch.float64)
    ours.cuda()
    values = [torch.randn(5, 4, 6, dtype=torch.float64), *make_states(ours, 4, torch.float64)]
    operands = [strided(x.cuda(), how).detach().requires_grad_() for x in values]
    assert not any(x.is_contiguous() for x in operands)
    exact = [x.detach().cpu().contiguous().requires_grad_() for x in operands]
    outputs, expected = call(ours, operands[0], operands[1:]), call(oracle, exact[0], exact[1:])
    cotangents = [torch.randn_like(o) for o in expected]
    actual = gradients(outputs, [strided(d.cuda(), "transposed") for d in cotangents], [*operands])
    assert_close([t.cpu() for t in outputs], expected, 1e-12)
    assert_close([t.cpu() for t in actual], gradients(expected, cotangents, exact), 1e-12)


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("cell", ["gru", "lstm_proj"])
def test_gradient_of_one_operand(cell, index):
    ours = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True).cuda()
    operands = [torch.randn(5, 2, 3), *make_states(ours, 2, torch.float32)]
    operands = [t.cuda() for t in operands]
    leaves = [*operands, *ours.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    full = torch.autograd.grad(call(ours, operands[0], operands[1:])[0].sum(), leaves)
    for leaf in leaves:
        leaf.requires_grad_(leaf is leaves[index])
    (alone,) = torch.autograd.grad(call(ours, operands[0], operands[1:])[0].sum(), [leaves[index]])
    assert_close([alone], [full[index]], 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell):
    ours = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, dtype=torch.float16).cuda()
    input = torch.randn(5, 0, 3, device="cuda", dtype=torch.float16, requires_grad=True)
    outputs = call(ours, input)
    assert outputs[0].shape[:2] == (5, 0)
    loss = sum(o.sum() for o in outputs)
    d_input, *d_weights = torch.autograd.grad(loss, [input, *ours.parameters()])
    assert d_input.shape == (5, 0, 3)
    assert all(d.eq(0).all() for d in d_weights)


def test_more_steps_than_a_grid_dimension():
    oracle, ours = make_pair("tanh", 2, 3, bidirectional=True, dtype=torch.float64)
    input = torch.randn(70000, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        outputs = call(ours.cuda(), input.cuda())
        assert_close([o.cpu() for o in outputs], call(oracle, input), 1e-10)
