"""RNNCell, GRUCell and LSTMCell beside torch.nn's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import assert_close
from torch import nn

import birnn_cuda

KINDS = ("RNNCell", "GRUCell", "LSTMCell")


def make_pair(kind, input_size=3, hidden_size=5, **options):
    """torch's cell in float64, and ours with the same weights."""
    exact = getattr(nn, kind)(input_size, hidden_size, **options).double()
    ours = getattr(birnn_cuda, kind)(input_size, hidden_size, **options)
    ours.load_state_dict(exact.state_dict())
    exact.load_state_dict(ours.state_dict())  # as rounded to float32
    return exact, ours


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def make_hx(kind, *shape):
    states = tuple(torch.randn(shape) for _ in range(2 if kind == "LSTMCell" else 1))
    return states if kind == "LSTMCell" else states[0]


def to_double(hx):
    return tuple(h.double() for h in hx) if isinstance(hx, tuple) else hx.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (1,), ()], ids=str)
@pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
@pytest.mark.parametrize("kind", KINDS)
def test_values(kind, given, shape, bias):
    exact, ours = make_pair(kind, bias=bias)
    input = torch.randn(*shape, 3)
    hx = make_hx(kind, *shape, 5) if given else None
    actual = as_tuple(ours(input, hx))
    expected = as_tuple(exact(input.double(), None if hx is None else to_double(hx)))
    assert [a.shape for a in actual] == [e.shape for e in expected]
    assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nonlinearity(nonlinearity):
    exact, ours = make_pair("RNNCell", nonlinearity=nonlinearity)
    input, hx = torch.randn(4, 3), torch.randn(4, 5)
    assert_close([ours(input, hx)], [exact(input.double(), hx.double())], 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_a_loop(kind):
    """A decoder: each step reads what the last one gave."""
    exact, ours = make_pair(kind, 5, 5)
    start = torch.randn(2, 5)

    def loss(cell, x):
        hx, total = None, 0
        for _ in range(4):
            hx = cell(x, hx)
            x = as_tuple(hx)[0]
            total = total + x.square().sum()
        return total

    first = start.clone().requires_grad_()
    first_exact = start.double().requires_grad_()
    actual = torch.autograd.grad(loss(ours, first), [first, *ours.parameters()])
    expected = torch.autograd.grad(loss(exact, first_exact), [first_exact, *exact.parameters()])
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_is_torchs(kind):
    """Names, initial weights, isinstance, repr, copies."""
    torch.manual_seed(3)
    theirs = getattr(nn, kind)(3, 5)
    torch.manual_seed(3)
    ours = getattr(birnn_cuda, kind)(3, 5)
    assert isinstance(ours, getattr(nn, kind)) and repr(ours) == repr(theirs)
    for (name, a), (other, b) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(a, b)
    input = torch.randn(2, 3)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert_close(as_tuple(twin(input)), as_tuple(ours(input)), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_export_trace_and_fx(kind):
    _, ours = make_pair(kind)
    input, hx = torch.randn(2, 3), make_hx(kind, 2, 5)
    expected = as_tuple(ours(input, hx))
    assert_close(as_tuple(torch.compile(ours, fullgraph=True)(input, hx)), expected, 1e-6)
    exported = torch.export.export(ours, (input, hx)).module()
    assert_close(as_tuple(exported(input, hx)), expected, 1e-6)
    traced = torch.jit.trace(ours, (input, hx))
    assert_close(as_tuple(traced(input, hx)), expected, 1e-6)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = ours

        def forward(self, x, hx):
            return self.cell(x, hx)

    graph = torch.fx.symbolic_trace(Model())
    assert "call_module" in {node.op for node in graph.graph.nodes}
    assert_close(as_tuple(graph(input, hx)), expected, 0)
    with pytest.raises(RuntimeError, match=f"does not support birnn_cuda.{kind}"):
        torch.jit.script(ours)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    _, ours = make_pair(kind)
    with torch.autocast("cpu", torch.bfloat16):
        states = as_tuple(ours(torch.randn(2, 3)))
    assert all(s.dtype == torch.bfloat16 for s in states)


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind):
    _, ours = make_pair(kind)
    with pytest.raises(ValueError, match=f"{kind}: Expected input to be 1D or 2D, got 3D"):
        ours(torch.randn(1, 2, 3))
    with pytest.raises(ValueError, match=r"1D or 2D, got 3D"):
        ours(torch.randn(2, 3), make_hx(kind, 1, 2, 5))
    with pytest.raises(RuntimeError, match="size"):
        ours(torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="size"):
        ours(torch.randn(2, 3), make_hx(kind, 2, 6))
    with pytest.raises(RuntimeError, match="not the same dtype"):
        ours(torch.randn(2, 3).double())
    ours.weight_hh = None
    with pytest.raises(RuntimeError, match="weight_hh must be a tensor, but it is missing"):
        ours(torch.randn(2, 3))


def test_errors_of_one_kind():
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        birnn_cuda.RNNCell(3, 5, nonlinearity="sin")(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="two states, hx and cx, got 3"):
        birnn_cuda.LSTMCell(3, 5)(torch.randn(2, 3), [torch.zeros(2, 5)] * 3)


def test_swapped_and_back():
    model = nn.ModuleDict({kind: getattr(nn, kind)(3, 5) for kind in KINDS})
    input = torch.randn(2, 3)
    expected = [as_tuple(cell(input)) for cell in model.values()]
    for swap, package in ((birnn_cuda.replace_rnns, birnn_cuda), (birnn_cuda.to_torch, nn)):
        swap(model)
        assert [type(cell) for cell in model.values()] == [getattr(package, k) for k in KINDS]
        for cell, states in zip(model.values(), expected, strict=True):
            assert_close(as_tuple(cell(input)), states, 1e-6)
