"""The layers on a GPU: values and gradients against fp64, streams, graphs, lengths, errors.

The tests of the modules run on the CPU (test_layers.py and the others); here is what only a device
can show. The oracle is torch's layer in fp64 on the CPU; what may differ from it in tf32 and 16
bits: rounding.py.
"""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import rounding
import rounding_model
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    assert_close,
    call,
    call_by_lengths,
    copies,
    draw_operands,
    gradients,
    leave_the_kink,
    make_layer,
    make_pair,
    make_states,
)
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda
from birnn_cuda import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        ops.build_info()["cuda_version"] is None, reason="the extension is built for the CPU alone"
    ),
]

# dtype, the switch for fp32, the bound of the error or the format that it comes of.
BOUNDED = {
    "fp64": (torch.float64, "ieee", 1e-12),
    "ieee": (torch.float32, "ieee", 1e-5),
}
ROUNDED = {
    "tf32": (torch.float32, "tf32", rounding.FORMATS["tf32 of libraries"]),
    "fp16": (torch.float16, "ieee", rounding.FORMATS["fp16"]),
    "bf16": (torch.bfloat16, "ieee", rounding.FORMATS["bf16"]),
}
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
LENGTHS = {
    "full": [5, 5, 5, 5],
    "ones": [1, 1, 1, 1],
    "sorted": [5, 4, 4, 1],
    "unsorted": [2, 5, 1, 3],
    "zeros": [0, 3, 0, 5],
}


@pytest.fixture(autouse=True)
def ieee(monkeypatch):
    """fp32 is exact here unless a test asks for tf32."""
    use_precision(monkeypatch, "ieee")


def use_precision(monkeypatch, precision):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)


def on_device(tensors):
    return [t.detach().cuda().requires_grad_(t.requires_grad) for t in tensors]


def training_step(layer, input, states=(), **options):
    """Outputs, and the gradients of a loss that weighs every element."""
    outputs = call(layer, input, states, **options)
    loss = sum((o * o).sum() for o in outputs)
    leaves = [t for t in (input, *states) if isinstance(t, torch.Tensor) and t.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])]


def assert_equal(actual, expected):
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


# ---- values and gradients


@pytest.mark.parametrize("mode", BOUNDED)
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
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


def check_against(oracle, ours, operands, exact, tolerance, **options):
    outputs = call(ours, operands[0], operands[1:], **options)
    expected = call(oracle, exact[0], exact[1:])
    check_results(oracle, ours, outputs, expected, operands, exact, tolerance)


def check_results(oracle, ours, outputs, expected, operands, exact, tolerance):
    assert all(o.is_cuda and o.dtype == operands[0].dtype for o in outputs)
    cotangents = [torch.randn_like(o) for o in expected]
    actual = gradients(outputs, on_device(cotangents), [*operands, *ours.parameters()])
    assert_close([o.cpu() for o in outputs], expected, tolerance, "output")
    assert_close(
        [g.cpu() for g in actual],
        gradients(expected, cotangents, [*exact, *oracle.parameters()]),
        tolerance,
        "gradient",
    )


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


# ---- lengths and packed sequences


@pytest.mark.parametrize("mode", BOUNDED)
@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell, pattern, where, mode):
    dtype, _, tolerance = BOUNDED[mode]
    batch_first, with_states = pattern == "unsorted", pattern != "sorted"
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 6, 9, dtype=dtype, **options)
    shape = (4, 5, 6) if batch_first else (5, 4, 6)

    def draw():
        states = make_states(ours, 4, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = on_device(copies(operands, dtype)), copies(operands, torch.float64)
    lengths = torch.tensor(LENGTHS[pattern], dtype=torch.int32 if with_states else torch.int64)
    outputs = call(ours.cuda(), operands[0], operands[1:], lengths=lengths.to(where))
    expected = call_by_lengths(oracle, exact[0], exact[1:], LENGTHS[pattern])
    padding = torch.arange(5).unsqueeze(1) >= lengths
    padded = outputs[0].transpose(0, 1) if batch_first else outputs[0]
    assert padded[padding.cuda()].eq(0).all()
    check_results(oracle, ours, outputs, expected, operands, exact, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_in_sixteen_bits(cell, dtype):
    """A sequence in a padded batch is the sequence alone."""
    ours = make_layer(birnn_cuda, cell, 6, 24, bidirectional=True, dtype=dtype).cuda()
    input = torch.randn(7, 4, 6, device="cuda").to(dtype)
    lengths = [7, 3, 0, 1]
    outputs = call(ours, input, lengths=torch.tensor(lengths, device="cuda"))
    for index, length in enumerate(lengths):
        assert outputs[0][length:, index].eq(0).all()
        if length:
            alone = call(ours, input[:length, index : index + 1])
            together = [outputs[0][:length, index : index + 1]]
            together += [state[:, index : index + 1] for state in outputs[1:]]
            assert_close(together, alone, 4 * torch.finfo(dtype).eps)


def test_lengths_on_the_device_are_clamped():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True).cuda()
    input = torch.randn(5, 4, 3, device="cuda", requires_grad=True)
    wrong, right = (
        training_step(ours, input, lengths=torch.tensor(values, device="cuda"))
        for values in ([-3, 9, 2, 5], [0, 5, 2, 5])
    )
    assert_equal(wrong, right)


@pytest.mark.parametrize("mode", BOUNDED)
@pytest.mark.parametrize("pattern", ["full", "ones", "sorted", "unsorted"])
@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell, pattern, mode):
    dtype, _, tolerance = BOUNDED[mode]
    oracle, ours = make_pair(cell, 6, 9, bidirectional=True, num_layers=2, dtype=dtype)
    lengths, enforce_sorted = LENGTHS[pattern], pattern != "unsorted"

    def draw():
        return [torch.randn(5, 4, 6, dtype=dtype), *make_states(ours, 4, dtype)]

    operands = draw_operands(ours, draw)
    operands, exact = on_device(copies(operands, dtype)), copies(operands, torch.float64)
    outputs, expected = (
        call(layer, pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), states)
        for layer, (x, *states) in ((ours.cuda(), operands), (oracle, exact))
    )
    check_results(oracle, ours, outputs, expected, operands, exact, tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell):
    """NaN past a sequence's end, or in an empty one's state, changes nothing, bit for bit."""
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True, num_layers=2).cuda()
    lengths = torch.tensor([5, 0, 3, 1], device="cuda")
    padding = torch.arange(5, device="cuda").unsqueeze(1) >= lengths
    clean = torch.randn(5, 4, 3, device="cuda")
    poisoned = clean.masked_fill(padding.unsqueeze(2), float("nan"))
    states = [s.cuda() for s in make_states(ours, 4, torch.float32)]
    cotangent = torch.randn(5, 4, call(ours, clean)[0].size(2), device="cuda")
    results = []
    for input, value in ((clean, 0.0), (poisoned, float("nan"))):
        leaf = input.requires_grad_()
        for state in states:
            state[:, 1] = value
        outputs = call(ours, leaf, states, lengths=lengths)
        # What comes back past the ends is not read either.
        d_output = cotangent.masked_fill(padding.unsqueeze(2), value)
        grads = torch.autograd.grad(outputs[0], [leaf, *ours.parameters()], d_output)
        results.append([*(o[:, [0, 2, 3]] for o in outputs), *grads])
        assert grads[0][padding].eq(0).all()
    assert_equal(*results)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell):
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True).cuda()
    clean = torch.randn(5, 4, 3, device="cuda")
    poisoned = clean.clone()
    poisoned[2, 1] = float("nan")
    results = []
    for input in (clean, poisoned):
        leaf = input.requires_grad_()
        outputs = call(ours, leaf)
        results.append([*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), [leaf])])
    assert results[1][0][:, 1].isnan().any()
    others = [0, 2, 3]
    assert_equal([t[:, others] for t in results[0]], [t[:, others] for t in results[1]])


# ---- the same bits again


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_repeated_runs_give_the_same_bits(cell, dtype):
    ours = make_layer(birnn_cuda, cell, 64, 96, bidirectional=True, dtype=dtype).cuda()
    input = torch.randn(20, 33, 64, device="cuda", dtype=dtype, requires_grad=True)
    expected = training_step(ours, input)
    for _ in range(3):
        assert_equal(training_step(ours, input), expected)


@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_second_backward(cell, form):
    ours = make_layer(birnn_cuda, cell, 6, 24, bidirectional=True, num_layers=2).cuda()
    input = torch.randn(5, 4, 6, device="cuda", requires_grad=True)
    given, options = forms_of(input)[form]
    loss = sum(o.square().sum() for o in call(ours, given, **options))
    leaves = [input, *ours.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, leaves), first)


def forms_of(input):
    """The input of 4 sequences of 5 steps in each form that a layer takes."""
    lengths = torch.tensor([5, 3, 3, 1])
    return {
        "padded": (input, {}),
        "lengths": (input, {"lengths": lengths.cuda()}),
        "lengths on the CPU": (input, {"lengths": lengths}),
        "packed": (pack_padded_sequence(input, lengths), {}),
    }


# ---- streams


@pytest.mark.parametrize("form", ["padded", "lengths", "lengths on the CPU", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_host_never_waits(cell, form):
    ours = make_layer(birnn_cuda, cell, 6, 24, bidirectional=True, num_layers=2).cuda()
    input = torch.randn(5, 4, 6, device="cuda", requires_grad=True)
    given, options = forms_of(input)[form]

    def step():
        loss = call(ours, given, **options)[0].sum()
        # The graph of the packing, which all steps share, is retained.
        return torch.autograd.grad(loss, [input, *ours.parameters()], retain_graph=True)

    expected = step()  # memory, handles and streams are there from now on
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The first step on a busy device allocates what it cannot yet use again, and may wait for that.
    for is_first in (True, False):
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)  # a tenth of a second, and many times what the host takes
        busy = torch.cuda.Event()
        busy.record()
        actual = step()
        assert is_first or not busy.query(), "the host waited for the device"
        assert_equal(actual, expected)


def test_on_a_side_stream():
    ours = birnn_cuda.LSTM(16, 32, bidirectional=True).cuda()
    input = torch.randn(20, 8, 16, device="cuda", requires_grad=True)
    expected = training_step(ours, input)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The input appears late, and its memory is overwritten straight after.
        torch.cuda._sleep(20_000_000)
        late = (input.detach() * 1).requires_grad_()
        actual = training_step(ours, late)
        with torch.no_grad():
            late.fill_(float("nan"))
        again = [torch.empty_like(t).fill_(float("nan")) for t in actual]
    torch.cuda.synchronize()
    assert_equal(actual, expected)
    assert all(t.isnan().all() for t in again)


def test_two_layers_on_two_streams():
    layers = [birnn_cuda.GRU(16, 64, bidirectional=True).cuda() for _ in range(2)]
    inputs = [torch.randn(50, 8, 16, device="cuda", requires_grad=True) for _ in range(2)]
    expected = [training_step(*pair) for pair in zip(layers, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(10):
        actual = []
        for stream, layer, input in zip(streams, layers, inputs, strict=True):
            with torch.cuda.stream(stream):
                actual.append(training_step(layer, input))
        torch.cuda.synchronize()
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("own_streams", [False, True])
def test_threads(own_streams):
    ours = birnn_cuda.LSTM(16, 48, bidirectional=True).cuda()
    inputs = [torch.randn(10, 4, 16, device="cuda") for _ in range(4)]
    with torch.no_grad():
        expected = [call(ours, input) for input in inputs]
    torch.cuda.synchronize()
    start = threading.Barrier(len(inputs))

    def work(input):
        start.wait()
        stream = torch.cuda.Stream() if own_streams else torch.cuda.current_stream()
        with torch.cuda.stream(stream), torch.no_grad():
            results = [call(ours, input) for _ in range(20)]
        stream.synchronize()
        return results

    with ThreadPoolExecutor(len(inputs)) as pool:
        for results, outputs in zip(pool.map(work, inputs), expected, strict=True):
            for result in results:
                assert_equal(result, outputs)


def test_memory_is_given_back():
    ours = birnn_cuda.GRU(16, 48, bidirectional=True).cuda()
    input = torch.randn(10, 4, 16, device="cuda", requires_grad=True)
    training_step(ours, input)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        training_step(ours, input)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_on_a_device_that_is_not_current():
    oracle, ours = make_pair("lstm", 6, 9, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 4, 6, dtype=torch.float64)
    outputs = call(ours.to("cuda:1"), input.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert_close([o.cpu() for o in outputs], call(oracle, input), 1e-12)
    with pytest.raises(RuntimeError, match="expected lengths on cuda:1"):
        ours(input.to("cuda:1"), lengths=torch.full((4,), 5, device="cuda:0"))


# ---- CUDA graphs


def captured(function):
    """A graph of the function's work, and what its replays leave."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_capture_of_forward(cell, dtype):
    options = {"bidirectional": True, "num_layers": 2, "dtype": dtype}
    ours = make_layer(birnn_cuda, cell, 16, 32, **options).cuda()
    input = torch.randn(10, 4, 16, device="cuda").to(dtype)
    lengths = torch.full((4,), 10, device="cuda")
    with torch.no_grad():
        graph, outputs = captured(lambda: call(ours, input, lengths=lengths))
        for values in ([10, 10, 10, 10], [0, 3, 10, 1]):
            lengths.copy_(torch.tensor(values))
            input.copy_(torch.randn(10, 4, 16))
            graph.replay()
            replayed = [o.clone() for o in outputs]
            tolerance = 1e-6 if dtype == torch.float32 else 1e-2
            assert_close(replayed, call(ours, input, lengths=lengths), tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_capture_of_a_training_step(cell):
    graphed = make_layer(birnn_cuda, cell, 16, 32, bidirectional=True, num_layers=2).cuda()
    eager = copy.deepcopy(graphed)
    start = copy.deepcopy(graphed.state_dict())
    input = torch.randn(10, 4, 16, device="cuda")

    def step_of(layer):
        def step():
            loss = call(layer, input)[0].square().mean()
            grads = torch.autograd.grad(loss, list(layer.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(layer.parameters(), grads, strict=True):
                    parameter -= 0.1 * grad
            return loss

        return step

    graph, loss = captured(step_of(graphed))
    graphed.load_state_dict(start)
    for _ in range(5):
        input.copy_(torch.randn(10, 4, 16))
        graph.replay()
        assert_close([loss], [step_of(eager)()], 1e-5)
    assert_close(list(graphed.parameters()), list(eager.parameters()), 1e-5)


def test_capture_by_make_graphed_callables():
    ours = birnn_cuda.GRU(16, 32, bidirectional=True).cuda()
    expected = copy.deepcopy(ours)
    sample = torch.randn(10, 4, 16, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(ours, (sample,))
    input = torch.randn(10, 4, 16, device="cuda", requires_grad=True)
    actual = [
        torch.autograd.grad(layer(input)[0].square().sum(), [input, *layer.parameters()])
        for layer in (graphed, expected)
    ]
    assert_close(*actual, 1e-6)


@pytest.mark.parametrize("form", ["lengths on the CPU", "packed"])
def test_capture_of_what_the_host_reads(form):
    """Replays would not see it change, so it is refused; eager calls work on."""
    ours = birnn_cuda.GRU(6, 8, bidirectional=True).cuda()
    given, options = forms_of(torch.randn(5, 4, 6, device="cuda"))[form]
    with torch.no_grad():
        expected = call(ours, given, **options)
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="CUDA graph"), torch.cuda.graph(graph):
            call(ours, given, **options)
        assert_equal(call(ours, given, **options), expected)


# ---- what torch knows of the ops


def op_arguments(cell, form, dtype):
    layer = make_layer(birnn_cuda, cell, 5, 6, bidirectional=True, dtype=dtype).cuda()
    weights = [w.detach() for w in layer.parameters()]
    states = [s.cuda() for s in make_states(layer, 3, dtype)]
    input = torch.randn((9, 5) if form == "packed" else (5, 3, 5), device="cuda").to(dtype)
    lengths = torch.tensor([5, 1, 3], device="cuda") if form == "lengths" else None
    batch_sizes = torch.tensor([3, 2, 2, 1, 1]) if form == "packed" else None
    cx = states[1] if len(states) == 2 else None
    name = "lstm" if cell == "lstm_proj" else cell
    return input, states[0], cx, weights, lengths, batch_sizes, name, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_ops_are_as_their_fakes_say(cell, form, dtype):
    checks = ["test_schema", "test_faketensor"]
    arguments = op_arguments(cell, form, dtype)
    for training in (False, True):
        opcheck(torch.ops.birnn_cuda.forward, (*arguments, training, "ieee"), test_utils=checks)
    output, h_n, c_n, reserve = torch.ops.birnn_cuda.forward(*arguments, True, "ieee")
    kept = reserve.clone()
    assert reserve.dtype == dtype
    d_c_n = torch.randn_like(c_n) if arguments[6] == "lstm" else None
    *tensors, name, num_directions = arguments
    needs_grad = [True] * (3 + len(arguments[3]))
    cotangents = (torch.randn_like(output), torch.randn_like(h_n), d_c_n)
    operands = (*cotangents, *tensors, output, reserve, name, num_directions, "ieee", needs_grad)
    opcheck(torch.ops.birnn_cuda.backward, operands, test_utils=checks)
    # Only read. NaN stands for itself in rows past the ends.
    torch.testing.assert_close(reserve, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.seconds(60)  # a cold compiler
def test_compiled():
    ours = birnn_cuda.LSTM(6, 8, bidirectional=True).cuda()
    input = torch.randn(5, 4, 6, device="cuda", requires_grad=True)
    compiled = torch.compile(ours, fullgraph=True)
    assert_close(training_step(compiled, input), training_step(ours, input), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_autocast(cell, dtype):
    ours = make_layer(birnn_cuda, cell, 6, 8, bidirectional=True).cuda()
    low = copy.deepcopy(ours).to(dtype)
    input = torch.randn(5, 3, 6, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        outputs = call(ours, input)
    assert all(o.dtype == dtype for o in outputs)
    assert_equal(outputs, call(low, input.to(dtype)))
    sum(o.float().sum() for o in outputs).backward()
    assert all(w.grad.dtype == torch.float32 for w in ours.parameters())


# ---- errors: at the call that causes them, and the next call works


def wrong_calls():
    ours = birnn_cuda.LSTM(6, 8, bidirectional=True).cuda()
    input = torch.randn(5, 4, 6, device="cuda")
    weights = [w.detach() for w in ours.parameters()]
    states = [s.cuda() for s in make_states(ours, 4, torch.float32)]
    forward, backward = torch.ops.birnn_cuda.forward, torch.ops.birnn_cuda.backward
    output, _, _, reserve = forward(input, *states, weights, None, None, "lstm", 2, True, "ieee")
    rest = (None, None, "lstm", 2, True, "ieee")
    on_cpu = [w.cpu() for w in weights]

    def run_backward(output, reserve):
        operands = (input, *states, weights, None, None, output, reserve)
        return backward(output, None, None, *operands, "lstm", 2, "ieee", [True] * 11)

    return (
        ours,
        input,
        {
            "input on the CPU": (
                lambda: ours(input.cpu()),
                "Input and parameter tensors are not at the same device",
            ),
            "hx on the CPU": (
                lambda: ours(input, tuple(s.cpu() for s in states)),
                "Input and hidden tensors are not at the same device",
            ),
            "weights on the CPU": (
                lambda: forward(input, *states, on_cpu, *rest),
                "expected weight_ih on cuda:0 like the input, got cpu",
            ),
            "states on the CPU": (
                lambda: forward(input, states[0].cpu(), states[1], weights, *rest),
                "expected hx on cuda:0 like the input, got cpu",
            ),
            "dtype": (
                lambda: forward(input, states[0].half(), states[1], weights, *rest),
                "expected hx of dtype Float like the input, got Half",
            ),
            "integers": (
                lambda: forward(input.int(), None, None, weights, *rest),
                "dtype must be float32, float64, float16 or bfloat16, got Int",
            ),
            "no step": (
                lambda: ours(input[:0]),
                "Expected sequence length to be larger than 0 in RNN",
            ),
            "count of lengths": (
                lambda: forward(
                    input,
                    None,
                    None,
                    weights,
                    torch.ones(3, device="cuda", dtype=torch.int64),
                    *rest[1:],
                ),
                r"expected lengths of size \[4\], got \[3\]",
            ),
            "a length on the CPU": (
                lambda: ours(input, lengths=torch.tensor([5, 1, 6, 2])),
                r"lengths\[2\] is 6 but must be between 0 and the 5 steps of the input",
            ),
            "reserve": (
                lambda: run_backward(output, reserve[..., :-1]),
                "expected a reserve of size",
            ),
            "reserve's dtype": (
                lambda: run_backward(output, reserve.half()),
                "expected a reserve of size",
            ),
        },
    )


CASES = (
    "input on the CPU",
    "hx on the CPU",
    "weights on the CPU",
    "states on the CPU",
    "dtype",
    "integers",
    "no step",
    "count of lengths",
    "a length on the CPU",
    "reserve",
    "reserve's dtype",
)


@pytest.mark.parametrize("case", CASES)
def test_errors(case):
    ours, input, cases = wrong_calls()
    expected = call(ours, input)
    function, text = cases[case]
    kind = ValueError if case == "a length on the CPU" else RuntimeError
    with pytest.raises(kind, match=text):
        function()
    assert_equal(call(ours, input), expected)
    torch.cuda.synchronize()


def test_out_of_memory_is_an_error_like_others():
    ours = birnn_cuda.GRU(8, 1024, bidirectional=True).cuda()
    input = torch.randn(5, 4, 8, device="cuda")
    expected = call(ours, input)
    with torch.no_grad(), pytest.raises(torch.cuda.OutOfMemoryError):
        # One row expanded: as it stands it takes no memory, in full two terabytes.
        ours(input[:1, :1].expand(1 << 18, 1 << 18, 8))
    assert_equal(call(ours, input), expected)
