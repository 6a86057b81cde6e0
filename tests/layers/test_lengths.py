"""Sequences of unequal length: `lengths=` and packed, against each sequence alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    assert_close,
    assert_like_oracle,
    call,
    call_by_lengths,
    copies,
    draw_operands,
    make_layer,
    make_pair,
    make_states,
)
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import birnn_cuda

LENGTHS = {
    "full": [5, 5, 5, 5],
    "ones": [1, 1, 1, 1],
    "sorted": [5, 4, 4, 1],
    "unsorted": [2, 5, 1, 3],
    "zeros": [0, 3, 0, 5],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell, pattern, dtype):
    batch_first, with_states = pattern == "unsorted", pattern != "sorted"
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 6, 9, dtype=dtype, **options)
    shape = (4, 5, 6) if batch_first else (5, 4, 6)

    def draw():
        states = make_states(ours, 4, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    lengths = torch.tensor(LENGTHS[pattern], dtype=torch.int32 if with_states else torch.int64)
    outputs = call(ours, operands[0], operands[1:], lengths=lengths)
    expected = call_by_lengths(oracle, exact[0], exact[1:], LENGTHS[pattern])
    padding = torch.arange(5).unsqueeze(1) >= lengths
    padded = outputs[0].transpose(0, 1) if batch_first else outputs[0]
    assert padded[padding].eq(0).all()
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell, enforce_sorted):
    options = {"bidirectional": True, "num_layers": 2, "dtype": torch.float64}
    oracle, ours = make_pair(cell, 6, 9, **options)
    lengths = LENGTHS["sorted" if enforce_sorted else "unsorted"]
    operands = [torch.randn(5, 4, 6, dtype=torch.float64), *make_states(ours, 4, torch.float64)]
    operands, exact = copies(operands, torch.float64), copies(operands, torch.float64)
    both = [
        call(layer, pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), states)
        for layer, (x, *states) in ((ours, operands), (oracle, exact))
    ]
    assert_like_oracle(oracle, ours, *both, operands, exact, 1e-12)


def test_packed_output_keeps_its_order():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True)
    sequences = [torch.randn(length, 3) for length in (2, 5, 3)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, h_n = ours(packed)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    assert torch.equal(output.sorted_indices, packed.sorted_indices)
    assert torch.equal(output.unsorted_indices, packed.unsorted_indices)
    for index, sequence in enumerate(sequences):
        assert_close([h_n[:, index]], [ours(sequence)[1]], 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell):
    """NaN past a sequence's end, or in an empty one's state, changes nothing, bit for bit."""
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True, num_layers=2)
    lengths = torch.tensor([5, 0, 3, 1])
    clean = torch.randn(5, 4, 3)
    poisoned = clean.clone()
    poisoned[torch.arange(5).unsqueeze(1) >= lengths] = float("nan")
    states = make_states(ours, 4, torch.float32)
    results = []
    for input, value in ((clean, 0.0), (poisoned, float("nan"))):
        leaf = input.requires_grad_()
        for state in states:
            state[:, 1] = value  # the state of the empty sequence
        outputs = [o[:, [0, 2, 3]] for o in call(ours, leaf, states, lengths=lengths)]
        loss = sum(o.square().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [leaf, *ours.parameters()])])
    for clean_result, poisoned_result in zip(*results, strict=True):
        assert torch.equal(clean_result, poisoned_result)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell):
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True)
    clean = torch.randn(5, 4, 3)
    poisoned = clean.clone()
    poisoned[2, 1] = float("nan")
    others = [0, 2, 3]
    results = []
    for input in (clean, poisoned):
        leaf = input.requires_grad_()
        outputs = call(ours, leaf)
        (d_input,) = torch.autograd.grad(sum(o.sum() for o in outputs), [leaf])
        results.append([*outputs, d_input])
    assert results[1][0][:, 1].isnan().any()
    for clean_result, poisoned_result in zip(*results, strict=True):
        assert torch.equal(clean_result[:, others], poisoned_result[:, others])


def test_lengths_on_unbatched_input():
    ours = birnn_cuda.LSTM(3, 4, bidirectional=True)
    input = torch.randn(5, 3)
    outputs = call(ours, input, lengths=torch.tensor(3))
    alone = call(ours, input[:3])
    assert_close([outputs[0][:3], *outputs[1:]], alone, 1e-6)
    assert outputs[0].shape == (5, 8) and outputs[0][3:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_at_all(dtype):
    """Nothing is read where there is nothing to compute, whatever the memory held before."""
    for cell, hidden_size in itertools.product(("tanh", "gru", "lstm"), (7, 17, 33)):
        layer = make_layer(birnn_cuda, cell, 17, hidden_size, bidirectional=True, dtype=dtype)
        input, lengths = torch.randn(200, 1, 17).to(dtype), torch.zeros(1, dtype=torch.int64)
        for size in range(500, 20_000, 1500):
            del_me = [torch.full((size,), 1e30) for _ in range(8)]
            del del_me
            output, _ = layer(input, lengths=lengths)
            assert not output.any()
