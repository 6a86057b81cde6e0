"""Dropout between layers: torch's own masks."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    make_pair,
    relative_error,
)
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_torchs_masks(cell, packed):
    options = {"bidirectional": True, "num_layers": 3, "dropout": 0.4, "dtype": torch.float64}
    oracle, ours = make_pair(cell, 5, 7, **options)
    input = torch.randn(6, 4, 5, dtype=torch.float64)
    if packed:
        input = pack_padded_sequence(input, [6, 5, 5, 2])
    results = []
    for layer in (ours, oracle):
        torch.manual_seed(1)
        results.append(call(layer, input))
    assert_close(*results, 1e-12)
    with_dropout = results[0][0]
    ours.eval()
    assert_close(call(ours, input), call(oracle.eval(), input), 1e-12)
    assert relative_error(call(ours, input)[0], with_dropout) > 1e-3


def test_dropout_can_be_changed():
    ours = birnn_cuda.GRU(5, 7, num_layers=2, dropout=0.5)
    input = torch.randn(6, 4, 5)
    ours.dropout = 0.0
    assert torch.equal(ours(input)[0], ours.eval()(input)[0])
    ours.train().dropout = 1.0
    assert not torch.equal(ours(input)[0], ours.eval()(input)[0])
