"""Every kernel by name on a GPU: values and gradients, repeatability, streams, graphs, parts.

Sizes are those that each kernel is for, and ragged ones. The oracle is the reference in fp64 on the
CPU; what may differ from it in tf32 and 16 bits: rounding.py.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import rounding
import rounding_model
import torch
from conftest import TOLERANCE, call, gradients, make_layer, relative_error
from cuda_support import NEEDS_GPU, ROUNDED, assert_equal, on_device, training_step, use_precision
from memory_count import Count

import birnn_cuda
from birnn_cuda import ops
from birnn_cuda.__main__ import limits_of_this_gpu

pytestmark = NEEDS_GPU

CELLS = ("tanh", "gru", "lstm")
# T, B, I, H of each kernel.
SHAPES = {
    "block": [(7, 3, 5, 20), (6, 33, 16, 64)],
    "cluster": [(7, 3, 5, 37), (9, 20, 64, 128), (6, 33, 32, 256)],
    "grid": [(7, 3, 5, 100), (6, 9, 64, 512), (9, 20, 32, 771)],
}
CASES = [(kernel, shape) for kernel, shapes in SHAPES.items() for shape in shapes]


def needs(kernel):
    if kernel == "cluster" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need compute capability 9.0")


def lengths_of(pattern, seq_len, batch_size):
    if pattern == "full":
        return None
    return torch.arange(batch_size).mul(5).remainder(seq_len + 1).cuda()


def expect_close(cell, shape, mode, kernel, pattern, parts=0):
    seq_len, batch_size, input_size, hidden_size = shape
    dtype = torch.float32 if mode == "ieee" else ROUNDED[mode][0]
    ours = make_layer(birnn_cuda, cell, input_size, hidden_size, bidirectional=True, dtype=dtype)
    reference = copy.deepcopy(ours).double()
    lengths = lengths_of(pattern, seq_len, batch_size)
    input = torch.randn(seq_len, batch_size, input_size).to(dtype)
    num_states = 2 if cell == "lstm" else 1
    state = torch.empty(2, batch_size, hidden_size)
    cotangents = [torch.empty(seq_len, batch_size, 2 * hidden_size), *[state] * num_states]
    cotangents = [torch.randn_like(d).to(dtype) for d in cotangents]

    def results(layer, input, cotangents, lengths):
        leaf = input.detach().requires_grad_()
        outputs = call(layer, leaf, **({} if lengths is None else {"lengths": lengths}))
        grads = gradients(outputs, cotangents, [leaf, *layer.parameters()])
        return [t.cpu() for t in (*outputs, *grads)]

    on_cpu = None if lengths is None else lengths.cpu()
    exact = results(reference, input.double(), cotangents, on_cpu)
    ours.cuda()
    given = (input.cuda(), on_device(cotangents), lengths)
    with ops.forced_kernel(kernel, parts):
        actual, again = (results(ours, *given) for _ in range(2))
    assert_equal(actual, again)
    drawn = [None] * len(exact)
    if mode != "ieee":
        operands = [given[0].double()]
        drawn = rounding_model.drawn(reference.cuda(), ROUNDED[mode][2], operands, *given[1:])
    for index, (a, e, d) in enumerate(zip(actual, exact, drawn, strict=True)):
        rounding.check(a, e, TOLERANCE[torch.float32], d, f"result {index}")


@pytest.mark.parametrize("pattern", ["full", "ragged"])
@pytest.mark.parametrize("mode", ["ieee", *ROUNDED])
@pytest.mark.parametrize(("kernel", "shape"), CASES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(monkeypatch, cell, kernel, shape, mode, pattern):
    needs(kernel)
    use_precision(monkeypatch, "tf32" if mode == "tf32" else "ieee")
    expect_close(cell, shape, mode, kernel, pattern)


@pytest.mark.parametrize("kernel", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_backward_in_parts(monkeypatch, cell, kernel):
    needs(kernel)
    use_precision(monkeypatch, "ieee")
    for parts in (2, 5):
        expect_close(cell, SHAPES[kernel][0], "ieee", kernel, "full", parts)
        expect_close(cell, SHAPES[kernel][1], "bf16", kernel, "full", parts)


@pytest.mark.parametrize("priorities", [(0, 0, 0), (0, -1, -5), (-5, 0, -5)], ids=str)
def test_layers_on_many_streams_make_progress(priorities):
    """Grids that wait for all their blocks, beside each other and beside other kernels; some more
    urgent than others, which must not each hold multiprocessors that the other waits for."""
    layers = [
        birnn_cuda.LSTM(64, 600, bidirectional=True, dtype=torch.float16).cuda() for _ in range(3)
    ]
    input = torch.randn(40, 8, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    other = torch.randn(2048, 2048, device="cuda")
    with ops.forced_kernel("grid"):
        expected = [training_step(layer, input) for layer in layers]
        streams = [torch.cuda.Stream(priority=priority) for priority in priorities]
        busy = torch.cuda.Stream()
        torch.cuda.synchronize()
        for _ in range(5):
            actual = []
            with torch.cuda.stream(busy):
                for _ in range(20):
                    other = (other @ other).clamp(-1, 1)
            for stream, layer in zip(streams, layers, strict=True):
                with torch.cuda.stream(stream):
                    actual.append(training_step(layer, input))
            torch.cuda.synchronize()
            for one, wanted in zip(actual, expected, strict=True):
                assert_equal(one, wanted)


@pytest.mark.parametrize(("kernel", "parts"), [*itertools.product(SHAPES, (0, 3)), ("stepwise", 0)])
def test_a_training_step_in_one_graph(kernel, parts):
    """Forward, backward and the optimizer, replayed on other data as if run eagerly."""
    needs(kernel)
    torch.manual_seed(0)
    size = SHAPES.get(kernel, SHAPES["block"])[-1]
    seq_len, batch_size, input_size, hidden_size = size

    def make():
        torch.manual_seed(1)
        layer = birnn_cuda.GRU(input_size, hidden_size, bidirectional=True).cuda()
        return layer, torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)

    input = torch.randn(seq_len, batch_size, input_size, device="cuda")

    def step_of(layer, optimizer):
        def step():
            optimizer.zero_grad(set_to_none=False)
            loss = layer(input)[0].square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step

    data = [torch.randn_like(input) for _ in range(4)]
    with ops.forced_kernel(kernel, parts):
        graphed, optimizer = make()
        step = step_of(graphed, optimizer)
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            for values in data[:2]:
                input.copy_(values)
                step()
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for values in data[2:]:
            input.copy_(values)
            graph.replay()
        eager, optimizer = make()
        step = step_of(eager, optimizer)
        for values in data:
            input.copy_(values)
            step()
    for one, other in zip(graphed.parameters(), eager.parameters(), strict=True):
        assert relative_error(one, other) <= 1e-5


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_peak_memory_is_no_more_than_is_counted(cell):
    """By memory_count.py, which the emulated layer is compared with as well."""
    T, B, size = 200, 64, 256
    layer = make_layer(birnn_cuda, cell, size, size, bidirectional=True).cuda()
    input = torch.randn(T, B, size, device="cuda", requires_grad=True)
    training_step(layer, input)  # what the libraries keep for good
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    training_step(layer, input)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    shape = {"seq_len": T, "batch_size": B, "input_size": size, "hidden_size": size}
    plan = ops.plan(limits_of_this_gpu(), cell=cell, dtype="float32", **shape)
    # At most that of torch, of which each of two streams has one: 32 MiB by default.
    workspaces = [plan[side]["workspace_bytes"] for side in ("forward", "backward")]
    count = Count(cell, 4, T, B, size, size, plan["reserve_bytes"], *workspaces, 2 * 33 * 2**20)
    # The loss of the test holds the squares of the outputs, and their gradients.
    outputs = 3 * T * B * 2 * size * 4
    counted = max(count.forward_peak(), count.kept() + outputs + count.backward_peak())
    assert peak <= 1.05 * counted, f"{peak / 2**20:.1f} MiB > {counted / 2**20:.1f} MiB"
