#!/usr/bin/env bash
# One would guess: a sequence of length 0 leaves a recurrent layer with the state it entered with, here
# zeros. In flax's RNN (linen and nnx alike) and in jax's lstm_ref its final state is that after the
# last step of all, padding read to the end, as if it had been of full length. Without a word; lengths
# from 1 on are right.
# flax 0.12.8, jax 0.10.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import flax
import jax
import numpy as np
from flax import linen, nnx
from jax.experimental import rnn

STEPS, FEATURES, HIDDEN = 6, 4, 5
x = np.random.default_rng(0).standard_normal((1, STEPS, FEATURES)).astype(np.float32)


def by_linen(length):
    layer = linen.RNN(linen.LSTMCell(HIDDEN), return_carry=True)
    (_, h), y = layer.apply(layer.init(jax.random.key(0), x), x, seq_lengths=np.array([length]))
    return h, y


layer = nnx.RNN(nnx.LSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0)), return_carry=True)


def by_nnx(length):
    (_, h), y = layer(x, seq_lengths=np.array([length]))
    return h, y


def by_lstm_ref(length):
    weights = rnn.init_lstm_weight(jax.random.key(0), FEATURES, HIDDEN, 1, False)
    parts = rnn.unpack_lstm_weights(weights, FEATURES, HIDDEN, 1, False)
    zeros = np.zeros((1, 1, HIDDEN), np.float32)
    y, h, _ = rnn.lstm_ref(
        x, zeros, zeros, *parts, seq_lengths=np.array([length], np.int32), input_size=FEATURES,
        hidden_size=HIDDEN, num_layers=1, dropout=0.0, bidirectional=False,
    )
    return h[0], y


print(f"flax {flax.__version__}, jax {jax.__version__}; the final state's distance from")
for run in (by_linen, by_nnx, by_lstm_ref):
    (none, _), (two, y), (full, _) = (run(length) for length in (0, 2, STEPS))
    initial, last = np.abs(none).max(), np.abs(none - full).max()
    print(f"  {run.__name__}, length 0: the initial one {initial:.3f}, the last step's {last:.3f}")
    assert np.abs(two - y[:, 1]).max() < 1e-6
    assert initial > 0.01 and last < 1e-6
PYTHON
