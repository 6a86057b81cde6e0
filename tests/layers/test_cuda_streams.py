"""The layers on a GPU: the same bits again, streams, threads, memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    make_layer,
    make_pair,
)
from cuda_support import (
    NEEDS_GPU,
    assert_equal,
    forms_of,
    training_step,
)

import birnn_cuda

pytestmark = NEEDS_GPU


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
