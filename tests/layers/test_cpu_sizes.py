"""What only sizes of real use reach on the CPU: weights larger than a cache, large memory."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close, call, copies, gradients, make_pair

import birnn_cuda


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_weights_larger_than_a_cache(cell, dtype, threads):
    """More than 1 MB of weights, and sequences for full tiles and a rest of any width."""
    hidden_size = {"tanh": 536, "gru": 312, "lstm": 272}[cell]
    oracle, ours = make_pair(cell, 40, hidden_size, bidirectional=True, dtype=dtype)
    (input,) = copies([torch.randn(3, 29, 40)], dtype)
    (exact,) = copies([input], torch.float64)
    torch.set_num_threads(threads)
    try:
        expected, actual = call(oracle, exact), call(ours, input)
        cotangents = [torch.randn_like(e) for e in expected]
        expected_gradients = gradients(expected, cotangents, [exact, *oracle.parameters()])
        actual_gradients = gradients(actual, cotangents, [input, *ours.parameters()])
    finally:
        torch.set_num_threads(1)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    assert_close(actual, expected, tolerance, "output")
    assert_close(actual_gradients, expected_gradients, 5 * tolerance, "gradient")


def test_kept_memory_is_not_in_use():
    """Blocks of 8 MB and more go from pass to pass, but none that a tensor still holds."""
    layer = birnn_cuda.LSTM(8, 128, bidirectional=True)
    inputs = [torch.randn(100, 88, 8) for _ in range(4)]  # output 9 MB, reserve 45 MB
    with torch.no_grad():
        alone = [layer(x)[0].clone() for x in inputs]
    held = [layer(x)[0] for x in inputs]  # each with a reserve of its own
    cotangents = torch.randn_like(held[0])
    weights = list(layer.parameters())
    first = [torch.autograd.grad(h, weights, cotangents, retain_graph=True) for h in held]
    second = [torch.autograd.grad(h, weights, cotangents) for h in held]
    for h, expected in zip(held, alone, strict=True):
        assert torch.equal(h, expected)
    for once, again in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    pointers = {h.data_ptr() for h in held}
    del h, held, alone
    with torch.no_grad():
        assert layer(inputs[0])[0].data_ptr() in pointers  # a block that was given back


def test_large_output_can_be_resized():
    """Kept memory is memory of an ordinary tensor: it grows in place."""
    layer = birnn_cuda.RNN(4, 256, bidirectional=True)
    with torch.no_grad():
        output = layer(torch.randn(100, 44, 4))[0]  # 9 MB
    expected = output.clone()
    output.resize_(200, 44, 512)
    assert torch.equal(output[:100], expected)
