"""What a layer returned may be changed in place before backward, as torch.nn allows on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CELLS, assert_close, make_pair
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda

CHANGES = {
    "add": lambda y: y.add_(torch.ones_like(y)),
    "mask": lambda y: y.mul_(torch.arange(y.numel()).reshape(y.shape) % 3 != 0),
    "zeros by index": lambda y: y.index_put_((y > 0.1,), y.new_zeros(())),
    "relu": lambda y: y.relu_(),
    "dropout": lambda y: nn.functional.dropout(y, 0.5, inplace=True),
    "part": lambda y: y[..., :2].mul_(3.0),
    "detached": lambda y: y.detach().mul_(3.0),
}


def gradients_after(layer, change, input, form="padded", **options):
    """Gradients of a function of a changed output and the states, and the changed output."""
    input = input.detach().clone().requires_grad_()
    torch.manual_seed(0)  # of dropout
    if form == "packed":
        packed = pack_padded_sequence(input, [5, 2, 3], enforce_sorted=False)
        output, final = layer(packed)
        output = output.data
    else:
        output, final = layer(input, **options)[:2]
    change(output)
    final = final if isinstance(final, tuple) else (final,)
    loss = output.square().sum() + sum(state.sin().sum() for state in final)
    return [output, *torch.autograd.grad(loss, [input, *layer.parameters()])]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cell", CELLS)
def test_output_changed(cell, change):
    oracle, layer = make_pair(cell, 3, 4, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64)
    if change == "detached":  # torch.nn's keep nothing of it: as if it had not been differentiated
        expected = gradients_after(layer, lambda y: None, input)
        actual = gradients_after(layer, CHANGES[change], input)
        cotangent = 2 * actual[0]
        leaf = input.clone().requires_grad_()
        output, final = layer(leaf)
        final = final if isinstance(final, tuple) else (final,)
        expected = torch.autograd.grad(
            [output, *final],
            [leaf, *layer.parameters()],
            [cotangent, *(state.cos().detach() for state in final)],
        )
        assert_close(actual[1:], expected, 1e-12)
        return
    expected = gradients_after(oracle, CHANGES[change], input)
    assert_close(gradients_after(layer, CHANGES[change], input), expected, 1e-12)


@pytest.mark.parametrize("form", ["packed", "batch_first", "lengths", "two layers", "unbatched"])
@pytest.mark.parametrize("cell", CELLS)
def test_forms(cell, form):
    options = {"batch_first": form == "batch_first", "num_layers": 1 + (form == "two layers")}
    layer = make_pair(cell, 3, 4, bidirectional=True, dtype=torch.float64, **options)[1]
    input = torch.randn(*(5, 3, 3)[form == "unbatched" :], dtype=torch.float64)
    arguments = {"lengths": torch.tensor([5, 0, 3])} if form == "lengths" else {}

    def copied(y):  # what cannot disturb backward
        return y

    def changed_copy(layer, input):
        def change(y):
            y.mul_(2.0).add_(1.0)

        return gradients_after(layer, change, input, form, **arguments)

    class OutOfPlace(nn.Module):
        def forward(self, input, **options):
            output, *rest = layer(input, **options)
            if isinstance(output, torch.Tensor):
                return output.clone(), *rest
            return output._replace(data=output.data.clone()), *rest

    outside = OutOfPlace()
    outside.parameters = layer.parameters
    expected = changed_copy(outside, input)
    assert_close(changed_copy(layer, input), expected, 1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_cell_states_and_output_changed(recompute):
    layer = birnn_cuda.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    layer.recompute_activations = recompute
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for copied in (True, False):
        output, _, cells = layer(input, return_cell_states=True)
        if copied:
            output, cells = output.clone(), cells.clone()
        output.mul_(2.0)
        cells.mul_(3.0).sigmoid_()
        loss = (output + cells).square().sum()
        results.append(torch.autograd.grad(loss, [input, *layer.parameters()]))
    assert_close(results[1], results[0], 1e-12)


def test_twice_and_second_derivatives():
    """The change is found by each backward of a graph that is kept, and by one of gradients."""
    layer = birnn_cuda.GRU(3, 4, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for copied in (True, False):
        output = layer(input)[0]
        output = output.clone() if copied else output
        output.mul_(2.0)
        loss = output.square().sum()
        first, second = (torch.autograd.grad(loss, input, retain_graph=True)[0] for _ in range(2))
        (of_first,) = torch.autograd.grad(loss, input, create_graph=True)
        results.append([first, second, *torch.autograd.grad(of_first.square().sum(), [input])])
    assert torch.equal(results[1][0], results[1][1])
    assert_close(results[1], results[0], 1e-12)


def test_saved_tensors_on_the_cpu_and_checkpoints():
    layer = birnn_cuda.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def changed(input):
        return layer(input)[0].mul_(2.0)

    expected = torch.autograd.grad((layer(input)[0] * 2.0).square().sum(), input)
    with torch.autograd.graph.save_on_cpu():
        loss = changed(input).square().sum()
    assert_close(torch.autograd.grad(loss, input), expected, 1e-12)
    output = torch.utils.checkpoint.checkpoint(changed, input, use_reentrant=False)
    assert_close(torch.autograd.grad(output.square().sum(), input), expected, 1e-12)


def test_a_changed_weight_or_input_is_still_an_error():
    layer = birnn_cuda.LSTM(3, 4)
    input = torch.randn(5, 2, 3, requires_grad=True)
    for tensor in (layer.weight_hh_l0, input):
        output = layer(input)[0]
        output.mul_(2.0)
        with torch.no_grad():
            tensor.add_(1.0)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                output.sum().backward(retain_graph=True)


def test_forward_runs_again_only_after_a_change():
    layer = birnn_cuda.LSTM(3, 4)
    for change, calls in ((False, 0), (True, 1)):
        output = layer(torch.randn(5, 2, 3))[0]
        if change:
            output.mul_(2.0)
        with torch.profiler.profile() as profile:
            output.sum().backward()
        names = [event.name for event in profile.events()]
        assert names.count("birnn_cuda::forward") == calls
        assert names.count("birnn_cuda::backward") == 1


def test_no_cycle_keeps_an_output_alive():
    layer = birnn_cuda.LSTM(3, 4)
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        input = torch.randn(5, 2, 3, requires_grad=True)  # which the graph holds
        output = layer(input)[0]
        gone = weakref.ref(input)
        del input
        assert gone() is not None
        del output
        assert gone() is None
    finally:
        gc.enable()


def test_compiled():
    layer = birnn_cuda.LSTM(3, 4, bidirectional=True)
    input = torch.randn(5, 2, 3, requires_grad=True)

    def changed(input):
        return layer(input)[0].mul_(2.0).relu_()

    expected = torch.autograd.grad(changed(input).square().sum(), input)
    torch.compiler.reset()
    compiled = torch.compile(changed, backend="aot_eager", fullgraph=True)
    assert_close(torch.autograd.grad(compiled(input).square().sum(), input), expected, 1e-6)


def test_compiled_autograd_says_so():
    from torch._dynamo import compiled_autograd

    layer = birnn_cuda.LSTM(3, 4)
    torch.compiler.reset()
    for change in (False, True, False):
        output = layer(torch.randn(5, 2, 3))[0]
        expected = torch.autograd.grad(output.sum(), layer.weight_hh_l0, retain_graph=True)[0]
        layer.zero_grad()
        if change:
            output.mul_(2.0)
        with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="aot_eager")):
            if change:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    output.sum().backward()
            else:
                output.sum().backward()
                assert_close([layer.weight_hh_l0.grad], [expected], 1e-6)


def test_copies_of_the_layer_are_not_disturbed():
    layer = birnn_cuda.GRU(3, 4)
    twin = copy.deepcopy(layer)
    input = torch.randn(5, 2, 3)
    output = layer(input)[0]
    output.zero_()
    assert twin(input)[0].abs().sum() > 0
