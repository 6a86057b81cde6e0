"""The layers on a GPU: lengths and packed sequences."""

from __future__ import annotations

import pytest
import rounding
import rounding_model
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    VARIANTS,
    call,
    call_by_lengths,
    copies,
    draw_operands,
    make_layer,
    make_pair,
    make_states,
)
from cuda_support import (
    BOUNDED,
    NEEDS_GPU,
    assert_equal,
    check_results,
    on_device,
    training_step,
)
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda

pytestmark = NEEDS_GPU

LENGTHS = {
    "full": [5, 5, 5, 5],
    "ones": [1, 1, 1, 1],
    "sorted": [5, 4, 4, 1],
    "unsorted": [2, 5, 1, 3],
    "zeros": [0, 3, 0, 5],
}


@pytest.mark.parametrize("mode", BOUNDED)
@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_lengths(cell, pattern, where, mode):
    dtype, _, tolerance = BOUNDED[mode]
    batch_first, with_states = pattern == "unsorted", pattern != "sorted"
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 6, 9, dtype=dtype, **options)
    shape = (4, 5, 6) if batch_first else (5, 4, 6)

    def draw():
        states = make_states(ours, 4, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = on_device(copies(operands, dtype)), copies(operands, torch.float64)
    lengths = torch.tensor(LENGTHS[pattern], dtype=torch.int32 if with_states else torch.int64)
    outputs = call(ours.cuda(), operands[0], operands[1:], lengths=lengths.to(where))
    expected = call_by_lengths(oracle, exact[0], exact[1:], LENGTHS[pattern])
    padding = torch.arange(5).unsqueeze(1) >= lengths
    padded = outputs[0].transpose(0, 1) if batch_first else outputs[0]
    assert padded[padding.cuda()].eq(0).all()
    check_results(oracle, ours, outputs, expected, operands, exact, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_in_sixteen_bits(cell, dtype):
    """A sequence in a padded batch, and alone, is torch's in fp64, within the format."""
    oracle, ours = make_pair(cell, 6, 24, bidirectional=True, dtype=dtype)
    ours = ours.cuda()
    input = torch.randn(7, 4, 6).to(dtype)
    lengths = [7, 3, 0, 1]
    outputs = call(ours, input.cuda(), lengths=torch.tensor(lengths, device="cuda"))
    for index, length in enumerate(lengths):
        assert outputs[0][length:, index].eq(0).all()
        if length:
            sequence = input[:length, index : index + 1]
            expected = call(oracle, sequence.double())
            nothing = [torch.zeros_like(one) for one in expected]
            drawn = rounding_model.drawn(
                oracle, rounding.OF_DTYPE[dtype], [sequence.double()], nothing
            )
            together = [outputs[0][:length, index : index + 1]]
            together += [state[:, index : index + 1] for state in outputs[1:]]
            for actual in (together, call(ours, sequence.cuda())):
                for one, wanted, draws in zip(actual, expected, drawn, strict=False):
                    rounding.check(one.cpu(), wanted, TOLERANCE[torch.float32], draws, cell)


def test_lengths_on_the_device_are_clamped():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True).cuda()
    input = torch.randn(5, 4, 3, device="cuda", requires_grad=True)
    wrong, right = (
        training_step(ours, input, lengths=torch.tensor(values, device="cuda"))
        for values in ([-3, 9, 2, 5], [0, 5, 2, 5])
    )
    assert_equal(wrong, right)


@pytest.mark.parametrize("mode", BOUNDED)
@pytest.mark.parametrize("pattern", ["full", "ones", "sorted", "unsorted"])
@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell, pattern, mode):
    dtype, _, tolerance = BOUNDED[mode]
    oracle, ours = make_pair(cell, 6, 9, bidirectional=True, num_layers=2, dtype=dtype)
    lengths, enforce_sorted = LENGTHS[pattern], pattern != "unsorted"

    def draw():
        return [torch.randn(5, 4, 6, dtype=dtype), *make_states(ours, 4, dtype)]

    operands = draw_operands(ours, draw)
    operands, exact = on_device(copies(operands, dtype)), copies(operands, torch.float64)
    outputs, expected = (
        call(layer, pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), states)
        for layer, (x, *states) in ((ours.cuda(), operands), (oracle, exact))
    )
    check_results(oracle, ours, outputs, expected, operands, exact, tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell):
    """NaN past a sequence's end, or in an empty one's state, changes nothing, bit for bit."""
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True, num_layers=2).cuda()
    lengths = torch.tensor([5, 0, 3, 1], device="cuda")
    padding = torch.arange(5, device="cuda").unsqueeze(1) >= lengths
    clean = torch.randn(5, 4, 3, device="cuda")
    poisoned = clean.masked_fill(padding.unsqueeze(2), float("nan"))
    states = [s.cuda() for s in make_states(ours, 4, torch.float32)]
    cotangent = torch.randn(5, 4, call(ours, clean)[0].size(2), device="cuda")
    results = []
    for input, value in ((clean, 0.0), (poisoned, float("nan"))):
        leaf = input.requires_grad_()
        for state in states:
            state[:, 1] = value
        outputs = call(ours, leaf, states, lengths=lengths)
        # What comes back past the ends is not read either.
        d_output = cotangent.masked_fill(padding.unsqueeze(2), value)
        grads = torch.autograd.grad(outputs[0], [leaf, *ours.parameters()], d_output)
        results.append([*(o[:, [0, 2, 3]] for o in outputs), *grads])
        assert grads[0][padding].eq(0).all()
    assert_equal(*results)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell):
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True).cuda()
    clean = torch.randn(5, 4, 3, device="cuda")
    poisoned = clean.clone()
    poisoned[2, 1] = float("nan")
    results = []
    for input in (clean, poisoned):
        leaf = input.requires_grad_()
        outputs = call(ours, leaf)
        results.append([*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), [leaf])])
    assert results[1][0][:, 1].isnan().any()
    others = [0, 2, 3]
    assert_equal([t[:, others] for t in results[0]], [t[:, others] for t in results[1]])
