"""`layer_norm=True` on a GPU, against a stack of layers step by step in fp64 on the CPU."""

import copy

import pytest
import torch
from conftest import TOLERANCE, copies, make_states
from cuda_support import NEEDS_GPU, assert_equal, check_results, on_device, training_step
from segments import draw_resets
from test_layer_norm import CELLS, LENGTHS, expected_of, make, run

pytestmark = NEEDS_GPU

# T, B, H: more sequences than a GPU runs blocks, and more units than a block has threads.
SIZES = [(7, 5, 9), (3, 2, 300), (2, 2100, 8), (40, 3, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["full", "lengths", "lengths on the CPU", "resets"])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, form, dtype):
    for seq_len, batch_size, hidden_size in SIZES if form == "full" else SIZES[:1]:
        layer = make(cell, 6, hidden_size, dtype, num_layers=2, bidirectional=True)
        oracle = copy.deepcopy(layer).double()
        given = {}
        if form.startswith("lengths"):
            given["lengths"] = LENGTHS
        if form == "resets":
            given["resets"] = draw_resets(seq_len, batch_size, "mixed")
        operands = [torch.randn(seq_len, batch_size, 6).to(dtype)]
        operands += make_states(layer, batch_size, dtype)
        exact = copies(operands, torch.float64)
        layer, operands = layer.cuda(), on_device(copies(operands, dtype))
        on_gpu = {
            name: t if form == "lengths on the CPU" else t.cuda() for name, t in given.items()
        }
        outputs = run(layer, operands[0], operands[1:], **on_gpu)
        expected = expected_of(oracle, exact[0], exact[1:], **given)
        # A norm magnifies the rounding of what it is given (test_layer_norm.py).
        tolerance = 30 * TOLERANCE[dtype]
        check_results(oracle, layer, outputs, expected, operands, exact, tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_call_is_bitwise_equal(cell):
    layer = make(cell, 6, 70, bidirectional=True).cuda()
    input = torch.randn(30, 40, 6, device="cuda", requires_grad=True)
    lengths = torch.randint(0, 31, (40,), device="cuda")
    first = training_step(layer, input, lengths=lengths)
    for _ in range(5):
        assert_equal(training_step(layer, input, lengths=lengths), first)


@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_call_is_the_eager_one(cell):
    layer = make(cell, 6, 33, bidirectional=True).cuda()
    input = torch.randn(9, 4, 6, device="cuda")
    with torch.no_grad():
        expected = layer(input)[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = layer(input)[0]
        graph.replay()
    assert torch.equal(output, expected)
