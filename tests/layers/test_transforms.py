"""opcheck and torch.func: what torch's own layers mostly cannot do."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda
from birnn_cuda import ops

OP_CELLS = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}
FORMS = ("full", "states", "lengths", "packed")


def op_arguments(cell, form, dtype=torch.float32, proj_size=0, bias=True):
    """Arguments of the op `forward`, up to num_directions: T=5, B=3, I=4, H=6."""
    rows, state_size = 6 * OP_CELLS[cell], proj_size or 6
    shapes = [(rows, 4), (rows, state_size)]
    if bias:
        shapes += [(rows,), (rows,)]
    if proj_size:
        shapes.append((proj_size, 6))
    weights = [torch.randn(shape, dtype=dtype) for _ in range(2) for shape in shapes]
    input = torch.randn((9, 4) if form == "packed" else (5, 3, 4), dtype=dtype)
    hx = torch.randn(2, 3, state_size, dtype=dtype) if form != "full" else None
    cx = torch.randn(2, 3, 6, dtype=dtype) if form != "full" and cell == "lstm" else None
    lengths = torch.tensor([5, 1, 3]) if form == "lengths" else None
    batch_sizes = torch.tensor([3, 2, 2, 1, 1]) if form == "packed" else None
    return input, hx, cx, weights, lengths, batch_sizes, cell, 2


OP_CASES = [(cell, form, {}) for cell in OP_CELLS for form in FORMS]
OP_CASES += [("lstm", form, {"proj_size": 2, "bias": False}) for form in FORMS[1:]]
OP_CASES += [("gru", "full", {"dtype": dtype}) for dtype in (torch.float16, torch.bfloat16)]
OP_CASES += [("tanh", "lengths", {"dtype": torch.float64, "bias": False})]


# The ops have no autograd formula of their own (functional.py holds it): opcheck's test of that
# applies to inputs that require gradients only.
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck_forward(case, training):
    cell, form, options = case
    arguments = (*op_arguments(cell, form, **options), training, "ieee")
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not (training and form == "lengths"):
        # Otherwise rows of the reserve that no sequence fills differ from run to run.
        checks.append("test_aot_dispatch_dynamic")
    opcheck(torch.ops.birnn_cuda.forward, arguments, test_utils=checks)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck_backward(case, everything):
    cell, form, options = case
    *tensors, cell, num_directions = op_arguments(cell, form, **options)
    output, h_n, c_n, reserve = torch.ops.birnn_cuda.forward(
        *tensors, cell, num_directions, True, "ieee"
    )
    d_c_n = torch.randn_like(c_n) if cell == "lstm" else None
    needs_grad = [everything or index % 2 == 0 for index in range(3 + len(tensors[3]))]
    cotangents = (torch.randn_like(output), torch.randn_like(h_n), d_c_n)
    rest = (output, reserve, cell, num_directions, "ieee", needs_grad)
    if everything and cell == "lstm":
        cell_states = ops.cell_states(tensors[0], c_n, reserve, *tensors[4:])
        rest = (*rest, torch.randn_like(cell_states))
    opcheck(torch.ops.birnn_cuda.backward, (*cotangents, *tensors, *rest))


def test_fake_kernels_agree_on_strides_of_strided_input():
    arguments = list(op_arguments("gru", "full"))
    arguments[0] = torch.randn(3, 4, 5).permute(2, 0, 1)
    opcheck(torch.ops.birnn_cuda.forward, (*arguments, True, "ieee"))


# ---- torch.func


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_vmap_of_the_input(cell, in_dim):
    model = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    inputs = torch.randn(6, 5, 2, 3)
    actual = vmap(lambda x: tuple(call(model, x)), in_dims=in_dim)(inputs.movedim(0, in_dim))
    expected = [torch.stack(r) for r in zip(*(call(model, x) for x in inputs), strict=True)]
    assert_close(actual, expected, 1e-6)


def test_vmap_of_states_and_lengths():
    model = birnn_cuda.LSTM(3, 4, bidirectional=True)
    input = torch.randn(5, 2, 3)
    hx, cx = torch.randn(6, 2, 2, 4), torch.randn(6, 2, 2, 4)
    lengths = torch.randint(0, 6, (6, 2))

    def function(hx, cx, lengths):
        return tuple(call(model, input, (hx, cx), lengths=lengths))

    for in_dims in ((0, 0, 0), (0, None, None), (None, None, 0)):
        arguments = [x if d == 0 else x[0] for x, d in zip((hx, cx, lengths), in_dims, strict=True)]
        actual = vmap(function, in_dims=in_dims)(*arguments)
        each = [
            function(*(x[i] if d == 0 else x for x, d in zip(arguments, in_dims, strict=True)))
            for i in range(6)
        ]
        assert_close(actual, [torch.stack(r) for r in zip(*each, strict=True)], 1e-6)


def test_vmap_of_vmap():
    model = birnn_cuda.GRU(3, 4, bidirectional=True)
    inputs = torch.randn(2, 3, 5, 2, 3)
    actual = vmap(vmap(lambda x: model(x)[0]))(inputs)
    expected = torch.stack([torch.stack([model(x)[0] for x in row]) for row in inputs])
    assert_close([actual], [expected], 1e-6)


def test_vmap_without_gradients():
    model = birnn_cuda.GRU(3, 4, bidirectional=True)
    inputs = torch.randn(6, 5, 2, 3)
    with torch.no_grad():
        actual = vmap(lambda x: model(x)[0])(inputs)
        assert_close([actual], [torch.stack([model(x)[0] for x in inputs])], 1e-6)


def test_vmap_of_packed_input():
    model = birnn_cuda.GRU(3, 4, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(5, 3, 3), [5, 3, 1])
    data = torch.randn(6, 9, 3)

    def function(data):
        output, h_n = model(packed._replace(data=data))
        return output.data, h_n

    expected = [torch.stack(r) for r in zip(*(function(d) for d in data), strict=True)]
    assert_close(vmap(function)(data), expected, 1e-6)


def test_model_ensemble():
    """Weights of several models mapped over one input, and their gradients."""
    models = [birnn_cuda.LSTM(3, 4, bidirectional=True) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(models)
    input = torch.randn(5, 2, 3)

    def loss(weights):
        return functional_call(models[0], weights, (input,))[0].square().sum()

    actual = vmap(grad(loss))(weights)
    for index, model in enumerate(models):
        expected = torch.autograd.grad(model(input)[0].square().sum(), list(model.parameters()))
        assert_close([g[index] for g in actual.values()], expected, 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_per_sample_gradients(cell):
    model = make_layer(
        birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True, dtype=torch.float64
    )
    weights = {name: w.detach() for name, w in model.named_parameters()}
    samples, lengths = torch.randn(4, 5, 3, dtype=torch.float64), torch.tensor([5, 2, 3, 1])

    def loss(weights, sample, length):
        output, _ = functional_call(model, weights, (sample,), {"lengths": length})
        return output.square().sum()

    actual = vmap(grad(loss), in_dims=(None, 0, 0))(weights, samples, lengths)
    for index in range(4):
        output, _ = model(samples[index], lengths=lengths[index])
        expected = torch.autograd.grad(output.square().sum(), list(model.parameters()))
        assert_close([g[index] for g in actual.values()], expected, 1e-12)


def test_gradient_through_vmap_of_what_requires_it_below():
    """The level that is differentiated lies under the one that is mapped."""
    model = birnn_cuda.GRU(3, 4, bidirectional=True, dtype=torch.float64).requires_grad_(False)
    inputs = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    actual = grad(lambda xs: vmap(lambda x: model(x)[0].square().sum())(xs).sum())(inputs)
    leaf = inputs.requires_grad_()
    sum(model(x)[0].square().sum() for x in leaf).backward()
    assert_close([actual], [leaf.grad], 1e-12)
    (plain,) = torch.autograd.grad(vmap(lambda x: model(x)[0].square().sum())(leaf).sum(), leaf)
    assert_close([plain], [leaf.grad], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_jacobians(cell):
    model = make_layer(birnn_cuda, cell, 2, 3, bidirectional=True, dtype=torch.float64)
    input = torch.randn(3, 2, 2, dtype=torch.float64)

    def function(x):
        return model(x, lengths=torch.tensor([3, 1]))[0]

    reverse = jacrev(function)(input)
    expected = torch.autograd.functional.jacobian(function, input)
    assert_close([reverse, jacfwd(function)(input)], [expected, expected], 1e-12)
    vectorized = torch.autograd.functional.jacobian(function, input, vectorize=True)
    assert_close([vectorized], [expected], 1e-12)
    tangent = torch.randn_like(input)
    _, product = jvp(function, (input,), (tangent,))
    by_jacobian = torch.einsum("xyztbi,tbi->xyz", expected, tangent)
    assert_close([product], [by_jacobian], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_hessians(cell):
    model = make_layer(birnn_cuda, cell, 2, 3, bidirectional=True, dtype=torch.float64)
    input = torch.randn(3, 2, 2, dtype=torch.float64)

    def function(x):
        return model(x)[0].square().sum()

    expected = torch.autograd.functional.hessian(function, input)
    assert_close([hessian(function)(input)], [expected], 1e-12)
    assert_close([jacrev(jacrev(function))(input)], [expected], 1e-12)
    assert_close([jacrev(jacfwd(function))(input)], [expected], 1e-12)
