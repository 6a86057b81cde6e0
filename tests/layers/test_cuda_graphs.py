"""The layers on a GPU: captured in CUDA graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    make_layer,
)
from cuda_support import (
    NEEDS_GPU,
    assert_equal,
    forms_of,
)

import birnn_cuda

pytestmark = NEEDS_GPU


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
