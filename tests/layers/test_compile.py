"""torch.compile, torch.export and AOTInductor: one graph, few compilations, eager's results."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer, make_states
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda

# ---- torch.compile


def assert_compiles(model, input, *, states=(), dynamic=None, **options):
    """Values and gradients of the compiled model are the eager ones, in one graph."""
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    operands = [input, *states, *model.parameters()]
    results = []
    for function in (model, compiled):
        hx = None
        if states:
            hx = tuple(states) if len(states) == 2 else states[0]
        output, final = function(input, hx, **options)
        final = final if isinstance(final, tuple) else (final,)
        loss = output.square().sum() + sum(s.sum() for s in final)
        results.append([output, *final, *torch.autograd.grad(loss, operands)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return compiled


@pytest.mark.parametrize("cell", CELLS)
def test_compile(cell):
    model = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True, dropout=0.0)
    input = torch.randn(5, 2, 3, requires_grad=True)
    states = [s.requires_grad_() for s in make_states(model, 2, torch.float32)]
    assert_compiles(model, input, states=states)
    assert_compiles(model, input, lengths=torch.tensor([2, 5]))


@pytest.mark.long
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_compiled_autograd(cell, recompute):
    """The backward of eager code, compiled when it runs."""
    torch.compiler.reset()
    model = make_layer(birnn_cuda, cell, 3, 4, num_layers=1, bidirectional=True)
    model.recompute_activations = recompute
    graphs = []

    def compiler(graph):
        graphs.append(graph)
        return torch.compile(graph, backend="aot_eager", fullgraph=True, dynamic=True)

    for seq_len in (5, 7):
        input = torch.randn(seq_len, 2, 3, requires_grad=True)
        leaves = [input, *model.parameters()]
        expected = torch.autograd.grad(model(input)[0].square().sum(), leaves)
        loss = model(input)[0].square().sum()
        for leaf in leaves:
            leaf.grad = None
        with compiled_autograd._enable(compiler):
            loss.backward()
        assert all(torch.equal(a.grad, b) for a, b in zip(leaves, expected, strict=True))
    assert graphs


def test_compile_batch_first_unbatched_and_eval():
    model = birnn_cuda.LSTM(3, 4, batch_first=True, bidirectional=True)
    assert_compiles(model, torch.randn(2, 5, 3, requires_grad=True))
    assert_compiles(model, torch.randn(5, 3, requires_grad=True))
    model.eval()
    assert_compiles(model, torch.randn(2, 5, 3, requires_grad=True))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        input = torch.randn(2, 5, 3)
        assert torch.equal(compiled(input)[0], model(input)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compile_under_autocast(dtype):
    model = birnn_cuda.GRU(3, 4, bidirectional=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    input = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(compiled(input)[0], model(input)[0])


class CountingBackend:
    """aot_eager that counts the graphs it is given, forward and backward."""

    def __init__(self):
        self.forward = self.backward = 0

    def __call__(self, graph, example_inputs):
        def compile_forward(graph, _):
            self.forward += 1
            return make_boxed_func(graph)

        def compile_backward(graph, _):
            self.backward += 1
            return make_boxed_func(graph)

        backend = aot_autograd(fw_compiler=compile_forward, bw_compiler=compile_backward)
        return backend(graph, example_inputs)


def train_at(sizes, model, dynamic, with_lengths):
    """Forward and backward, compiled and not, at each (T, B); the graphs compiled until then."""
    torch.compiler.reset()
    backend = CountingBackend()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    counts = []
    for seq_len, batch_size in sizes:
        input = torch.randn(seq_len, batch_size, 3, requires_grad=True)
        options = {}
        if with_lengths:
            options["lengths"] = torch.randint(0, seq_len + 1, (batch_size,))
        results = []
        for function in (compiled, model):
            outputs = call_any(function, input, **options)
            loss = sum(o.square().sum() for o in outputs)
            grads = torch.autograd.grad(loss, [input, *model.parameters()])
            results.append([*outputs, *grads])
        assert all(map(torch.equal, *results))
        counts.append((backend.forward, backend.backward))
    return counts


def call_any(function, input, **options):
    output, final = function(input, **options)
    return [output, *(final if isinstance(final, tuple) else (final,))]


@pytest.mark.parametrize(
    ("cell", "with_lengths"),
    [
        *(pytest.param("tanh", True, marks=pytest.mark.long), ("gru", False)),
        *(("lstm", True), pytest.param("lstm", False, marks=pytest.mark.long)),
        ("lstm_proj", True),
    ],
)
def test_dynamic_compiles_once(cell, with_lengths):
    """dynamic=True: one forward and one backward for all T and B from 2 on; 1 is apart."""
    model = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True)
    sizes = [(5, 2), (7, 3), (2, 9), (30, 4), (2, 2), (1, 1)]
    counts = train_at(sizes, model, True, with_lengths)
    assert counts[:5] == [(1, 1)] * 5 and counts[5] == (2, 2)


@pytest.mark.long
@pytest.mark.parametrize("with_lengths", [False, True])
def test_automatic_dynamic_compiles_once_more_for_each_dimension(with_lengths):
    model = birnn_cuda.LSTM(3, 4, num_layers=2, bidirectional=True)
    sizes = [(5, 3), (7, 3), (7, 4), (9, 2), (30, 11), (2, 2)]
    counts = train_at(sizes, model, None, with_lengths)
    assert counts == [(1, 1), (2, 2), (3, 3), (3, 3), (3, 3), (3, 3)]


def test_compile_packed():
    model = birnn_cuda.LSTM(3, 4, num_layers=2, bidirectional=True)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    packed = pack_padded_sequence(torch.randn(5, 3, 3), [3, 5, 1], enforce_sorted=False)
    results = []
    for function in (compiled, model):
        output, (h_n, _) = function(packed)
        loss = output.data.square().sum() + h_n.sum()
        results.append([output.data, h_n, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(map(torch.equal, *results))


def test_inductor():
    """With code of its own around the op, in both passes, at sizes that share the compilation."""
    model = birnn_cuda.BiRNN(3, 4, 2, cell="lstm", num_layers=2)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for seq_len, batch_size in ((5, 3), (9, 4)):
        input = torch.randn(seq_len, batch_size, 3, requires_grad=True)
        lengths = torch.randint(0, seq_len + 1, (batch_size,))
        results = []
        for function in (compiled, model):
            output = function(2 * input, lengths=lengths)
            operands = [input, *model.parameters()]
            grads = torch.autograd.grad(output.sin().sum(), operands)
            results.append([output, *grads])
        assert_close(*results, 1e-6)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["gru", "lstm_proj"])
def test_forward_mode_compiled(cell):
    """Tangents go through compiled code, which is compiled apart from that without a level."""
    model = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, dtype=torch.float64)
    model.requires_grad_(False)
    graphs = 0

    def backend(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    input, tangent = (torch.randn(4, 2, 3, dtype=torch.float64) for _ in "ab")
    _, expected = torch.func.jvp(lambda x: model(x)[0], (input,), (tangent,))
    for _ in range(2):
        assert torch.equal(compiled(input)[0], model(input)[0])
        with forward_ad.dual_level():
            output = compiled(forward_ad.make_dual(input, tangent))[0]
            assert_close([forward_ad.unpack_dual(output).tangent], [expected], 1e-12)
    assert graphs == 2

    def product(x, dx):
        return torch.func.jvp(lambda x: model(x)[0], (x,), (dx,))[1]

    inside = torch.compile(product, backend="aot_eager", fullgraph=True)
    assert_close([inside(input, tangent)], [expected], 1e-12)


def test_forward_mode_of_compiled_code_that_needs_gradients_is_refused():
    """By torch: its compiled functions have no tangents."""
    model = birnn_cuda.GRU(3, 4)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        compiled(forward_ad.make_dual(torch.randn(5, 2, 3), torch.randn(5, 2, 3)))


def test_second_derivative_of_compiled_code_is_refused():
    model = birnn_cuda.GRU(3, 4)
    input = torch.randn(5, 2, 3, requires_grad=True)
    for backend in ("eager", "aot_eager"):
        torch.compiler.reset()
        output, _ = torch.compile(model, backend=backend, fullgraph=True)(input)
        (d_input,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
        with pytest.raises(RuntimeError, match=r"double backward|does not require grad"):
            torch.autograd.grad(d_input.sin().sum(), input)


def test_compiled_optimizer_step():
    """A model around the layer, trained a few steps, compiled and not."""
    losses = []
    input, target = torch.randn(6, 4, 3), torch.randn(6, 4, 2)
    for compile in (False, True):
        torch.manual_seed(0)
        model = birnn_cuda.BiRNN(3, 5, 2, cell="lstm")
        torch.compiler.reset()
        forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compile else model
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(forward(input), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


# ---- torch.export


@pytest.mark.parametrize("cell", CELLS)
def test_export(cell):
    model = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True).eval()
    sizes = {0: torch.export.Dim("T", min=1), 1: torch.export.Dim("B", min=1)}
    exported = torch.export.export(
        model,
        (torch.randn(5, 2, 3),),
        {"lengths": torch.tensor([5, 2])},
        dynamic_shapes={"input": sizes, "lengths": {0: sizes[1]}},
    )
    for seq_len, batch_size in ((5, 2), (9, 4), (1, 3), (3, 1)):
        input = torch.randn(seq_len, batch_size, 3)
        lengths = torch.randint(0, seq_len + 1, (batch_size,))
        output, final = exported.module()(input, lengths=lengths)
        actual = [output, *(final if isinstance(final, tuple) else (final,))]
        expected = call(model, input, lengths=lengths)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.long
def test_aot_inductor_package(tmp_path):
    """A library made without Python, run at other sizes than those it was exported at."""
    model = birnn_cuda.BiRNN(3, 4, 2, cell="gru").eval()
    sizes = {0: torch.export.Dim("T", min=1, max=1000), 1: torch.export.Dim("B", min=1, max=1000)}
    exported = torch.export.export(
        model,
        (torch.randn(5, 3, 3),),
        {"lengths": torch.tensor([5, 2, 0])},
        dynamic_shapes={"input": sizes, "lengths": {0: sizes[1]}},
    )
    path = torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(tmp_path / "model.pt2"),
        # Only what the library's own glue costs to build.
        inductor_configs={
            "aot_inductor.compile_wrapper_opt_level": "O0",
            "aot_inductor.precompile_headers": False,
        },
    )
    package = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        for seq_len, batch_size in ((5, 3), (9, 4), (2, 7), (1, 1)):
            input = torch.randn(seq_len, batch_size, 3)
            lengths = torch.randint(0, seq_len + 1, (batch_size,))
            expected = model(input, lengths=lengths)
            assert_close([package(input, lengths=lengths)], [expected], 1e-6)
