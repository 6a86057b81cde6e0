"""Weights of Paddle's layers in and back, beside Paddle, at unequal lengths.

Long, for `make exchange`, which installs it.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from rounding import check

import birnn_cuda

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

BATCH, STEPS, INPUT, HIDDEN = 3, 6, 4, 5
LENGTHS = [6, 2, 4]


def make(cell, direction, **options):
    nn = importlib.import_module("paddle").nn
    options = {"num_layers": 2, "direction": direction, **options}
    if cell in ("tanh", "relu"):
        return nn.SimpleRNN(INPUT, HIDDEN, activation=cell, **options)
    return getattr(nn, cell.upper())(INPUT, HIDDEN, **options)


@pytest.mark.parametrize("direction", ["forward", "bidirect"])
@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
def test_in_and_back(cell, direction):
    paddle = importlib.import_module("paddle")
    inside = torch.arange(STEPS)[None] < torch.tensor(LENGTHS)[:, None]
    x = torch.where(inside[..., None], torch.randn(BATCH, STEPS, INPUT), 1e4)

    def run(network):
        output, _ = network(paddle.to_tensor(x.numpy()), sequence_length=paddle.to_tensor(LENGTHS))
        return torch.from_numpy(output.numpy())

    theirs = make(cell, direction)
    names = theirs.state_dict()
    assert any(name.startswith("0.") for name in names)  # each weight stands there twice
    ours = birnn_cuda.load_paddle(names, activation="relu" if cell == "relu" else "tanh")
    output, _ = ours(x, lengths=torch.tensor(LENGTHS))
    check(run(theirs), output, 1e-5)  # zeros past the ends too
    back = make(cell, direction)
    back.set_state_dict(
        {name: paddle.to_tensor(value) for name, value in birnn_cuda.to_paddle(ours).items()}
    )
    assert torch.equal(run(back), run(theirs))


def test_time_major():
    paddle = importlib.import_module("paddle")
    theirs = make("gru", "bidirect", time_major=True)
    ours = birnn_cuda.load_paddle(theirs.state_dict(), time_major=True)
    x = torch.randn(STEPS, BATCH, INPUT)
    output, _ = theirs(paddle.to_tensor(x.numpy()))
    check(torch.from_numpy(output.numpy()), ours(x)[0], 1e-5)


def test_older_layers_are_refused_as_what_they_are():
    lstm = {"lstm_0.w_0": np.zeros((5, 20)), "lstm_0.b_0": np.zeros((1, 35))}
    with pytest.raises(NotImplementedError, match=r"lstm_0.b_0 .* peepholes"):
        birnn_cuda.load_paddle(lstm)
    gru = {"gru_0.w_0": np.zeros((5, 15)), "gru_0.b_0": np.zeros((1, 15))}
    with pytest.raises(NotImplementedError, match=r"gru_0.w_0 .* \[H, 2\*H\] and an \[H, H\]"):
        birnn_cuda.load_paddle(gru)


def test_what_is_no_recurrent_layer():
    for weights in (
        {"weight": np.zeros((3, 3))},
        {"weight_hh_l0": np.zeros((10, 5))},
        {"weight_ih_l0": np.zeros((20, 4)), "weight_hh_l0": np.zeros((20, 6))},
    ):
        with pytest.raises(ValueError):
            birnn_cuda.load_paddle(weights)
