"""No step, or no sequence: an empty output, and the state that went in comes out."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, call, make_layer, make_states

import birnn_cuda
from birnn_cuda import reference


@pytest.mark.parametrize("form", ["plain", "lengths", "batch_first", "unbatched"])
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_no_step(cell, with_states, form):
    layer = make_layer(
        birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True, batch_first=form == "batch_first"
    )
    batch_size = 1 if form == "unbatched" else 2
    states = [s.requires_grad_() for s in make_states(layer, batch_size, torch.float32)]
    given = [s.squeeze(1) for s in states] if form == "unbatched" else states
    shape = {"batch_first": (2, 0, 3), "unbatched": (0, 3)}.get(form, (0, 2, 3))
    input = torch.randn(shape, requires_grad=True)
    options = {"lengths": torch.tensor([0, 0])} if form == "lengths" else {}
    output, *final = call(layer, input, given if with_states else (), **options)
    assert output.shape == (*shape[:-1], 2 * (layer.proj_size or 4))
    for state, initial in zip(final, given, strict=True):
        assert torch.equal(state, initial if with_states else torch.zeros_like(initial))
    cotangents = [torch.randn_like(x) for x in (output, *final)]
    wanted = [input, *layer.parameters(), *(states if with_states else ())]
    grads = torch.autograd.grad((output, *final), wanted, cotangents, create_graph=True)
    weights = list(layer.parameters())
    assert grads[0].shape == input.shape
    for grad, weight in zip(grads[1 : 1 + len(weights)], weights, strict=True):
        assert torch.equal(grad, torch.zeros_like(weight))
    if with_states:
        for grad, cotangent in zip(grads[-len(states) :], cotangents[1:], strict=True):
            assert torch.equal(grad, cotangent.reshape(grad.shape))


def test_cell_states_of_no_step():
    layer = birnn_cuda.LSTM(3, 4, bidirectional=True)
    for lengths in (None, torch.tensor([0, 0])):
        output, _, cells = layer(torch.randn(0, 2, 3), lengths=lengths, return_cell_states=True)
        assert output.shape == cells.shape == (0, 2, 8)
        cells.sum().backward()


@pytest.mark.parametrize("cell", CELLS)
def test_on_the_meta_device(cell):
    layer = make_layer(birnn_cuda, cell, 3, 4, device="meta")
    output, *final = call(layer, torch.empty(0, 2, 3, device="meta"))
    assert output.is_meta and output.shape[:2] == (0, 2)
    assert all(state.is_meta and state.shape[:2] == (1, 2) for state in final)


def test_lengths_are_checked_all_the_same():
    layer = birnn_cuda.GRU(3, 4)
    with pytest.raises(
        ValueError, match=r"lengths\[1\] is 1 but must be between 0 and the 0 steps"
    ):
        layer(torch.randn(0, 2, 3), lengths=torch.tensor([0, 1]))


@pytest.mark.parametrize("cell", CELLS)
def test_reference_transforms_and_compilers(cell):
    layer = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True)
    input, states = torch.randn(0, 2, 3), make_states(layer, 2, torch.float32)
    hx = tuple(states) if layer.mode == "LSTM" else states[0]
    weights, kind = layer._flat_weights, layer.nonlinearity if "RNN" in layer.mode else layer.mode
    outputs = reference.forward(
        input, *states, *[None] * (2 - len(states)), weights, None, None, kind.lower(), 2
    )
    assert outputs[0].shape[:2] == (0, 2) and torch.equal(outputs[1], states[0])
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for seq_len in (3, 0):
        given = torch.randn(seq_len, 2, 3)
        expected, actual = (
            torch.utils._pytree.tree_leaves(f(given, hx)) for f in (layer, compiled)
        )
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    mapped = torch.func.vmap(lambda x: layer(x)[0])(torch.randn(5, 0, 2, 3))
    assert mapped.shape[:3] == (5, 0, 2)
    _, tangent = torch.func.jvp(lambda h: layer(input, h)[1], (hx,), (hx,))
    leaves = torch.utils._pytree.tree_leaves(tangent)
    assert all(torch.equal(a, e) for a, e in zip(leaves, states, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_nested(cell):
    layer = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True)
    for sizes in ([0, 0], [2, 0, 3]):
        nested = torch.nested.nested_tensor([torch.randn(n, 3) for n in sizes], layout=torch.jagged)
        output, *final = call(layer, nested)
        assert [len(part) for part in output.unbind()] == sizes
        assert all(state.size(1) == len(sizes) for state in final)
        sum(state.sum() for state in final).backward()
    none = torch.nested.nested_tensor_from_jagged(
        torch.randn(0, 3), torch.zeros(1, dtype=torch.int64)
    )
    output, *final = call(layer, none)
    assert output.size(0) == 0 and output.values().shape == (0, 2 * (layer.proj_size or 4))
    assert all(state.size(1) == 0 for state in final)
