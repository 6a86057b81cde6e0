"""First and second derivatives, and what of them was asked for."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer, make_pair, make_states
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import birnn_cuda

FORMS = ("full", "lengths", "packed")


def make_function(cell, form, num_layers=2):
    """A small fp64 layer as a function of input, states and weights alone."""
    bias = form != "lengths"
    layer = make_layer(
        birnn_cuda,
        cell,
        2,
        3,
        num_layers=num_layers,
        bidirectional=True,
        bias=bias,
        dtype=torch.float64,
    )
    names = [name for name, _ in layer.named_parameters()]
    states = make_states(layer, 2, torch.float64)
    batch_sizes = torch.tensor([2, 2, 1])
    shape = (5, 2) if form == "packed" else (3, 2, 2)
    operands = [torch.randn(shape, dtype=torch.float64), *states, *layer.parameters()]
    operands = [x.detach().clone().requires_grad_() for x in operands]

    def function(input, *tensors):
        hx, weights = tensors[: len(states)], tensors[len(states) :]
        options = {"lengths": torch.tensor([1, 3])} if form == "lengths" else {}
        if form == "packed":
            input = PackedSequence(input, batch_sizes)
        hx = tuple(hx) if layer.mode == "LSTM" else hx[0]
        output, final = functional_call(
            layer, dict(zip(names, weights, strict=True)), (input, hx), options
        )
        if form == "packed":
            output = output.data
        return output, *(final if isinstance(final, tuple) else (final,))

    return function, operands


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell, form):
    function, operands = make_function(cell, form)
    assert gradcheck(function, operands, check_batched_grad=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradgradcheck(cell, form):
    function, operands = make_function(cell, form, num_layers=1)
    assert gradgradcheck(function, operands, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_forward_mode(cell):
    function, operands = make_function(cell, "lengths", num_layers=1)
    assert gradcheck(function, operands, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("cell", CELLS)
def test_higher_derivatives_beside_torchs(cell):
    oracle, ours = make_pair(cell, 3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    input = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for layer in (ours, oracle):
        operands = [input, *layer.parameters()]
        derivatives = []
        loss = layer(input)[0].square().sum()
        for _ in range(3):
            grads = torch.autograd.grad(loss, operands, create_graph=True)
            derivatives += grads
            loss = sum(g.square().sum() for g in grads)
        results.append(derivatives)
    assert_close(*results, 1e-10)


def test_second_derivative_of_the_states():
    """Cotangents of h_n and c_n, without one of the output."""
    oracle, ours = make_pair("lstm", 3, 4, bidirectional=True, dtype=torch.float64)
    states = make_states(ours, 2, torch.float64)
    results = []
    for layer in (ours, oracle):
        leaves = [s.clone().requires_grad_() for s in states]
        outputs = call(layer, torch.ones(3, 2, 3, dtype=torch.float64), leaves)
        loss = outputs[2].square().sum() + outputs[1].sum()
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    assert_close(*results, 1e-12)


def test_second_derivative_through_a_state_made_from_the_input():
    """Operands that depend on each other: each partial derivative counts once."""
    oracle, ours = make_pair("gru", 4, 4, dtype=torch.float64)
    input = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    results = []
    for layer in (ours, oracle):
        hx = (2 * input).mean(0, keepdim=True)
        (grad,) = torch.autograd.grad(layer(input, hx)[0].square().sum(), input, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), input))
    assert_close(*results, 1e-12)


def test_gradient_penalty():
    oracle, ours = make_pair("lstm", 3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    input = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    for layer in (ours, oracle):
        loss = layer(input)[0].sum()
        (d_input,) = torch.autograd.grad(loss, input, create_graph=True)
        (loss + d_input.norm()).backward(inputs=list(layer.parameters()))
    assert_close([p.grad for p in ours.parameters()], [p.grad for p in oracle.parameters()], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_retain_graph(cell):
    ours = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    input = torch.randn(5, 2, 3, requires_grad=True)
    loss = ours(input)[0].square().sum()
    operands = [input, *ours.parameters()]
    first = torch.autograd.grad(loss, operands, retain_graph=True)
    second = torch.autograd.grad(loss, operands)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, operands)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_in_eval_mode(cell):
    oracle, ours = make_pair(cell, 3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    results = [
        torch.autograd.grad(layer(input)[0].square().sum(), [input, *layer.parameters()])
        for layer in (ours.eval(), oracle.train())
    ]
    assert_close(*results, 1e-12)


@pytest.mark.parametrize("subset", ["input", "hx", "cx", "weight_hh", "bias_ih_l0", "reverse"])
def test_requires_grad_on_a_subset(subset):
    oracle, ours = make_pair("lstm", 3, 4, bidirectional=True, dtype=torch.float64)
    operands = {"input": torch.randn(5, 2, 3, dtype=torch.float64)}
    operands |= dict(zip(("hx", "cx"), make_states(ours, 2, torch.float64), strict=True))
    results = []
    for layer in (ours, oracle):
        leaves = {name: x.clone() for name, x in operands.items()}
        everything = leaves | dict(layer.named_parameters())
        for name, tensor in everything.items():
            tensor.requires_grad_(subset in name)
        chosen = {name: x for name, x in everything.items() if x.requires_grad}
        assert 0 < len(chosen) < len(everything)
        outputs = call(layer, leaves["input"], [leaves["hx"], leaves["cx"]])
        sum(o.square().sum() for o in outputs).backward()
        assert all(x.grad is None for name, x in everything.items() if name not in chosen)
        results.append([x.grad for x in chosen.values()])
    assert_close(*results, 1e-12)


class Calls(TorchDispatchMode):
    """The arguments of every call of one op."""

    def __init__(self, op):
        super().__init__()
        self.op, self.arguments = op, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self.op:
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_cell_states", [False, True])  # in C++, in Python
def test_only_what_is_asked_for_is_computed(with_cell_states):
    ours = birnn_cuda.LSTM(3, 4, bias=False)
    ours.weight_hh_l0.requires_grad_(False)
    states = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, requires_grad=True)
    output, *_ = ours(torch.randn(5, 2, 3), states, return_cell_states=with_cell_states)
    with Calls(torch.ops.birnn_cuda.backward.default) as calls:
        output.sum().backward()
    (arguments,) = calls.arguments
    assert list(arguments[14]) == [False, False, True, True, False]


def test_dispatch_modes_see_both_ops():
    ours = birnn_cuda.GRU(3, 4)
    with Calls(torch.ops.birnn_cuda.forward.default) as calls:
        ours(torch.randn(5, 2, 3))
    assert len(calls.arguments) == 1
    with FakeTensorMode():
        ours = birnn_cuda.GRU(3, 4)
        input = torch.randn(5, 2, 3, requires_grad=True)
        ours(input)[0].sum().backward()
        assert input.grad.shape == input.shape


# Sizes are checked once, as torch's layers check them.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_layer_keeps_its_gradients():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True)
    traced = torch.jit.trace(ours, (torch.randn(5, 2, 3),), check_trace=False)
    input = torch.randn(7, 2, 3, requires_grad=True)
    leaves = [input, *ours.parameters()]
    results = [
        torch.autograd.grad(layer(input)[0].square().sum(), leaves) for layer in (traced, ours)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_anomaly_mode_names_the_layer():
    ours = birnn_cuda.GRU(3, 4)
    input = torch.randn(5, 2, 3, requires_grad=True)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="RecurrentLayer"):  # noqa: SIM117
        with torch.autograd.detect_anomaly():
            ours(input)[0].backward(torch.full((5, 2, 4), torch.nan))


def test_gradient_of_one_output_only():
    oracle, ours = make_pair("lstm", 3, 4, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    for index in range(3):
        results = [
            torch.autograd.grad(call(layer, input)[index].square().sum(), input)
            for layer in (ours, oracle)
        ]
        assert_close(*results, 1e-12)


def test_change_in_place_is_noticed():
    ours = birnn_cuda.GRU(3, 4)
    output, _ = ours(torch.randn(5, 2, 3))
    with torch.no_grad():
        ours.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_checkpoint():
    ours = birnn_cuda.LSTM(3, 4, num_layers=2, bidirectional=True)
    input = torch.randn(5, 2, 3, requires_grad=True)
    operands = [input, *ours.parameters()]
    expected = torch.autograd.grad(ours(input)[0].sum(), operands)
    output = torch.utils.checkpoint.checkpoint(lambda x: ours(x)[0], input, use_reentrant=False)
    actual = torch.autograd.grad(output.sum(), operands)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_second_derivative_in_low_precision():
    options = {"bidirectional": True, "dtype": torch.bfloat16}
    oracle, ours = make_pair("gru", 3, 4, **options)
    theirs = nn.GRU(3, 4, **options)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(4, 2, 3).bfloat16()
    results = []
    for layer in (oracle, theirs, ours):
        leaf = input.to(layer.weight_hh_l0.dtype).requires_grad_()
        (grad,) = torch.autograd.grad(layer(leaf)[0].square().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), leaf)[0].double())
    exact, peer, own = results
    assert (own - exact).norm() <= 2 * (peer - exact).norm() + 2**-8 * exact.norm()
