"""RNN, GRU and LSTM beside torch.nn: values and gradients."""

from __future__ import annotations

import pytest
import rounding
import rounding_model
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
    gradients,
    leave_the_kink,
    make_pair,
    make_states,
)

# T, B, I, H and the options of a layer: the shapes that break kernels.
CONFIGURATIONS = [
    (1, 1, 4, 4, {}),
    (2, 3, 1, 5, {"bidirectional": True}),
    (3, 2, 7, 8, {"bidirectional": True, "bias": False, "num_layers": 2}),
    (5, 5, 3, 13, {"bidirectional": True, "batch_first": True}),
    (7, 1, 16, 17, {"num_layers": 3, "batch_first": True}),
    (7, 9, 5, 33, {"bidirectional": True, "num_layers": 2}),
    (6, 17, 9, 64, {"bidirectional": True}),
]
SIXTEEN_BIT = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, config, dtype):
    seq_len, batch_size, input_size, hidden_size, options = config
    oracle, ours = make_pair(cell, input_size, hidden_size, dtype=dtype, **options)
    shape = (seq_len, batch_size, input_size)
    if options.get("batch_first"):
        shape = (batch_size, seq_len, input_size)
    with_states = config in CONFIGURATIONS[::2]

    def draw():
        states = make_states(ours, batch_size, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    outputs = call(ours, operands[0], operands[1:])
    expected = call(oracle, exact[0], exact[1:])
    assert all(o.dtype == dtype for o in outputs)
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("hidden_size", [1, 2])
@pytest.mark.parametrize("cell", CELLS[:4])
def test_smallest(cell, hidden_size):
    oracle, ours = make_pair(cell, 1, hidden_size, bidirectional=True, dtype=torch.float64)
    (input,), (exact,) = (copies([x], torch.float64) for x in [torch.randn(4, 3, 1)] for _ in "ab")
    outputs, expected = call(ours, input), call(oracle, exact)
    # One number may be a difference of larger ones, so the bound is wider than for a tensor.
    assert_like_oracle(oracle, ours, outputs, expected, [input], [exact], 1e-9)


def test_large_hidden_size():
    oracle, ours = make_pair("lstm", 40, 1024, bidirectional=True)
    input = torch.randn(2, 3, 40)
    assert_close(call(ours, input), call(oracle, input.double()), 1e-5)


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bit(cell, dtype):
    """No further from fp64 than the rounding of what is stored explains."""
    # What a layer rounds moves the preactivations of the next across relu's kink.
    num_layers = 1 if cell == "relu" else 2
    options = {"bidirectional": True, "num_layers": num_layers, "dtype": dtype}
    oracle, ours = make_pair(cell, 11, 24, **options)
    if cell == "relu":
        leave_the_kink(ours)
        oracle.load_state_dict(ours.state_dict())
    operands = [torch.randn(7, 5, 11).to(dtype), *make_states(ours, 5, dtype)]
    results = []
    for layer, precision in ((oracle, torch.float64), (ours, dtype)):
        leaves = copies(operands, precision)
        outputs = call(layer, leaves[0], leaves[1:])
        if not results:
            cotangents = [torch.randn_like(o).to(dtype) for o in outputs]
        grads = gradients(outputs, cotangents, [*leaves, *layer.parameters()])
        results.append(outputs + grads)
    drawn = rounding_model.drawn(
        oracle, rounding.OF_DTYPE[dtype], operands, cotangents, stores_gates=False
    )
    for index, (exact, own, draws) in enumerate(zip(*results, drawn, strict=True)):
        assert own.dtype == dtype
        rounding.check(own, exact, TOLERANCE[torch.float32], draws, f"result {index}")


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
@pytest.mark.parametrize("shape", [(40, 70, 33, 256), (300, 9, 70, 300)], ids=str)
def test_more_steps_than_are_computed_at_once(shape, cell, with_lengths):
    """So many rows that forward projects, and backward hands to the products, several parts."""
    seq_len, batch_size, input_size, hidden_size = shape
    oracle, ours = make_pair(cell, input_size, hidden_size, dtype=torch.float64, bidirectional=True)
    x = torch.randn(seq_len, batch_size, input_size, dtype=torch.float64)
    states = make_states(ours, batch_size, torch.float64)
    operands = copies([x, *states], torch.float64)
    oracle_operands = copies([x, *states], torch.float64)
    if with_lengths:
        lengths = torch.randint(seq_len + 1, (batch_size,))
        outputs = call(ours, operands[0], operands[1:], lengths=lengths)
        expected = call_by_lengths(
            oracle, oracle_operands[0], oracle_operands[1:], lengths.tolist()
        )
    else:
        outputs = call(ours, operands[0], operands[1:])
        expected = call(oracle, oracle_operands[0], oracle_operands[1:])
    assert_like_oracle(oracle, ours, outputs, expected, operands, oracle_operands, 1e-12)
