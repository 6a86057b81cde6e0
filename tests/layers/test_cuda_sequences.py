"""Nested tensors and the cell states of every step on a GPU, against the same layer on the CPU.

The CPU's results are compared with torch's in test_nested.py and test_cell_states.py.
"""

from __future__ import annotations

import copy

import pytest
import rounding
import rounding_model
import torch
from conftest import CELLS, assert_close, make_layer, make_states
from cuda_support import NEEDS_GPU
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import birnn_cuda

pytestmark = NEEDS_GPU

LENGTHS = [3, 0, 5, 1]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def make_nested(dtype):
    sequences = [torch.randn(length, 3, dtype=dtype) for length in LENGTHS]
    return torch.nested.nested_tensor(sequences, layout=torch.jagged, requires_grad=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cell", CELLS)
def test_nested(cell, dtype):
    layer = make_layer(
        birnn_cuda, cell, 3, 8, num_layers=2, bidirectional=True, dtype=torch.float64
    )
    on_cpu = make_nested(dtype)
    results = []
    for device, precision in (("cpu", torch.float64), ("cuda", dtype)):
        ours = copy.deepcopy(layer).to(device, precision)
        nested = torch.nested.nested_tensor_from_jagged(
            on_cpu.values().detach().to(device, precision), on_cpu.offsets().to(device)
        ).requires_grad_()
        output, final = ours(nested)
        final = final if isinstance(final, tuple) else (final,)
        loss = output.values().square().sum() + sum(s.sum() for s in final)
        d_input, *d_weights = torch.autograd.grad(loss, [nested, *ours.parameters()])
        results.append([t.cpu() for t in (output.values(), *final, d_input.values(), *d_weights)])
    assert_close(results[1], results[0], TOLERANCE[dtype])


def test_the_host_never_waits_for_a_nested_tensor_of_known_size():
    ours = birnn_cuda.LSTM(3, 8, num_layers=2, bidirectional=True).cuda()
    values = torch.randn(9, 3, device="cuda")
    offsets = torch.tensor([0, 3, 3, 8, 9], device="cuda")
    nested = torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=5)
    ours(nested)[0].values().sum().backward()  # what is done once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours(nested)[0].values().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj"])
def test_cell_states(cell, form, dtype):
    layer = make_layer(
        birnn_cuda, cell, 3, 8, num_layers=2, bidirectional=True, dtype=torch.float64
    )
    input, states = torch.randn(5, 4, 3).double(), make_states(layer, 4, torch.float64)
    results = []
    for device, precision in (("cpu", torch.float64), ("cuda", dtype)):
        ours = copy.deepcopy(layer).to(device, precision)
        operands = [x.to(device, precision).requires_grad_() for x in (input, *states)]
        options = {"return_cell_states": True}
        given = operands[0]
        if form == "lengths":
            options["lengths"] = torch.tensor(LENGTHS, device=device)
        if form == "packed":
            given = pack_padded_sequence(given, [2, 5, 1, 3], enforce_sorted=False)
        output, (h_n, c_n), cells = ours(given, tuple(operands[1:]), **options)
        if isinstance(cells, PackedSequence):
            output, cells = output.data, cells.data
        loss = cells.square().sum() + output.sum() + c_n.sum() + h_n.sum()
        grads = torch.autograd.grad(loss, [*operands, *ours.parameters()])
        results.append([t.cpu() for t in (output, h_n, c_n, cells, *grads)])
    assert_close(results[1], results[0], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cell_states_in_sixteen_bits(dtype):
    """Values, and the gradient of the input, are the CPU's in fp64 within the format."""
    ours = birnn_cuda.LSTM(3, 8, bidirectional=True).to("cuda", dtype)
    exact = copy.deepcopy(ours).cpu().double()
    input = torch.randn(5, 4, 3).to(dtype)
    results = []
    for layer, leaf in ((ours, input.cuda()), (exact, input.double())):
        leaf.requires_grad_()
        cells = layer(leaf, return_cell_states=True)[2]
        assert cells.dtype == leaf.dtype
        cells.to(torch.promote_types(cells.dtype, torch.float32)).square().sum().backward()
        results.append((cells.detach().cpu(), leaf.grad.cpu()))
    rounds = rounding.Rounding(rounding.OF_DTYPE[dtype])
    draws = rounding_model.number_of_draws(results[0][0].numel())
    weights = [[w.detach() for w in direction] for direction in exact.all_weights]
    model = rounding_model.Layer("lstm", weights, rounds, draws, None)
    outputs = model.forward(input.unsqueeze(0), None, None)
    cells = rounds.stored(model.cells)
    nothing = [torch.zeros_like(one) for one in outputs]
    drawn = cells, model.backward(*nothing, d_cells=rounds.stored(2 * cells))[0]
    names = ("cells", "gradient of the input")
    for name, one, wanted, model_draws in zip(names, *results, drawn, strict=True):
        rounding.check(one, wanted, TOLERANCE[torch.float32], model_draws, name)
