"""The forms of the input: unbatched, strided, empty; threads, and the same bits again."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    CELLS,
    VARIANTS,
    assert_close,
    assert_like_oracle,
    call,
    gradients,
    make_layer,
    make_pair,
    make_states,
    strided,
)
from torch import nn

import birnn_cuda


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_unbatched(cell, batch_first):
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 3, 4, dtype=torch.float64, **options)
    input = torch.randn(5, 3, dtype=torch.float64)
    states = [s.squeeze(1) for s in make_states(ours, 1, torch.float64)]
    assert_close(call(ours, input, states), call(oracle, input, states), 1e-12)


@pytest.mark.parametrize("how", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("cell", CELLS)
def test_strides(cell, how):
    oracle, ours = make_pair(cell, 6, 8, bidirectional=True, dtype=torch.float64)
    operands = [torch.randn(5, 4, 6, dtype=torch.float64), *make_states(ours, 4, torch.float64)]
    operands = [strided(x, how).detach().requires_grad_() for x in operands]
    assert not any(x.is_contiguous() for x in operands)
    exact = [x.detach().contiguous().requires_grad_() for x in operands]
    outputs, expected = call(ours, operands[0], operands[1:]), call(oracle, exact[0], exact[1:])
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_strided_weights_and_cotangents(cell):
    oracle, ours = make_pair(cell, 6, 8, bidirectional=True, dtype=torch.float64)
    for name, weight in list(ours.named_parameters()):
        setattr(ours, name, nn.Parameter(strided(weight.detach(), "sliced")))
    input = torch.randn(5, 4, 6, dtype=torch.float64)
    outputs, expected = call(ours, input), call(oracle, input)
    cotangents = [strided(torch.randn_like(o), "transposed") for o in outputs]
    assert_close(
        gradients(outputs, cotangents, list(ours.parameters())),
        gradients(expected, cotangents, list(oracle.parameters())),
        1e-12,
    )


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell):
    ours = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, num_layers=2)
    theirs = make_layer(nn, cell, 3, 4, bidirectional=True, num_layers=2)
    input = torch.randn(5, 0, 3, requires_grad=True)
    outputs = call(ours, input)
    assert [o.shape for o in outputs] == [o.shape for o in call(theirs, input)]
    loss = sum(o.sum() for o in outputs)
    d_input, *d_weights = torch.autograd.grad(loss, [input, *ours.parameters()])
    assert d_input.shape == (5, 0, 3)
    assert all(d.eq(0).all() for d in d_weights)


def test_several_threads():
    """More threads, and more than rows to share out: the same outputs, and gradients as exact."""
    ours = birnn_cuda.LSTM(32, 48, num_layers=2, bidirectional=True)
    input = torch.randn(20, 33, 32, requires_grad=True)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            outputs = call(ours, input)
            loss = outputs[0].square().sum()
            results.append([*outputs, *torch.autograd.grad(loss, [input, *ours.parameters()])])
        finally:
            torch.set_num_threads(1)
    states = len(outputs)
    assert all(torch.equal(a, b) for a, b in zip(*(r[:states] for r in results), strict=True))
    # Large products are a BLAS's, which divides long sums by threads.
    for one, three in zip(*results, strict=True):
        assert_close([three], [one], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", (*CELLS, *VARIANTS))
def test_a_sequence_alone_and_among_others_gives_the_same_bits(cell, dtype):
    """With any number of threads, in training and inference; with inputs narrow and wide."""
    for input_size in (3, 17, 40):
        layer = make_layer(birnn_cuda, cell, input_size, 17, bidirectional=True, dtype=dtype)
        input = torch.randn(2, 19, input_size, dtype=dtype)
        expected = call(layer, input)
        for threads, track in ((1, False), (3, True), (4, False)):
            torch.set_num_threads(threads)
            try:
                with torch.set_grad_enabled(track):
                    together, alone = call(layer, input), call(layer, input[:, 5:6])
            finally:
                torch.set_num_threads(1)
            for one, other, own in zip(expected, together, alone, strict=True):
                assert torch.equal(one, other) and torch.equal(one[:, 5:6], own)


def test_repeated_runs_give_the_same_bits():
    ours = birnn_cuda.GRU(32, 48, bidirectional=True)
    input = torch.randn(20, 33, 32, requires_grad=True)
    first, second = (
        torch.autograd.grad(ours(input)[0].square().sum(), [input, *ours.parameters()])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
