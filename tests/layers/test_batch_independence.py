"""A sequence's result is bit for bit the same alone and among others, whatever they hold."""

import pytest
import torch
from conftest import CELLS, call, make_layer, make_states

import birnn_cuda

T = 6
# Around the rows and the columns of a block of products.
BATCH_SIZES = (1, 2, 3, 5, 8, 9, 16, 17, 31)
SIZES = ((16, 16), (100, 60), (40, 37), (64, 129))


def part(results, rows):
    """Of output and states, those of some sequences."""
    return [result[:, rows] for result in results]


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_alone_and_among_others(cell, sizes, grad):
    layer = make_layer(birnn_cuda, cell, *sizes, bidirectional=True)
    most = max(BATCH_SIZES) + 9
    input, states = torch.randn(T, most, sizes[0]), make_states(layer, most, torch.float32)
    with torch.set_grad_enabled(grad):
        all_of_them = call(layer, input, states)
        for batch_size in BATCH_SIZES:
            rows = slice(0, batch_size)
            some = call(layer, input[:, rows], [state[:, rows] for state in states])
            assert_equal(some, part(all_of_them, rows))


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_and_their_order_change_nothing(cell):
    layer = make_layer(birnn_cuda, cell, 20, 33, bidirectional=True)
    input, lengths = torch.randn(T, 12, 20), torch.randint(0, T + 1, (12,))
    with torch.no_grad():
        together = call(layer, input, lengths=lengths)
        order = torch.randperm(12)
        assert_equal(call(layer, input[:, order], lengths=lengths[order]), part(together, order))
        for row, length in enumerate(lengths.tolist()):
            if length:
                output, *states = call(layer, input[:length, row : row + 1])
                assert torch.equal(output[:, 0], together[0][:length, row])
                assert_equal(states, part(together[1:], slice(row, row + 1)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_stays_in_its_sequence(cell, bad):
    layer = make_layer(birnn_cuda, cell, 20, 33, bidirectional=True)
    input = torch.randn(T, 9, 20)
    spoilt = input.clone()
    spoilt[:, 4] = bad
    others = [row for row in range(9) if row != 4]
    with torch.no_grad():
        assert_equal(part(call(layer, spoilt), others), part(call(layer, input), others))
